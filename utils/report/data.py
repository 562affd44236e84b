"""What a report tells, as data: utils/report/page.py makes a page of it, `to_dict` JSON, both from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from utils.diagnostics import Divergence, PairChange, Plane, RegionSet, changed_pairs, coverage, principal_plane
from utils.json_files import plain
from utils.metrics import ConfusionMatrix, Scores, Subsets, mean_iou
from utils.report.markup import Html
from utils.run_folder import RunRecord


class Missing(NamedTuple):
    """A part that cannot be shown, and why: said in its place."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names and (R, G, B) colours of the C classes; subsets: protocols that count fewer of them."""

    names: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    subsets: Subsets

    def named(self, values: Scores | Sequence[float]) -> dict[str, Any]:
        """(C,) values by class name."""
        return dict(zip(self.names, map(float, values), strict=True))


class Look(NamedTuple):
    """Region features of a few images of both domains through one network."""

    divergence: Divergence
    source: RegionSet
    target: RegionSet


class Gallery(NamedTuple):
    """Example images: a title, the columns' titles, and rows of a name and its pictures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Html]]]


class PseudoScores(NamedTuple):
    """Pseudo labels of so many images against their truth; thresholds: those of the folder's thresholds.json by class
    name, empty where it has none."""

    images: int
    confusion: ConfusionMatrix
    thresholds: dict[str, float]

    @property
    def columns(self) -> dict[str, Scores]:
        """(C,) percent each, in the order of the page's columns."""
        matrix = self.confusion
        return {"precision": matrix.precision(), "coverage": coverage(matrix.counts), "right": matrix.recall()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run, beside a baseline if there is one.

    images: how many images of each domain the looks are over; by_truth: whether the target's regions are cut by truth.
    """

    run: RunRecord
    baseline: RunRecord | None
    classes: Classes
    command: str
    images: int
    by_truth: bool
    look: Look | Missing
    baseline_look: Look | Missing
    galleries: Sequence[Gallery] | Missing
    pseudo: PseudoScores | Missing

    @property
    def iou(self) -> Scores | None:
        """(C,) of the run's last checkpoint."""
        return self.run.iou(self.classes.names)

    @property
    def baseline_iou(self) -> Scores | None:
        """(C,) of the baseline's last checkpoint."""
        return self.baseline.iou(self.classes.names) if self.baseline else None

    @property
    def pairs(self) -> tuple[list[PairChange], list[PairChange]] | None:
        """Confusions that improved and that worsened; None unless both runs have a confusion matrix."""
        before = self.baseline.confusion if self.baseline else None
        after = self.run.confusion
        return None if before is None or after is None else changed_pairs(before, after)

    def planes(self) -> list[tuple[str, Look, Plane]]:
        """Label, look, and its points of source and target in the plane, of the baseline and of the run. Networks
        whose features have equally many channels share one basis."""
        looks = [
            (record.label, look)
            for record, look in ((self.baseline, self.baseline_look), (self.run, self.look))
            if record is not None and not isinstance(look, Missing)
        ]
        both = [np.concatenate([look.source.vectors, look.target.vectors]) for _, look in looks]
        if len({vectors.shape[1] for vectors in both}) == 1:
            shared = principal_plane(both)
            planes = [Plane([points], shared.explained) for points in shared.points]
        else:
            planes = [principal_plane([vectors]) for vectors in both]
        return [
            (label, look, Plane(np.split(plane.points[0], [len(look.source.vectors)]), plane.explained))
            for (label, look), plane in zip(looks, planes, strict=True)
        ]

    def missing(self) -> dict[str, str]:
        """Why the parts that cannot be shown cannot."""
        parts = {"features": self.look, "examples": self.galleries, "pseudo_labels": self.pseudo}
        if self.baseline:
            parts["baseline_features"] = self.baseline_look
        return {name: part.reason for name, part in parts.items() if isinstance(part, Missing)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every number of the page but those of the log, unrounded."""
        return plain(
            {
                "run": self.run.folder,
                "section": self.run.section,
                "baseline": self.baseline.folder if self.baseline else None,
                "scores": self._scores(),
                "confusion": self.run.confusion,
                "confusions_changed": self._pairs(),
                "images_per_domain": self.images,
                "target_regions": "truth" if self.by_truth else "prediction",
                "variance_explained": {label: plane.explained for label, _, plane in self.planes()},
                "divergence": _divergence(self.look),
                "divergence_baseline": _divergence(self.baseline_look),
                "pseudo_labels": self._pseudo(),
                "missing": self.missing(),
            }
        )

    def _scores(self) -> dict[str, Any]:
        before, after = self.baseline_iou, self.iou
        named = self.classes.named
        return {
            "last": None if after is None else {"miou": mean_iou(after), "iou": named(after)},
            "baseline": None if before is None else {"miou": mean_iou(before), "iou": named(before)},
            "difference": None if before is None or after is None else named(after - before),
            "subsets": self._subsets(),
            "chosen_without_labels": self.run.choice or None,
            "best_selected_on_target_labels": self.run.best or None,
        }

    def _subsets(self) -> dict[str, Any]:
        """mIoU over each subset of the classes."""
        columns = {"baseline": self.baseline_iou, "last": self.iou}
        return {
            name: {column: None if iou is None else mean_iou(iou, ids) for column, iou in columns.items()}
            for name, ids in self.classes.subsets.items()
        }

    def _pairs(self) -> dict[str, Any] | None:
        if self.pairs is None:
            return None
        names = self.classes.names
        improved, worsened = (
            [
                {
                    "truth": names[pair.truth],
                    "predicted": names[pair.predicted],
                    "before": pair.before,
                    "after": pair.after,
                }
                for pair in pairs
            ]
            for pairs in self.pairs
        )
        return {"improved": improved, "worsened": worsened}

    def _pseudo(self) -> dict[str, Any] | None:
        if isinstance(self.pseudo, Missing):
            return None
        columns = self.pseudo.columns
        return {
            "images": self.pseudo.images,
            **{name: self.classes.named(values) for name, values in columns.items()},
            "mean": {name: mean_iou(values) for name, values in columns.items()},
            "thresholds": self.pseudo.thresholds,
        }


def _divergence(look: Look | Missing) -> dict[str, Any] | None:
    return None if isinstance(look, Missing) else look.divergence.to_dict()
