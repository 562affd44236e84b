"""What the runs of a ladder say together: means and spreads over seeds, shares of the gap, paired differences.

Scores are percent. A checkpoint is chosen in one of three ways, never mixed: `last` is the last one; `best` is chosen
on target labels, which an unsupervised method does not have; `label_free` by utils.selection's criterion.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rungs import CONFIGURED, ORACLE, SOURCE_ONLY
from utils import datasets
from utils.config import Config, ConfigError, nearest
from utils.selection import CRITERIA, CRITERION, spearman

CHOICES = {
    "last": "last",
    "best": "best_selected_on_target_labels",
    "label_free": "selected_without_labels",
}
"""Names of the three ways, here and in the JSON."""


def metric_named(name: str, config: Config, *, where: Path) -> str:
    """`miou` or a class. Raises ConfigError for another name, and for a target without validation images."""
    classes = datasets.class_table(config)
    if not datasets.validates(config, classes):
        raise ConfigError(f"{where}: [target] names no val_list, or [run] validate = false: nothing to compare")
    if name != "miou" and name not in classes.names:
        raise ConfigError(f"--metric: there is no class {name!r}{nearest(name, classes.names)}")
    return name


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A rung under one seed, as the JSON has it.

    iou: update -> class name -> IoU of the validated checkpoints, None where a class is absent; miou: update -> mean.
    criteria: name -> update -> value; empty until the run was looked at. seconds, commands: of every run that leads
    here.
    """

    rung: str
    seed: int
    miou: Mapping[int, float]
    iou: Mapping[int, Mapping[str, float | None]]
    criteria: Mapping[str, Mapping[int, float]]
    chosen: Mapping[str, int]
    seconds: float
    device: str
    folder: str
    commands: Sequence[str]

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> Outcome:
        """The outcome that the JSON says. KeyError, TypeError, ValueError or AttributeError for what is none."""
        values = {name: entry[name] for name in cls.__dataclass_fields__}
        values["iou"] = {int(step): dict(scores) for step, scores in entry["iou"].items()}
        values["miou"] = _by_update(entry["miou"])
        values["criteria"] = {name: _by_update(entry["criteria"][name]) for name in CRITERIA if entry["criteria"]}
        values["chosen"] = {name: int(step) for name, step in entry["chosen"].items()}
        values["seconds"] = float(entry["seconds"])
        return cls(**values)

    def measured(self, metric: str) -> dict[int, float]:
        """Update -> mIoU, or IoU of the class of that name; 0 where the class is neither there nor predicted."""
        if metric == "miou":
            return dict(self.miou)
        return {step: scores[metric] or 0.0 for step, scores in self.iou.items()}

    def steps(self, metric: str) -> dict[str, int]:
        """Way of choosing -> update of the checkpoint that it chooses."""
        values = self.measured(metric)
        found = {"last": max(values), "best": max(values, key=lambda step: (values[step], -step))}
        if CRITERION in self.chosen:
            found["label_free"] = self.chosen[CRITERION]
        return found

    def score(self, choice: str, metric: str) -> float | None:
        """Score of a chosen checkpoint; None without that choice."""
        step = self.steps(metric).get(choice)
        return None if step is None else self.measured(metric)[step]


def _by_update(values: Mapping[str, Any]) -> dict[int, float]:
    """JSON has no whole numbers for keys."""
    if not values:
        raise ValueError("no update was validated")
    return {int(step): float(value) for step, value in values.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of fewer than two) and number."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def gap_closed(score: float, source_only: float, oracle: float) -> float | None:
    """Percent of the way from source-only to oracle; None where the oracle is not above."""
    return 100 * (score - source_only) / (oracle - source_only) if oracle > source_only else None


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Mean over the common seeds of ours - theirs, with its standard error (None of fewer than two)."""
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    summary = spread(found)
    error = None if summary["std"] is None else summary["std"] / math.sqrt(summary["n"])
    return {"mean": summary["mean"], "standard_error": error, "n": summary["n"]}


def summarize(outcomes: Iterable[Outcome], metric: str) -> dict[str, Any]:
    """Rung -> way of choosing -> spread, gap closed, difference to the recipe as configured."""
    by_rung: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_rung.setdefault(outcome.rung, []).append(outcome)

    def scores(rung: str, choice: str) -> dict[int, float]:
        values = {outcome.seed: outcome.score(choice, metric) for outcome in by_rung.get(rung, [])}
        return {seed: value for seed, value in values.items() if value is not None}

    return {
        rung: {name: _summary(rung, choice, scores) for choice, name in CHOICES.items()}
        | {"seconds": spread([outcome.seconds for outcome in found])}
        for rung, found in by_rung.items()
    }


def _summary(rung: str, choice: str, scores: Callable[[str, str], dict[int, float]]) -> dict[str, Any]:
    ours, low, high = (scores(name, choice) for name in (rung, SOURCE_ONLY, ORACLE))
    shares = {seed: gap_closed(ours[seed], low[seed], high[seed]) for seed in ours.keys() & low.keys() & high.keys()}
    known = [share for _, share in sorted(shares.items()) if share is not None]
    return {
        **spread([ours[seed] for seed in sorted(ours)]),
        "per_seed": {seed: ours[seed] for seed in sorted(ours)},
        "gap_closed": spread(known),
        "difference_to_configured": paired(ours, scores(CONFIGURED, choice)),
    }


def rank_correlation(outcomes: Sequence[Outcome], metric: str) -> dict[str, Any]:
    """Criterion -> Spearman's correlation with the true score: within each run, averaged, and over all checkpoints.

    A run that several rungs share counts once. Mean loss: what the choice costs against the run's best checkpoint.
    """
    runs = list({outcome.folder: outcome for outcome in outcomes if outcome.criteria}.values())
    return {name: _correlation(runs, name, metric) for name in CRITERIA} if runs else {}


def _correlation(runs: Sequence[Outcome], name: str, metric: str) -> dict[str, Any]:
    true = [run.measured(metric) for run in runs]
    pairs = [
        [(run.criteria[name][step], score) for step, score in of.items()] for run, of in zip(runs, true, strict=True)
    ]
    within = [spearman(*zip(*points, strict=True)) for points in pairs]
    everything = [point for points in pairs for point in points]
    return {
        "within_runs": spread([value for value in within if value is not None]),
        "over_all_checkpoints": spearman(*zip(*everything, strict=True)),
        "checkpoints": len(everything),
        "lost_to_best": spread([max(of.values()) - of[run.chosen[name]] for run, of in zip(runs, true, strict=True)]),
        "lost_by_last": spread([max(of.values()) - of[max(of)] for of in true]),
    }
