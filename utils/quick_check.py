"""What must be right about data for a run to mean something: the quick form of `python -m dataset.check` before it, and
that something could be scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.corpora import Corpus, DataError, Sample, evenly
from dataset.doctor import ORIENTED, PROBLEM, PSEUDO_LABEL, Finding, Findings, Method, examine, listed_pair
from dataset.doctor import Pair as FilePair
from dataset.doctor_files import image_facts, label_facts
from dataset.doctor_sets import shared, train_id_suspicion
from dataset.labels import LabelDecoding
from dataset.segmentation import SegmentationDataset
from utils.config import Config, Stage
from utils.console import say
from utils.flags import TRAINING, Options, next_command
from utils.metrics import ConfusionMatrix

NOTHING_LABELLED = "labels without a labelled pixel, all of them"
TOLERATED = 0.25  # share of a few labels that may look like train ids: one of eight may be chance


def check_data(
    config: Config,
    stage: Stage,
    *,
    source: SegmentationDataset,
    target: SegmentationDataset | None,
    validation: SegmentationDataset | None,
) -> None:
    """The quick form of `python -m dataset.check`, before a training: a few files of each set, evenly spread.

    Raises DataError with the first problem, and says whatever else is wrong with them, and which target validation
    images are also trained on.
    """
    findings = Findings()
    findings.update(_probe(_labelled_method(config, "source train", "source", source.decoding), source))
    title = f"target {stage.split}"
    if target is not None:
        findings.update(_probe(target_method(config, title, target.decoding), target))
    if validation is not None:
        findings.update(_probe(_labelled_method(config, "target val", "target", validation.decoding), validation))
        for name, dataset in (("source train", source), (title, target)):
            findings.update(_listed_twice(validation, name, dataset))
    # One file that cannot be read is what `skip` is for; a second of the few looked at is not.
    tolerated = {"source train", title} if config.run.bad_files == "skip" else set()
    problems = findings.of(PROBLEM)
    grave = (p for p in problems if p.title not in tolerated or p.count > 1 or p.kind == NOTHING_LABELLED)
    first = next(grave, None)
    for finding in findings:
        if finding is not first:
            say(f"{finding.severity}: {finding}")
    if first is not None:
        raise DataError(str(first))


@contextlib.contextmanager
def full_report_named(options: Options, section: str) -> Iterator[None]:
    """A mistake about data names the command that reports all of them."""
    try:
        yield
    except DataError as error:
        own = (f"{section}.split", f"{section}.pseudo_labels")
        hands = {path: options.changes[path] for path in own if path in options.changes}
        script = ["-m", "dataset.check"]
        command = next_command(options, script, flags=TRAINING, section=section, hands=hands)
        raise DataError(f"{error}; everything that is wrong: {command}") from None


def say_orientation(title: str, samples: Sequence[Sample], *, most: int = 8) -> None:
    """Say where a few images, evenly spread, carry an EXIF orientation, which is not applied to them."""
    pairs = [FilePair(str(sample.image)) for sample in evenly(samples, most)]
    for finding in examine(Method(title=title, table="[target]"), pairs).findings:
        if finding.kind == ORIENTED:
            say(f"{finding.severity}: {finding}")


def refuse_train_ids(data: Corpus, labels: Sequence[Path], *, most: int = 8) -> None:
    """Raise DataError where more than a quarter of a few label files, evenly spread, look like train ids under a table
    of raw ids, most of which it would silently leave out."""
    method = Method(title="target", table="[target]", decoding=data.decoding, trust_ids=data.trust_ids)
    tally = examine(method, [FilePair("", str(path)) for path in evenly(labels, most)])
    for finding in train_id_suspicion(tally, tolerated=TOLERATED):
        if finding.severity == PROBLEM:
            counted = f"{finding.count} of {tally.labels} labels looked at"
            raise DataError(f"{finding.first}: {counted} seem to hold train ids; {finding.remedy}")


def labels_of_another_size(data: Corpus, split: str, *, most: int = 8) -> bool:
    """Whether any of a few labels, evenly spread, has another size than its image; not where either cannot be read."""
    names = [name for name, flaw in data.listing(split) if flaw is None]
    for name in evenly(names, most):
        with contextlib.suppress(DataError):
            image, _ = image_facts(data.image_folder(split) / name)
            label, _ = label_facts(data.label_folder(split) / data.label_name(name), data.decoding)
            if image.size != label.size:
                return True
    return False


def target_method(config: Config, title: str, decoding: LabelDecoding | None, *, decode: bool = False) -> Method:
    """How target training images are examined, and their pseudo labels where there is a decoding."""
    size = config.pseudo_label.size
    return Method(title=title, table="[target]", decoding=decoding, what="pseudo label", stretched=size, decode=decode)


def _labelled_method(config: Config, title: str, domain: str, decoding: LabelDecoding | None) -> Method:
    """How images with their own labels are examined."""
    trusted = getattr(config, domain).get("trust_ids", False)
    return Method(title=title, table=f"[{domain}]", decoding=decoding, trust_ids=trusted)


def _probe(method: Method, dataset: SegmentationDataset, *, most: int = 8) -> Iterator[Finding]:
    """What is wrong with at most `most` of the samples, evenly spread from the first to the last."""
    tally = examine(method, list(map(listed_pair, evenly(dataset.samples, most))))
    # All are read only where the few know no class.
    known = method.decoding is None or method.what == PSEUDO_LABEL or method.decoding.knows(tally.counts)
    if tally.labels and not known and not any(_knows(method, sample) for sample in dataset.samples):
        remedy, count = f"correct ids and ignore of {method.table}", len(dataset.samples)
        yield Finding(PROBLEM, method.title, NOTHING_LABELLED, remedy, str(dataset.samples[0].label), count=count)
    yield from tally.findings
    yield from train_id_suspicion(tally, tolerated=TOLERATED)


def _knows(method: Method, sample: Sample) -> bool:
    """Whether a sample's label holds a pixel of any class."""
    return method.decoding is not None and method.decoding.knows(examine(method, [listed_pair(sample)]).counts)


def _listed_twice(
    validation: SegmentationDataset, train: str, dataset: SegmentationDataset | None
) -> Iterator[Finding]:
    """The problem of validation images that are also training images, by their paths."""
    held_out = {sample.image for sample in validation.samples}
    names = [sample.name for sample in dataset.samples if sample.image in held_out] if dataset else []
    if names:
        yield shared("target val", train, names=names, twin=names[0], table="[target]")


def require_labelled_pixels(confusion: ConfusionMatrix, labels: str) -> None:
    """Raise DataError where nothing was scored; `labels` names the truth."""
    if not confusion.counts.any():
        raise DataError(f"{labels} hold no labelled pixel; check [target] ids and ignore")
