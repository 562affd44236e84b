"""From a recipe and a rung to runs of the scripts: pure, nothing is read but configuration files.

A run is known by what it is made from: its key holds a hash of every setting that matters to its result, the runs it
starts from included. Rungs that share a run share its key, and hence its folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rungs import METHOD, Rung
from model.extras.lessons import LESSON_LOSSES
from utils.config import Config, Stage, build_config, merge, override, read_config
from utils.flags import hand_over
from utils.run_files import LAST, MANIFEST, THRESHOLDS

LOSSES = Path(__file__).resolve().parent.parent / "configs" / "losses"
SNAPSHOTS = 4  # per stage: what a checkpoint can be chosen from
STAGES = ("step1", "step2")
SCRIPTS = {
    "step1": "train_step1.py",
    "pseudo_label": "Generate_Pseudo_Label.py",
    "step2": "train_step2.py",
}
FINISHED = {"pseudo_label": THRESHOLDS}  # what a script writes last, the manifest unless named here
MATTERS = ("seed", "precision", "compile", "deterministic", "nonfinite", "bad_files")  # of [run], to the result
# Settings younger than published runs: where they have these values, names stay as they were.
LATER: dict[str, Any] = {
    "feature_strides": (),
    "freeze_backbone": False,
    "teacher_weights": "image",
    "random_turn": False,
}
OF_LESSONS = ("teacher_momentum", "teacher_threshold", "teacher_weights", "mask_block", "mask_ratio")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a script. settings: its whole configuration; after: the runs whose results it reads."""

    section: str
    seed: int
    folder: Path
    settings: Mapping[str, Any]
    after: tuple[Job, ...] = ()

    @property
    def key(self) -> str:
        """Its name among all runs of the ladder."""
        return f"seed{self.seed}/{self.folder.name}"

    @property
    def script(self) -> str:
        """The file to run."""
        return SCRIPTS[self.section]

    @property
    def config_file(self) -> Path:
        """Its configuration, beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.toml")

    @property
    def log_file(self) -> Path:
        """What the script says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def updates(self) -> int:
        """Updates of a training, 0 for anything else."""
        if self.section not in STAGES:
            return 0
        stage = self.settings[self.section]
        return stage["num_steps_stop"] or stage["num_steps"]

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / FINISHED.get(self.section, MANIFEST)).is_file()

    @property
    def interrupted(self) -> bool:
        """Whether it can go on from where it was stopped."""
        return self.section in STAGES and not self.finished and (self.folder / LAST).is_file()

    @property
    def chain(self) -> tuple[Job, ...]:
        """Every run that leads to this one, and it itself, in order."""
        before = [job for parent in self.after for job in parent.chain]
        return (*dict.fromkeys(before), self)

    def __hash__(self) -> int:
        return hash(self.folder)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the rungs change.

    data: the configuration, unchecked. warm_up: that of the run which both stages start from, trained once per seed
    for all rungs; None where they start from weights of other origin. stages: of the recipe itself, 1 or 2.
    """

    path: Path
    data: Mapping[str, Any]
    warm_up: Mapping[str, Any] | None
    stages: int = 2

    @classmethod
    def read(
        cls, path: Path, *, scale: float = 1.0, changes: Mapping[str, Any] | None = None, stages: int = 2
    ) -> Recipe:
        """A recipe's file. scale: factor of every number of updates; changes: path -> value, laid over it.

        Where stage 1 starts from the run of another recipe, `runs/NAME/step1`, that one is NAME.toml beside `path`. It
        takes those changes alone that every rung shares: source-only starts there, too, and knows no method.
        Raises ConfigError for mistakes, and for a target without validation: there would be nothing to compare.
        """
        data = _shortened(path, scale, changes or {})
        config = _build(data, path)
        start = Path(config.step1.restore_from)
        beside = path.with_name(f"{start.parent.name}.toml")
        warmed = start.name == "step1" and beside.is_file()
        return cls(
            path=path,
            data=data,
            warm_up=_shortened(beside, scale, _of_every_rung(changes or {})) if warmed else None,
            stages=stages,
        )

    @property
    def budget(self) -> int:
        """Updates of every rung."""
        return sum(stage.last_step for stage in self.both)

    @property
    def both(self) -> tuple[Stage, Stage]:
        """The settings of the two stages."""
        return self.config.step1, self.config.step2

    @property
    def config(self) -> Config:
        """The checked configuration."""
        return _build(self.data, self.path)


def plan(recipe: Recipe, rung: Rung, seed: int, out: Path) -> Job:
    """The last run of a rung, which knows those before it."""
    data = _laid(recipe, rung)
    override(data, "run.seed", seed)
    first = _warm_up(recipe, seed, out)
    if (rung.stages or recipe.stages) == 1:
        _whole_budget(data, recipe)
        return _training(data, "step1", recipe.path, out, start=first)
    step1 = _training(data, "step1", recipe.path, out, start=first)
    labels = _pseudo_labels(data, recipe.path, out, step1)
    return _training(data, "step2", recipe.path, out, start=step1, labels=labels)


def _laid(recipe: Recipe, rung: Rung) -> dict[str, Any]:
    """The recipe with everything that the rung changes."""
    data = copy.deepcopy(dict(recipe.data))
    sections = [data.setdefault(name, {}) for name in STAGES]
    if rung.fresh:
        for section in sections:
            for key in METHOD:
                section.pop(key, None)
    if rung.losses:
        data = merge(data, read_config(LOSSES / f"{rung.losses}.toml"))
    both = dict(rung.stage)
    if recipe.config.step1.statistics == "kept":  # then nobody's images move them, on any rung
        both.pop("statistics", None)
    data = merge(merge(data, dict.fromkeys(STAGES, both)), {"step2": rung.step2})
    if not rung.translated:
        data["translation"] = {"method": "none"}
    if rung.target_labels:
        data["source"] = dict(data["target"])
    return data


def _whole_budget(data: dict[str, Any], recipe: Recipe) -> None:
    """Stage 1 for the updates of both stages, its rates falling over all of them."""
    step1, step2 = recipe.both
    data["step1"] |= {"num_steps": step1.num_steps + step2.num_steps, "num_steps_stop": recipe.budget}
    data["step1"]["save_pred_every"] = math.ceil(recipe.budget / SNAPSHOTS)


def _warm_up(recipe: Recipe, seed: int, out: Path) -> Job | None:
    if recipe.warm_up is None:
        return None
    data = copy.deepcopy(dict(recipe.warm_up))
    override(data, "run.seed", seed)
    return _training(data, "step1", recipe.path, out)


def _training(
    data: Mapping[str, Any], section: str, path: Path, out: Path, *, start: Job | None = None, labels: Job | None = None
) -> Job:
    settings = _settings(data, path)
    stage = settings[section]
    if start is not None:
        stage["restore_from"] = str(start.folder)
    if labels is not None:
        stage["pseudo_labels"] = str(labels.folder)
    after = tuple(job for job in (start, labels) if job is not None)
    folder = _folder(section, settings, after, out)
    stage["snapshot_dir"] = str(folder)
    return Job(section=section, seed=settings["run"]["seed"], folder=folder, settings=settings, after=after)


def _pseudo_labels(data: Mapping[str, Any], path: Path, out: Path, step1: Job) -> Job | None:
    """The run that makes stage 2's pseudo labels, None where it reads none."""
    settings = _settings(data, path)
    if not settings["step2"]["weights"]["pseudo"] and settings["step2"]["label_map"] != "merged":
        return None
    folder = _folder("pseudo_label", settings, (step1,), out)
    settings["pseudo_label"] |= {"restore_from": str(step1.folder), "save": str(folder)}
    return Job(section="pseudo_label", seed=settings["run"]["seed"], folder=folder, settings=settings, after=(step1,))


def _folder(section: str, settings: Mapping[str, Any], after: Sequence[Job], out: Path) -> Path:
    """Named after everything that matters to the result; a run that another starts from stands for its settings."""
    places = ("snapshot_dir", "prefix", "pseudo_labels", "save", *(("restore_from",) if after else ()))
    own = {key: value for key, value in _named_after(settings[section]).items() if key not in places}
    shared = {name: settings[name] for name in ("source", "target", "classes", "translation")}
    shared["model"] = _named_after(settings["model"])
    shared["run"] = {key: settings["run"][key] for key in MATTERS}
    made_from = [shared, own, [job.key for job in after]]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return out / f"seed{settings['run']['seed']}" / f"{section}-{digest[:10]}"


def _named_after(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A section as its run's name knows it: how lessons are given does not matter where there are none."""
    known = dict(settings)
    if not any(settings.get("weights", {}).get(loss) for loss in LESSON_LOSSES):
        known |= {key: getattr(Stage, key) for key in OF_LESSONS if key in settings}
    return {key: value for key, value in known.items() if key not in LATER or value != LATER[key]}


def _settings(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Everything resolved: what is written the same way is run the same way."""
    config = hand_over(_build(data, path), path.stem)
    return config.to_dict()


def _build(data: Mapping[str, Any], path: Path) -> Config:
    return build_config(data, where=str(path))


def _shortened(path: Path, scale: float, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with `scale` times the updates, SNAPSHOTS snapshots per stage, and no reports of single runs."""
    data = read_config(path)
    for key, value in changes.items():
        override(data, key, value)
    config = _build(data, path)
    for name in STAGES:
        stage: Stage = getattr(config, name)
        steps, stop = (max(1, round(scale * count)) for count in (stage.num_steps, stage.last_step))
        for key, value in {"num_steps": steps, "num_steps_stop": stop, "keep": 0}.items():
            override(data, f"{name}.{key}", value)
        override(data, f"{name}.save_pred_every", math.ceil(stop / SNAPSHOTS))
    for key in ("report", "diagnostics", "tensorboard"):
        override(data, f"run.{key}", False)
    return data


def _of_every_rung(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Without translation, losses, where a stage starts, and statistics, but that all keep them."""
    return {path: value for path, value in changes.items() if not _of_method(path, value)}


def _of_method(path: str, value: Any) -> bool:
    section, _, key = path.partition(".")
    if section not in STAGES:
        return section == "translation"
    key = key.partition(".")[0]
    return key in (*METHOD, "restore_from") or (key == "statistics" and value != "kept")


def unique(jobs: Sequence[Job]) -> list[Job]:
    """All runs that lead to these, each once, every one after those that it reads."""
    return list({job.folder: job for last in jobs for job in last.chain}.values())
