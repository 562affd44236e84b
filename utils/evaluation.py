"""One pass over predictions and truths, and everything that is reported of them.

    evaluation = Evaluation(names, subsets)
    for each image: evaluation.update(prediction, truth)
    report = evaluation.report()

Images may be counted apart, in threads or processes: parts = evaluation.part(), ...; part.update(...);
evaluation.merge(part), in the order of the images, leaves no trace of the division.

Counts are kept for the whole (confusion matrix, boundaries, calibration), and of each image no more than a few numbers
per class, for the bootstrap: memory does not grow with pixels. utils/tables.py spells a `ScoreReport` out;
docs/evaluation.md says what each number means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from utils.json_files import plain
from utils.metrics import (
    IGNORE,
    ConfusionMatrix,
    Counts,
    Scores,
    Subsets,
    iou_of_counts,
    joint_counts,
    mean,
    mean_iou,
    percent,
)
from utils.strips import classes_and_confidences, strips

BOUNDARY_RATIO = 0.02  # the default of Cheng et al.
BINS = 15  # as Guo et al.
_BLOCK = 2**22  # entries of the largest array of the bootstrap

Labels = npt.NDArray[np.uint8]


# ---- what a report holds ----


class Score(NamedTuple):
    """A number in percent and its bootstrap interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Protocol:
    """The mean IoU over `ids`, a subset of the classes, twice (spec 4; BDL and DAFormer against ProDA).

    counted: pixels of the other classes that are predicted as one of the subset are its false positives.
    ignored: pixels of the other classes are left out before anything is counted.
    Both agree where the subset is all classes.
    """

    name: str
    ids: tuple[int, ...]
    counted: Score
    ignored: Score


@dataclass(frozen=True)
class Boundary:
    """Boundary IoU (C,) in percent, of boundaries as wide as `ratio` of the image's diagonal."""

    ratio: float
    iou: Scores


@dataclass(frozen=True)
class Bin:
    """A bin of the reliability diagram, (low, high]: pixels, and their mean confidence and accuracy in percent."""

    low: float
    high: float
    pixels: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error in percent, and the bins that it is the weighted mean of."""

    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Bootstrap:
    """How the intervals were drawn: so many samples of the images from a seed, percentiles `level` apart."""

    samples: int = 1000
    seed: int = 0
    level: int = 95


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The scores of a set of predictions, in percent; NaN for a class that they are not defined for."""

    names: tuple[str, ...]
    images: int
    confusion: ConfusionMatrix
    miou: Score
    iou: tuple[Score, ...]
    protocols: tuple[Protocol, ...]
    boundary: Boundary
    calibration: Calibration | None
    bootstrap: Bootstrap

    @property
    def mean_accuracy(self) -> float:
        """The mean of the recalls of the classes."""
        return mean_iou(self.confusion.recall())

    def named(self, values: Sequence[Any] | Scores) -> dict[str, Any]:
        """(C,) values by class name."""
        return dict(zip(self.names, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: unrounded, None for NaN."""
        confusion, boundary = self.confusion, self.boundary
        return plain(
            {
                **confusion.to_dict(self.names, {protocol.name: protocol.ids for protocol in self.protocols}),
                "images": self.images,
                "protocols": {
                    protocol.name: {
                        "classes": [self.names[index] for index in protocol.ids],
                        "outside_counted": protocol.counted.value,
                        "outside_ignored": protocol.ignored.value,
                    }
                    for protocol in self.protocols
                },
                "precision": self.named(confusion.precision()),
                "recall": self.named(confusion.recall()),
                "pixel_accuracy": confusion.pixel_accuracy(),
                "mean_accuracy": self.mean_accuracy,
                "confusion": confusion.counts,
                "boundary_iou": {
                    "ratio": boundary.ratio,
                    "iou": self.named(boundary.iou),
                    "mean": mean_iou(boundary.iou),
                },
                "calibration": self._calibration(),
                "bootstrap": self._bootstrap(),
            }
        )

    def _calibration(self) -> dict[str, Any] | None:
        if self.calibration is None:
            return None
        return {"ece": self.calibration.ece, "bins": [vars(entry) for entry in self.calibration.bins]}

    def _bootstrap(self) -> dict[str, Any]:
        return {
            **vars(self.bootstrap),
            "miou": self.miou[1:],
            "iou": self.named([score[1:] for score in self.iou]),
            "protocols": {
                protocol.name: {"outside_counted": protocol.counted[1:], "outside_ignored": protocol.ignored[1:]}
                for protocol in self.protocols
            },
        }


# ---- the pass ----


class Evaluation:
    """Scores of images, given one after the other.

    names: of the C classes. subsets: name of a protocol -> the train ids of its mean. boundary_ratio: width of the
    boundaries as a share of the image's diagonal.
    """

    def __init__(
        self, names: Sequence[str], subsets: Subsets | None = None, *, boundary_ratio: float = BOUNDARY_RATIO
    ) -> None:
        self.names = tuple(names)
        self.subsets = {name: tuple(ids) for name, ids in (subsets or {}).items()}
        self.boundary_ratio = boundary_ratio
        self.confusion = ConfusionMatrix(len(self.names))
        self._boundary = np.zeros((3, len(self.names)), dtype=np.int64)
        self._with_confidence: bool | None = None
        self._tallies: list[Counts] = []  # one per image
        self._bins: list[Scores] = []  # one per image with a confidence; summed at the end, in the images' order

    def part(self) -> Evaluation:
        """An evaluation of no images yet with the same settings, for `merge`."""
        return Evaluation(self.names, self.subsets, boundary_ratio=self.boundary_ratio)

    def merge(self, part: Evaluation) -> None:
        """Take the images of another evaluation, which follow those that are here.

        ValueError when its settings differ, or when only one of the two has confidences.
        """
        if (part.names, part.subsets, part.boundary_ratio) != (self.names, self.subsets, self.boundary_ratio):
            raise ValueError("cannot merge evaluations of other classes, protocols or boundaries")
        if not part._tallies:
            return
        self._require_confidences(part._with_confidence)
        self.confusion += part.confusion
        self._boundary += part._boundary
        self._tallies += part._tallies
        self._bins += part._bins

    def update(
        self, prediction: npt.ArrayLike, truth: npt.ArrayLike, confidence: npt.NDArray[np.float32] | None = None
    ) -> None:
        """Score one image: train ids (H, W), and the confidence (H, W) in 0..1 of what is predicted, if known.

        ValueError for shapes that differ, ids that are neither class nor 255, or a confidence for some images only.
        """
        self._require_confidences(confidence is not None)
        image = ConfusionMatrix(len(self.names))
        image.update(prediction, truth)
        true = np.asarray(truth).astype(np.uint8)
        # Where the truth is ignored the prediction counts nowhere, and may be no id at all.
        predicted = np.where(true == IGNORE, IGNORE, np.asarray(prediction)).astype(np.uint8)
        if confidence is not None:
            self._bins.append(calibration_counts(predicted, true, confidence))
        self._boundary += boundary_counts(predicted, true, self.boundary_ratio)[:, : len(self.names)]
        self._tallies.append(self._tally(image))
        self.confusion += image

    def report(self, bootstrap: Bootstrap | None = None) -> ScoreReport:
        """Everything about the images so far."""
        bootstrap = bootstrap or Bootstrap()
        values = self._means(self._tally(self.confusion))
        draws = self._draws(bootstrap)
        scores = [Score(value, *interval(draw, bootstrap.level)) for value, draw in zip(values, draws.T, strict=True)]
        classes, protocols = len(self.names), len(self.subsets)
        counted, ignored = scores[classes + 1 : classes + 1 + protocols], scores[classes + 1 + protocols :]
        return ScoreReport(
            names=self.names,
            images=len(self._tallies),
            confusion=self.confusion,
            miou=scores[classes],
            iou=tuple(scores[:classes]),
            protocols=tuple(map(Protocol, self.subsets, self.subsets.values(), counted, ignored)),
            boundary=Boundary(self.boundary_ratio, iou_of_counts(*self._boundary)),
            calibration=calibration(np.sum(self._bins, axis=0)) if self._bins else None,
            bootstrap=bootstrap,
        )

    def _require_confidences(self, given: bool | None) -> None:
        if self._with_confidence not in (None, given):
            raise ValueError("give the confidence of every image, or of none")
        self._with_confidence = given

    def _tally(self, matrix: ConfusionMatrix) -> Counts:
        """(3 + P, C): hits, truth, predicted, and predicted where the truth is in each of the P subsets."""
        predicted = [matrix.predicted(subset) for subset in (None, *self.subsets.values())]
        return np.stack([matrix.hits, matrix.truth, *predicted])

    def _means(self, tally: npt.NDArray[Any]) -> Scores:
        """(..., 3 + P, C) -> (..., C + 1 + 2 P): IoUs, their mean, the subsets' counted and then ignored means."""
        hits, truth, predicted, *inside = np.moveaxis(tally, -2, 0)
        iou = iou_of_counts(hits, truth, predicted)
        subsets = [list(ids) for ids in self.subsets.values()]
        counted = [mean(iou[..., ids]) for ids in subsets]
        ignored = [
            mean(iou_of_counts(hits, truth, column)[..., ids]) for ids, column in zip(subsets, inside, strict=True)
        ]
        return np.concatenate([iou, np.stack([mean(iou), *counted, *ignored], axis=-1)], axis=-1)

    def _draws(self, bootstrap: Bootstrap) -> Scores:
        """(samples, C + 1 + 2 P): `_means` of as many images, drawn with replacement, once per sample."""
        if not self._tallies:
            return np.full((bootstrap.samples, len(self.names) + 1 + 2 * len(self.subsets)), np.nan)
        tallies = np.stack(self._tallies)
        images = len(tallies)
        flat = tallies.reshape(images, -1).astype(np.float64)  # counts below 2^53 stay exact, and products are fast
        rng = np.random.default_rng(bootstrap.seed)
        step = max(1, _BLOCK // images)
        blocks = []
        for start in range(0, bootstrap.samples, step):
            size = min(step, bootstrap.samples - start)
            times = rng.multinomial(images, np.full(images, 1 / images), size=size)  # how often each image is drawn
            blocks.append(self._means((times @ flat).reshape(size, *tallies.shape[1:])))
        return np.concatenate(blocks)


def interval(draws: Scores, level: int) -> tuple[float, float]:
    """The percentile interval of draws (B,) without the NaN ones; NaN when nothing is left."""
    present = draws[~np.isnan(draws)]
    if not present.size:
        return float("nan"), float("nan")
    low, high = np.percentile(present, [(100 - level) / 2, (100 + level) / 2])
    return float(low), float(high)


# ---- boundaries ----


def boundary_counts(predicted: Labels, true: Labels, ratio: float) -> Counts:
    """(3, 256): boundary pixels that both have, of the truth, of the prediction, per id (Cheng et al., CVPR 2021).

    `predicted` is 255 wherever `true` is.
    """
    height, width = true.shape
    distance = max(1, round(ratio * float(np.hypot(height, width))))
    joint = joint_counts(boundary_map(true, distance), boundary_map(predicted, distance))
    return np.stack([np.diagonal(joint), joint.sum(axis=1), joint.sum(axis=0)])


def boundary_map(labels: Labels, distance: int) -> Labels:
    """The map (H, W) with 255 in the interior of every class.

    A pixel is interior when the square of side 2 * distance + 1 around it lies in the image and holds its own label
    only: the mask of its class, eroded, keeps it. A highest and a lowest value serve all classes at once; what lies
    beyond the image counts as 255.
    """
    side = 2 * min(distance, max(labels.shape)) + 1
    kernel = np.ones((side, side), dtype=np.uint8)
    highest = cv2.dilate(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(IGNORE,))
    lowest = cv2.erode(labels, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=(IGNORE,))
    return np.where(highest == lowest, IGNORE, labels).astype(np.uint8)


# ---- calibration ----


def labels_and_confidence(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Classes at full size as `class_map` gives them, and the softmax of the *upsampled* logits at that class.

    (C, h, w) -> (H, W) uint8 and (H, W) float32.
    """
    return classes_and_confidences(strip for _, strip in strips(logits, size))


def calibration_counts(predicted: Labels, true: Labels, confidence: npt.NDArray[np.float32]) -> Scores:
    """(3, BINS) over the labelled pixels: how many, their confidences summed, how many are right.

    Bin m of 0..BINS-1 holds the confidences in (m / BINS, (m + 1) / BINS].
    """
    labelled = true != IGNORE
    values = confidence[labelled].astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a confidence lies outside 0..1")
    bins = np.clip(np.ceil(values * BINS).astype(np.intp) - 1, 0, None)
    right = predicted[labelled] == true[labelled]
    return np.stack([np.bincount(bins, weights, minlength=BINS) for weights in (None, values, right)])


def calibration(bins: Scores) -> Calibration:
    """From the sums of `calibration_counts`: ECE = sum over bins of pixels / all * |accuracy - confidence|, in percent
    (Guo et al., ICML 2017); NaN without a labelled pixel."""
    pixels, confidence, right = bins
    edges = np.arange(BINS + 1) / BINS
    means, accuracy = percent(confidence, pixels), percent(right, pixels)
    columns = (edges[:-1].tolist(), edges[1:].tolist(), pixels.astype(int).tolist(), means.tolist(), accuracy.tolist())
    ece = percent(np.abs(right - confidence).sum(), pixels.sum())
    return Calibration(float(ece), tuple(map(Bin, *columns)))
