"""Pseudo labels: one confidence threshold per class, found in bounded memory.

The exact rule sorts the confidences of every pixel of the target set: 25 GB for Cityscapes. Here a
confidence is first rounded to one of 65536 levels by `quantize`, a monotone map Q. Order statistics and
minima commute with monotone maps, so the level of the exact threshold is read off a histogram of levels,
without any further error:

    Q(min(sorted(confidence)[i], cap)) = min(sorted(Q(confidence))[i], Q(cap))

A threshold is therefore off by one rounding, at most 0.51/65535 < 1/4096. A pixel is kept when its level
reaches the threshold's: everything the exact rule keeps is kept, and beyond it only what shares the
threshold's own level.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from utils.files import errors_naming, write_all
from utils.strips import highest, highest_at

IGNORE = 255
LEVELS = 65536

_RANGE_TOLERANCE = 1e-3  # softmax in half precision and bilinear upsampling overshoot 1 by less


def quantize(confidence: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Confidences in [0,1] to levels, round(65535 * confidence) in float32; levels (uint16) pass through.

    Monotone: rounding to float32, multiplying by a positive number and rounding to an integer all are. The
    level is within 0.51 of 65535 times the confidence (half for the rounding, the rest for float32).
    `quantize(dequantize(x))` is x. ValueError for NaN and for what cannot be a probability.
    """
    values = np.asarray(confidence)
    if values.dtype == np.uint16:
        return values
    values = values.astype(np.float32)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # NaN fails both comparisons
        raise ValueError(f"confidences lie in 0..1, found {low:.4g}..{high:.4g} (logits, not probabilities?)")
    scaled = np.clip(values, 0.0, 1.0) * np.float32(LEVELS - 1)
    return np.rint(scaled).astype(np.uint16)


def dequantize(level: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A level back to the confidence in the middle of those that round to it."""
    return (np.asarray(level) / (LEVELS - 1)).astype(np.float32)


class ConfidenceHistogram:
    """How many pixels of each predicted class have which confidence, over all images.

    `counts` is (C, 65536) int64: half a megabyte per class, however many images there are.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes is {num_classes}, must be in 1..{IGNORE}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, LEVELS), dtype=np.int64)

    def update(self, label: npt.ArrayLike, confidence: npt.ArrayLike) -> None:
        """Count one image: label (H,W) integer classes, confidence (H,W) in [0,1] or levels (uint16)."""
        labels, levels = np.asarray(label), quantize(confidence)
        if labels.shape != levels.shape:
            raise ValueError(f"the label's shape {labels.shape} differs from the confidence's {levels.shape}")
        if labels.size and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise ValueError(f"the label holds ids outside the classes 0..{self.num_classes - 1}")
        cells = labels.astype(np.int64) * LEVELS + levels
        np.add.at(self.counts.reshape(-1), cells.ravel(), 1)  # in place: bincount makes a second, 10 MB, table a call

    def thresholds(self, *, cap: float = 0.9, proportion: float = 0.5) -> npt.NDArray[np.float32]:
        """(C,) thresholds, spec 3.6; 0 for a class that never occurs.

        Of a class's n confidences in ascending order, the one at the 0-based index round(n * proportion)
        (half to even, at most n-1), or `cap` if that is lower.
        """
        for name, value in (("cap", cap), ("proportion", proportion)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, must be in 0..1")
        pixels = self.counts.sum(axis=1)
        index = np.minimum(np.rint(pixels * proportion).astype(np.int64), pixels - 1)
        # The level at rank i is the number of levels that end at or before rank i.
        level = (np.cumsum(self.counts, axis=1) <= index[:, None]).sum(axis=1)
        tau = np.minimum(dequantize(level), np.float32(cap))
        return np.where(pixels > 0, tau, np.float32(0))

    def kept(self, tau: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """(C,) pixels that `apply_thresholds` keeps with these thresholds."""
        kept = np.arange(LEVELS) >= quantize(tau)[:, None]
        return np.where(kept, self.counts, 0).sum(axis=1)


def apply_thresholds(label: npt.ArrayLike, confidence: npt.ArrayLike, tau: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The label (H,W) as uint8, with 255 where the confidence (H,W) is below its class's `tau` (C,).

    Confidence and thresholds are in [0,1] or levels. They are compared level with level, so a pixel whose
    confidence equals its threshold is kept.
    """
    labels = np.asarray(label)
    below = quantize(confidence) < np.take(quantize(tau), labels)
    return labels.astype(np.uint8) | np.where(below, np.uint8(IGNORE), np.uint8(0))


@dataclass(frozen=True)
class ThresholdReport:
    """The thresholds (C,) and what they keep: pixels `predicted` as each class (C,), and `kept` of them."""

    thresholds: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """For JSON; coverage is the kept share of the predicted pixels in percent, None without any."""
        return {
            "total": _coverage(self.predicted.sum(), self.kept.sum()),
            "classes": {
                name: {"threshold": float(tau), **_coverage(predicted, kept)}
                for name, tau, predicted, kept in self._rows(names)
            },
        }

    def format_table(self, names: Sequence[str]) -> str:
        """A table with one line per class and one for all of them; shares in percent."""
        width = max(5, *(len(name) for name in names))
        lines = [f"{'class':<{width}}  threshold       predicted            kept  kept %"]
        lines += [_report_line(name, width, f"{tau:.4f}", p, k) for name, tau, p, k in self._rows(names)]
        lines += [_report_line("all", width, "", self.predicted.sum(), self.kept.sum())]
        return "\n".join(lines)

    def _rows(self, names: Sequence[str]) -> Iterator[tuple[str, float, int, int]]:
        if len(names) != len(self.thresholds):
            raise ValueError(f"{len(names)} class names for {len(self.thresholds)} classes")
        return zip(names, self.thresholds.tolist(), self.predicted.tolist(), self.kept.tolist(), strict=True)


def _coverage(predicted: int, kept: int) -> dict[str, Any]:
    share = 100.0 * float(kept) / float(predicted) if predicted else None
    return {"predicted": int(predicted), "kept": int(kept), "coverage": share}


def _report_line(name: str, width: int, tau: str, predicted: int, kept: int) -> str:
    share = f"{100.0 * float(kept) / float(predicted):.2f}" if predicted else "-"
    return f"{name:<{width}}  {tau:>9}  {predicted:>14}  {kept:>14}  {share:>6}"


class PredictionCache:
    """Labels and confidence levels of many images on disk, so that the network runs once.

    Three bytes a pixel (4.7 GB for the 2975 images of Cityscapes at 1024x512), as they are in memory, in a file inside
    `folder` that has no name and ends with `close` or with the process. The system's own temporary folder is often
    memory, hence no default.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = Path(folder)
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".predictions-", buffering=0)  # noqa: SIM115  # close()
        self._images: list[tuple[str, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return len(self._images)

    def append(self, name: str, label: npt.NDArray[np.uint8], level: npt.NDArray[np.uint16]) -> None:
        """Keep one image's label (H,W) and levels (H,W). An OSError of a full disk names the folder."""
        self._file.seek(0, os.SEEK_END)
        with errors_naming(self._folder):
            for array in (label, level):
                write_all(self._file, np.ascontiguousarray(array).data)  # numpy's tofile does not say what is wrong
        self._images.append((name, label.shape))

    def __iter__(self) -> Iterator[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint16]]]:
        """Read (name, label, level) back, one image at a time, in the order of `append`."""
        position = 0
        for name, shape in self._images:
            pixels = math.prod(shape)
            self._file.seek(position)
            label = np.fromfile(self._file, np.uint8, pixels).reshape(shape)
            level = np.fromfile(self._file, np.uint16, pixels).reshape(shape)
            position = self._file.tell()
            yield name, label, level

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


class PseudoLabeler:
    """Collects predictions, then gives every image's pseudo label.

    A context manager, since its cache lies on the disk:

        with PseudoLabeler(num_classes, cache_folder=folder) as labeler:
            for name, logits in predictions:
                labeler.add(name, logits.softmax(dim=0), size)
            print(labeler.report().format_table(names))
            for name, label in labeler.labels():
                Image.fromarray(label).save(folder / file_of(name))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        cache_folder: str | os.PathLike[str],
        cap: float = 0.9,
        proportion: float = 0.5,
    ) -> None:
        self.histogram = ConfidenceHistogram(num_classes)
        self._cache = PredictionCache(cache_folder)
        self._cap = cap
        self._proportion = proportion

    def add(self, name: str, probabilities: torch.Tensor, size: Sequence[int] | None = None) -> None:
        """Take one image's probabilities (C,h,w), on any device and of any floating type.

        They are upsampled to `size` = (H,W) where it is given (spec 3.6). ValueError when they are no probabilities.
        """
        num_classes = self.histogram.num_classes
        if probabilities.ndim != 3 or probabilities.shape[0] != num_classes:
            shape = tuple(probabilities.shape)
            raise ValueError(f"{name}: probabilities of shape {shape}, expected ({num_classes}, H, W)")
        scores = probabilities.detach()
        confidence, label = highest(scores) if size is None else highest_at(scores, size)
        labels = label.cpu().numpy()
        try:
            levels = quantize(confidence.float().cpu().numpy())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.histogram.update(labels, levels)
        self._cache.append(name, labels, levels)

    def thresholds(self) -> npt.NDArray[np.float32]:
        """(C,) thresholds over the images added so far."""
        return self.histogram.thresholds(cap=self._cap, proportion=self._proportion)

    def report(self) -> ThresholdReport:
        """Thresholds and coverage over the images added so far."""
        tau = self.thresholds()
        predicted = self.histogram.counts.sum(axis=1)
        return ThresholdReport(thresholds=tau, predicted=predicted, kept=self.histogram.kept(tau))

    def labels(self) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """(name, pseudo label (H,W) uint8, 255 = none) of each image in turn, in the order of `add`."""
        tau = self.thresholds()
        for name, label, level in self._cache:
            yield name, apply_thresholds(label, level, tau)

    def __enter__(self) -> PseudoLabeler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cache.close()
