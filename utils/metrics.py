"""Scores of a segmentation, in percent: confusion matrix, IoU per class, their mean, printed tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORE = 255

Subsets = Mapping[str, Sequence[int]]


class ConfusionMatrix:
    """Pixel counts of (true class, predicted class), accumulated over images.

    `counts` is (C, C+1) int64: row = true class, column = predicted class, and the last column counts the
    pixels that have a true class but the prediction 255 ("no answer"). These are misses (false negatives)
    of their true class and false positives of none. Pixels whose truth is 255 count nowhere, whatever the
    prediction says there.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes is {num_classes}, must be in 1..{IGNORE}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, prediction: npt.ArrayLike, truth: npt.ArrayLike) -> None:
        """Count one image, or a batch of any shape: train ids, integer arrays or CPU tensors of equal shape.

        ValueError when the shapes differ, or when an id that counts is neither a class nor 255.
        """
        predicted, true = np.asarray(prediction), np.asarray(truth)
        if predicted.shape != true.shape:
            raise ValueError(f"the prediction's shape {predicted.shape} differs from the truth's {true.shape}")
        valid = true != IGNORE
        predicted, true = predicted[valid], true[valid]
        self._check_ids("truth", true, allowed=())
        self._check_ids("prediction", predicted, allowed=(IGNORE,))
        # min() sends 255 to the extra column C and leaves the classes 0..C-1 as they are.
        columns = np.minimum(predicted.astype(np.int64), self.num_classes)
        cells = true.astype(np.int64) * (self.num_classes + 1) + columns
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def _check_ids(self, what: str, ids: np.ndarray, *, allowed: tuple[int, ...]) -> None:
        if ids.dtype.kind not in "iu":
            raise ValueError(f"the {what} must hold integer ids, not {ids.dtype}")
        outside = (ids < 0) | (ids >= self.num_classes)
        strangers = sorted(set(np.unique(ids[outside]).tolist()) - set(allowed))
        if strangers:
            raise ValueError(
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

    def iou(self) -> npt.NDArray[np.float64]:
        """(C,) intersection over union in percent; NaN for a class absent from both truth and prediction."""
        hits = np.diagonal(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, : self.num_classes].sum(axis=0) - hits
        return np.divide(100.0 * hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def mean_iou(self, subset: Sequence[int] | None = None) -> float:
        """The mean of `iou()`, see `mean_iou`."""
        return mean_iou(self.iou(), subset)

    def to_dict(self, names: Sequence[str], subsets: Subsets | None = None) -> dict[str, Any]:
        """For JSON: percent, unrounded, None for NaN. `subsets` maps a protocol's name to its train ids."""
        iou = self.iou()
        _check_names(names, iou)
        result: dict[str, Any] = {
            "miou": _none_if_nan(mean_iou(iou)),
            "iou": {name: _none_if_nan(value) for name, value in zip(names, iou, strict=True)},
        }
        if subsets:
            result["miou_subsets"] = {key: _none_if_nan(mean_iou(iou, ids)) for key, ids in subsets.items()}
        result["pixels"] = int(self.counts.sum())
        return result


def mean_iou(iou: npt.NDArray[np.float64], subset: Sequence[int] | None = None) -> float:
    """The mean of (C,) IoUs without the NaN ones; NaN when nothing is left.

    With `subset`, the mean over those train ids. The IoUs stay what they are among all C classes: a pixel
    taken for a class outside the subset is a miss all the same (the 16- and 13-class protocols score a
    19-way model so).
    """
    chosen = iou if subset is None else iou[list(subset)]
    present = chosen[~np.isnan(chosen)]
    return float(present.mean()) if present.size else float("nan")


def format_table(names: Sequence[str], iou: npt.NDArray[np.float64], subsets: Subsets | None = None) -> str:
    """A table with one line per class and one per mean, percent with two digits; `-` for an absent class."""
    _check_names(names, iou)
    rows = [*zip(names, iou.tolist(), strict=True)]
    means = [("mIoU", mean_iou(iou))]
    means += [(f"mIoU ({key} classes)", mean_iou(iou, ids)) for key, ids in (subsets or {}).items()]
    width = max(len(name) for name, _ in [*rows, *means])
    lines = [f"{'class':<{width}}     IoU"]
    lines += [_table_line(name, value, width) for name, value in rows]
    lines += ["-" * (width + 8)]
    lines += [_table_line(name, value, width) for name, value in means]
    return "\n".join(lines)


def iou_array(names: Sequence[str], iou: Mapping[str, float | None]) -> npt.NDArray[np.float64]:
    """The `iou` of `ConfusionMatrix.to_dict`, class name -> percent or None, back as (C,) with NaN for None."""
    return np.array([math.nan if (value := iou[name]) is None else value for name in names], dtype=np.float64)


def format_columns(names: Sequence[str], columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """A table with one line per class and one column per result: title -> class name -> IoU in percent or None."""
    arrays = {title: iou_array(names, iou) for title, iou in columns.items()}
    rows = [(name, [array[index] for array in arrays.values()]) for index, name in enumerate(names)]
    means = ("mIoU", [mean_iou(array) for array in arrays.values()])
    width = max(len(name) for name in (*names, "mIoU"))
    cells = [max(len(title), 6) for title in arrays]

    def line(name: str, values: Sequence[str]) -> str:
        return "  ".join([f"{name:<{width}}", *(f"{v:>{w}}" for v, w in zip(values, cells, strict=True))])

    def numbers(values: Sequence[float]) -> list[str]:
        return ["-" if np.isnan(value) else f"{value:.2f}" for value in values]

    head = line("class", list(arrays))
    body = [line(name, numbers(values)) for name, values in rows]
    return "\n".join([head, *body, "-" * len(head), line(means[0], numbers(means[1]))])


def format_historical(names: Sequence[str], iou: npt.NDArray[np.float64]) -> str:
    """The lines that AdaptSegNet's family of IoU scripts prints (and people's own scripts read)."""
    _check_names(names, iou)
    lines = [f"===>{name}:\t{round(value, 2)}" for name, value in zip(names, iou.tolist(), strict=True)]
    return "\n".join([*lines, f"===> mIoU: {round(mean_iou(iou), 2)}"])


def _table_line(name: str, value: float, width: int) -> str:
    number = "-" if np.isnan(value) else f"{value:.2f}"
    return f"{name:<{width}}  {number:>6}"


def _check_names(names: Sequence[str], iou: npt.NDArray[np.float64]) -> None:
    if len(names) != len(iou):
        raise ValueError(f"{len(names)} class names for {len(iou)} classes")


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
