"""Reports made: reads run folders, looks through their networks at a few images, writes the pages and their JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dataset.corpora import DataError
from dataset.labels import IGNORE, ClassTable
from dataset.segmentation import SegmentationDataset
from model.weight_files import first_line
from utils import datasets
from utils.config import ConfigError
from utils.console import say
from utils.files import atomic_write
from utils.inspection import (
    Domains,
    Example,
    Lens,
    Pixels,
    PseudoLabels,
    domains,
    pseudo_labels,
    some_of,
    training_images,
)
from utils.inspection import divergence as measure
from utils.json_files import read_json, write_json
from utils.mistakes import MISTAKES
from utils.report import compare, page
from utils.report.data import Classes, Gallery, Look, Missing, PseudoScores, Report
from utils.report.images import confidence_map, label_map, photograph
from utils.run_files import CONFIG, THRESHOLDS
from utils.run_folder import RunRecord, labels, read_run, read_runs

PAGE = "report.html"
COMPARISON = "comparison.html"
EXAMPLES = 4  # images of a gallery
AFTER_TRAINING = 8  # images of each domain that the report at a training's end looks at
_WIDTH = 1080  # of a gallery's pictures side by side, in CSS pixels


def report_at_end(folder: Path) -> None:
    """The report of a run that has just ended, against the run that it started from; never fails the training for
    what a user can get wrong, but says it."""
    try:
        path = write_reports([folder], images=AFTER_TRAINING)[0]
    except (*MISTAKES, OSError) as error:
        say(f"note: no report ({first_line(str(error))}); try python -m utils.report {folder}")
    else:
        say(f"report: {path}")


def write_reports(
    folders: Sequence[Path], *, baseline: Path | None = None, out: Path | None = None, images: int
) -> list[Path]:
    """Write `report.html` and `report.json` into each run's folder, and of several runs a comparison; their paths.

    baseline: what each run is compared with; else the first of several, or the run that a single one started from.
    out: the page of a single run, or the comparison, in another file. images: of each domain, looked at through every
    network. Raises ConfigError for folders that hold no runs, or runs of different classes.
    """
    command = _command(folders, baseline, out, images)
    wanted = {folder.absolute(): folder for folder in folders}
    others = {baseline.absolute(): baseline} if baseline else {}
    records = dict(zip(others | wanted, read_runs(list((others | wanted).values())), strict=True))
    runs, given = [records[key] for key in wanted], records[next(iter(others))] if others else None
    for run in records.values():
        _require_same_classes(runs[0], run)
    gaze = Gaze(origin=runs[0], classes=datasets.class_table(runs[0].config), images=images)
    single = len(runs) == 1
    first = given or runs[0]
    written = []
    for run in runs:
        path = out if single and out else run.folder / PAGE
        report = compose(run, _started_from(run) if run is first else first, gaze, command)
        _write(path, page.render(report), report.to_dict())
        written.append(path)
    if not single:
        compared = [first, *(run for run in runs if run is not first)]
        written.append(_compare(compared, gaze, out or runs[0].folder / COMPARISON, command))
    return written


def compose(run: RunRecord, baseline: RunRecord | None, gaze: Gaze, command: str) -> Report:
    """Everything that the page of one run tells; command: what makes it again."""
    look = gaze.at(run)
    baseline_look = gaze.at(baseline) if baseline else Missing("There is no baseline.")
    return Report(
        run=run,
        baseline=baseline,
        classes=_plain_classes(gaze.classes),
        command=command,
        images=gaze.images,
        by_truth=isinstance(gaze.shown, Shown) and gaze.shown.domains.labelled,
        look=look if isinstance(look, Missing) else look.look,
        baseline_look=baseline_look if isinstance(baseline_look, Missing) else baseline_look.look,
        galleries=_galleries(run, baseline, gaze),
        pseudo=_scored(run, _pseudo_labels(run, gaze.classes, gaze.images)),
    )


# ---- looking ----


class Shown(NamedTuple):
    """What every network is shown: images to measure, and target training images to see."""

    domains: Domains
    training: SegmentationDataset


class Seen(NamedTuple):
    """What one network made of it: region features, and views of examples of target validation and training."""

    look: Look
    validation: list[Example]
    training: list[Example]


@dataclass
class Gaze:
    """Looks through the networks of runs at the same images, those of the run `origin`; through each once."""

    origin: RunRecord
    classes: ClassTable
    images: int
    shown: Shown | Missing = field(init=False)
    seen: dict[Path, Seen | Missing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, stage = self.origin.config, self.origin.stage
        try:
            measured = domains(config, stage, self.classes, most=self.images)
            self.shown = Shown(measured, training_images(config, stage, self.classes, most=EXAMPLES))
        except DataError as error:
            self.shown = Missing(f"The images of {self.origin.label} cannot be read: {error}")

    def at(self, run: RunRecord) -> Seen | Missing:
        """What a run's network sees, or why that cannot be known."""
        key = run.folder.absolute()
        if key not in self.seen:
            self.seen[key] = self.shown if isinstance(self.shown, Missing) else self._look(run, self.shown)
        return self.seen[key]

    def _look(self, run: RunRecord, shown: Shown) -> Seen | Missing:
        try:
            lens = Lens.of_run(run.folder, run.config, run.stage, self.classes)
            look = Look(*measure(lens, shown.domains))
            validation = lens.examples(some_of(shown.domains.target, EXAMPLES))
            return Seen(look, list(validation), list(lens.examples(shown.training)))
        except MISTAKES as error:
            return Missing(f"The network of {run.label} cannot be looked through: {error}")


# ---- pseudo labels ----


def _pseudo_labels(run: RunRecord, classes: ClassTable, most: int) -> PseudoLabels | Missing:
    """The pseudo labels that a run was trained with."""
    if not datasets.wants_pseudo_labels(run.stage):
        return Missing("The run read no pseudo labels.")
    try:
        return pseudo_labels(run.config, run.stage, classes, most=most)
    except DataError as error:
        return Missing(f"The pseudo labels cannot be read: {error}")


def _scored(run: RunRecord, given: PseudoLabels | Missing) -> PseudoScores | Missing:
    """How good they are."""
    if isinstance(given, Missing):
        return given
    if given.confusion is None:
        return Missing(
            "The target's training images have no truth here, so nobody knows how good the pseudo labels are."
        )
    thresholds = read_json(Path(run.stage.pseudo_labels) / THRESHOLDS).get("classes", {})
    return PseudoScores(
        images=len(given.given),
        confusion=given.confusion,
        thresholds={name: entry["threshold"] for name, entry in thresholds.items()},
    )


# ---- pictures ----


def _galleries(run: RunRecord, baseline: RunRecord | None, gaze: Gaze) -> list[Gallery] | Missing:
    """Examples of target validation, and of target training where there are pseudo labels or no validation."""
    after = gaze.at(run)
    if isinstance(after, Missing):
        return after
    before = gaze.at(baseline) if baseline else None
    seen = {baseline.label: before} if baseline and isinstance(before, Seen) else {}
    networks = {**seen, run.label: after}
    validation = {name: one.validation for name, one in networks.items()}
    validated = isinstance(gaze.shown, Shown) and gaze.shown.domains.labelled
    given = _pseudo_labels(run, gaze.classes, EXAMPLES)
    galleries = [_gallery("Target validation images", validation, gaze)] if validated else []
    if isinstance(given, PseudoLabels) and _names(given.given) == [view.name for view in after.training]:
        training = {name: one.training for name, one in networks.items()}
        galleries.append(_gallery("Target training images, with the pseudo labels", training, gaze, given))
    return galleries or [_gallery("Target training images", validation, gaze)]


def _names(dataset: SegmentationDataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


def _gallery(
    title: str, networks: Mapping[str, list[Example]], gaze: Gaze, given: PseudoLabels | None = None
) -> Gallery:
    """A row per image: itself, its truth, each network's prediction, the last one's confidence, its pseudo label."""
    *_, last = networks
    truthful = given.truth is not None if given else any((view.truth != IGNORE).any() for view in networks[last])
    columns = ["image", *(["truth"] if truthful else []), *networks, f"confidence of {last}"]
    columns += ["pseudo label"] if given else []
    width = _WIDTH // len(columns)
    rows = []
    for index, view in enumerate(networks[last]):
        maps = [_labels(given.truth, index) if given and given.truth else view.truth] if truthful else []
        maps += [views[index].predicted for views in networks.values()]
        paint = partial(label_map, palette=gaze.classes.palette, width=width)
        pictures = [photograph(view.image, alt=view.name, width=width)]
        pictures += [paint(labels, alt=f"{view.name}: {what}") for what, labels in zip(columns[1:], maps, strict=False)]
        pictures.append(confidence_map(view.confidence, alt=f"{view.name}: confidence", width=width))
        if given:
            pictures.append(paint(_labels(given.given, index), alt=f"{view.name}: pseudo label"))
        rows.append((Path(view.name).stem, pictures))
    return Gallery(title, columns, rows)


def _labels(dataset: SegmentationDataset, index: int) -> Pixels:
    return dataset[index].label.numpy().astype("uint8")


# ---- runs ----


def _command(folders: Sequence[Path], baseline: Path | None, out: Path | None, images: int) -> str:
    """What makes these pages again."""
    words = ["python", "-m", "utils.report", *map(str, folders)]
    words += ["--baseline", str(baseline)] if baseline else []
    words += ["--out", str(out)] if out else []
    return shlex.join([*words, "--images", str(images)])


def _compare(runs: Sequence[RunRecord], gaze: Gaze, path: Path, command: str) -> Path:
    """Write the comparison of several runs."""
    seen = {run.label: gaze.at(run) for run in runs}
    looks = {label: one.look.divergence for label, one in seen.items() if isinstance(one, Seen)}
    text = compare.render(runs, _plain_classes(gaze.classes), looks, command)
    _write(path, text, compare.to_dict(runs, looks))
    return path


def _started_from(run: RunRecord) -> RunRecord | None:
    """The run whose weights a run started from, if it still stands in its folder and has the same classes."""
    folder = Path(run.stage.restore_from)
    if not (run.stage.restore_from and (folder / CONFIG).is_file()) or folder.absolute() == run.folder.absolute():
        return None
    parent = read_run(folder, label=labels([folder, run.folder])[0])
    return parent if _class_names(parent) == _class_names(run) else None


def _require_same_classes(first: RunRecord, other: RunRecord) -> None:
    """Raise ConfigError: numbers of different classes do not compare."""
    names, others = _class_names(first), _class_names(other)
    if names != others:
        different = sorted(set(names) ^ set(others))
        what = ", ".join(different) if different else "the same in another order"
        raise ConfigError(
            f"{other.folder} has other classes than {first.folder} ({what}); only runs of one class table compare"
        )


def _class_names(run: RunRecord) -> tuple[str, ...]:
    return datasets.class_table(run.config).names


def _plain_classes(table: ClassTable) -> Classes:
    return Classes(names=table.names, palette=table.palette, subsets=table.subsets)


def _write(path: Path, text: str, content: Mapping[str, object]) -> None:
    """The page, and its numbers beside it."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(path.with_suffix(".json"), content)
