"""Counts of a segmentation and the scores that follow from them, in percent: confusion matrix, IoU, means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

IGNORE = 255
MAX_CLASSES = 254  # 255 is the ignore label, 254 stands for whatever is no 8-bit id
_SHORT_RUN = 4  # pixels to a run, on average, below which pixels are counted one by one

Scores = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Subsets = Mapping[str, Sequence[int]]


class ConfusionMatrix:
    """Pixel counts of (true class, predicted class), accumulated over images.

    `counts` is (C, C+1) int64: row = true class, column = predicted class, and the last column counts the
    pixels that have a true class but the prediction 255 ("no answer"). These are misses (false negatives)
    of their true class and false positives of none. Pixels whose truth is 255 count nowhere, whatever the
    prediction says there.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes is {num_classes}, must be in 1..{MAX_CLASSES}")
        self.num_classes = num_classes
        self.counts: Counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, prediction: npt.ArrayLike, truth: npt.ArrayLike) -> None:
        """Count one image, or a batch of any shape: train ids, integer arrays or CPU tensors of equal shape.

        ValueError when the shapes differ, or when an id that counts is neither a class nor 255.
        """
        predicted, true = np.asarray(prediction), np.asarray(truth)
        if predicted.shape != true.shape:
            raise ValueError(f"the prediction's shape {predicted.shape} differs from the truth's {true.shape}")
        joint = joint_counts(_to_bytes("truth", true), _to_bytes("prediction", predicted))
        classes = slice(self.num_classes)
        strangers = slice(self.num_classes, IGNORE)
        if joint[strangers].any():
            raise self._strangers("truth", true[true != IGNORE])
        if joint[classes, strangers].any():
            raise self._strangers("prediction", predicted[(true != IGNORE) & (predicted != IGNORE)])
        self.counts[:, :-1] += joint[classes, classes]
        self.counts[:, -1] += joint[classes, IGNORE]

    def _strangers(self, what: str, ids: np.ndarray) -> ValueError:
        strangers = np.unique(ids[(ids < 0) | (ids >= self.num_classes)]).tolist()
        return ValueError(
            f"the {what} holds ids {strangers}, which are neither one of the {self.num_classes} classes "
            f"0..{self.num_classes - 1} nor {IGNORE} (label ids in place of train ids?)"
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix of both sets of images together."""
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot add matrices of {self.num_classes} and {other.num_classes} classes")
        total = ConfusionMatrix(self.num_classes)
        total.counts = self.counts + other.counts
        return total

    @property
    def hits(self) -> Counts:
        """(C,) pixels of each class that are predicted as such."""
        return np.diagonal(self.counts)

    @property
    def truth(self) -> Counts:
        """(C,) pixels of each true class."""
        return self.counts.sum(axis=1)

    def predicted(self, subset: Sequence[int] | None = None) -> Counts:
        """(C,) pixels predicted as each class; with `subset`, only those whose true class is among these ids."""
        rows = self.counts if subset is None else self.counts[list(subset)]
        return rows[:, :-1].sum(axis=0)

    def iou(self) -> Scores:
        """(C,) intersection over union in percent; NaN for a class absent from both truth and prediction."""
        return iou_of_counts(self.hits, self.truth, self.predicted())

    def precision(self) -> Scores:
        """(C,) percent of the pixels predicted as a class that are of it; NaN for a class never predicted."""
        return percent(self.hits, self.predicted())

    def recall(self) -> Scores:
        """(C,) percent of a class's pixels that are predicted as it; NaN for a class absent from the truth."""
        return percent(self.hits, self.truth)

    def pixel_accuracy(self) -> float:
        """Percent of the labelled pixels that are predicted right; NaN without any."""
        return float(percent(self.hits.sum(), self.counts.sum()))

    def mean_iou(self, subset: Sequence[int] | None = None) -> float:
        """The mean of `iou()`, see `mean_iou`."""
        return mean_iou(self.iou(), subset)

    def to_dict(self, names: Sequence[str], subsets: Subsets | None = None) -> dict[str, Any]:
        """For JSON: percent, unrounded, None for NaN. `subsets` maps a protocol's name to its train ids."""
        iou = self.iou()
        check_names(names, iou)
        result: dict[str, Any] = {
            "miou": _none_if_nan(mean_iou(iou)),
            "iou": {name: _none_if_nan(value) for name, value in zip(names, iou, strict=True)},
        }
        if subsets:
            result["miou_subsets"] = {key: _none_if_nan(mean_iou(iou, ids)) for key, ids in subsets.items()}
        result["pixels"] = int(self.counts.sum())
        return result


def row_percent(counts: Counts) -> Scores:
    """A confusion matrix (C, C or C+1) in percent of each true class; NaN for a class without a pixel."""
    return percent(counts, counts.sum(axis=1, keepdims=True))


def joint_counts(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> Counts:
    """(256, 256) int64: how often each pair of values occurs at the same place of two uint8 arrays of one shape.

    Label maps are counted by the run, ten times faster than by the pixel: a comparison, and one count per run.
    """
    first, second = np.ravel(left)[None], np.ravel(right)[None]
    if not first.size:
        return np.zeros((256, 256), dtype=np.int64)
    pairs = cv2.merge([second, first]).view("<u2").ravel()  # the first is the high byte
    changes = pairs[1:] != pairs[:-1]
    if np.count_nonzero(changes) * _SHORT_RUN < pairs.size:
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        counts = np.bincount(pairs[starts], np.diff(starts, append=pairs.size), minlength=2**16)  # exact below 2^53
    else:
        counts = np.bincount(pairs, minlength=2**16)
    return counts.astype(np.int64).reshape(256, 256)


def percent(part: npt.ArrayLike, whole: npt.ArrayLike) -> Scores:
    """100 * (part / whole) of counts, in this order, which other scorers of Cityscapes share; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return 100.0 * np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def iou_of_counts(hits: npt.ArrayLike, truth: npt.ArrayLike, predicted: npt.ArrayLike) -> Scores:
    """Intersection over union in percent from pixel counts of one shape; NaN where the union is empty."""
    hits = np.asarray(hits)
    return percent(hits, np.asarray(truth) + np.asarray(predicted) - hits)


def mean(scores: Scores) -> Scores:
    """The mean over the last axis without the NaN entries; NaN where nothing is left."""
    present = ~np.isnan(scores)
    number = present.sum(axis=-1)
    total = np.where(present, scores, 0.0).sum(axis=-1)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def mean_iou(iou: Scores, subset: Sequence[int] | None = None) -> float:
    """The mean of (C,) IoUs without the NaN ones; NaN when nothing is left.

    With `subset`, the mean over those train ids. The IoUs stay what they are among all C classes: a pixel
    taken for a class outside the subset is a miss all the same (the 16- and 13-class protocols score a
    19-way model so).
    """
    return float(mean(iou if subset is None else iou[list(subset)]))


def iou_array(names: Sequence[str], iou: Mapping[str, float | None]) -> Scores:
    """The `iou` of `ConfusionMatrix.to_dict`, class name -> percent or None, back as (C,) with NaN for None."""
    return np.array([math.nan if (value := iou[name]) is None else value for name in names], dtype=np.float64)


def check_names(names: Sequence[str], scores: Scores) -> None:
    """Raise ValueError unless there is one name per class."""
    if len(names) != len(scores):
        raise ValueError(f"{len(names)} class names for {len(scores)} classes")


def _to_bytes(what: str, ids: np.ndarray) -> npt.NDArray[np.uint8]:
    """The ids as uint8, those that no byte holds as 254, which is no class."""
    if ids.dtype.kind not in "iu":
        raise ValueError(f"the {what} must hold integer ids, not {ids.dtype}")
    if ids.dtype == np.uint8:
        return ids
    return np.where((ids < 0) | (ids > IGNORE), MAX_CLASSES, ids).astype(np.uint8)


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
