"""Rare-class sampling: source images with rare classes come more often (Hoyer et al., DAFormer, CVPR 2022, Sec. 3.3).

With f_c the share of class c in the labelled pixels of the whole source, a class is drawn with probability

    P(c) = exp((1 - f_c) / T) / sum over c' of exp((1 - f_c') / T)

over the classes that occur, and then one of the images that show it. T is the temperature: the larger, the more alike.

Geometry: n images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dataset.corpora import DataError, Sample
from dataset.labels import LabelDecoding
from dataset.pool import processes

SHOWN = 0.0015  # share of an image's pixels from which it shows a class; DAFormer: 3000 pixels of GTA5's 1914 x 1052
_DRAW = (3,)  # spawn key: apart from augmentation, styles and translation


def class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """(C,): P(c) of pixel counts (C,); 0 for a class that never occurs. ValueError where none does."""
    total = pixels.sum()
    if total == 0:
        raise ValueError("no class has a pixel")
    # The largest exponent is taken off first: at T = 0.01 they reach 100.
    exponent = np.where(pixels > 0, 1 - pixels / total, -np.inf) / temperature
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


@dataclass(frozen=True, eq=False)
class RareFirst:
    """Which image a position of a stream shows, by rare-class sampling: a pure function of (seed, stream, position).

    pixels: (n, C) counts. An image shows a class from a share of `SHOWN` of its labelled pixels on; of a class that no
    image shows so clearly, those that have any of it are drawn.
    """

    pixels: np.ndarray
    temperature: float
    seed: int
    stream: int = 0
    _images: Sequence[np.ndarray] = field(init=False, repr=False)
    _up_to: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        share = self.pixels / np.maximum(self.pixels.sum(axis=1, keepdims=True), 1)
        clear = share >= SHOWN
        shown = np.where(clear.any(axis=0), clear, self.pixels > 0)
        object.__setattr__(self, "_images", [np.flatnonzero(column) for column in shown.T])
        object.__setattr__(self, "_up_to", np.cumsum(class_probabilities(self.pixels.sum(axis=0), self.temperature)))

    def __call__(self, position: int) -> int:
        """The index of the image."""
        words = np.random.SeedSequence([self.seed, self.stream, position], spawn_key=_DRAW)
        of_class, of_image = np.random.default_rng(words).random(2)
        # Of the last class the sum may be a rounding below 1.
        category = int(np.searchsorted(self._up_to, of_class * self._up_to[-1], side="right"))
        images = self._images[category]
        return int(images[int(of_image * len(images))])


def class_pixels(
    samples: Sequence[Sample], decoding: LabelDecoding, *, workers: int = 0
) -> Iterator[np.ndarray | DataError]:
    """(C,) int64 pixels of each class, for every label in order; or what is wrong with the file."""
    with processes(workers, remedy="set a lower [run] num_workers") as each:
        yield from each(partial(_count, decoding), [sample.label for sample in samples])


def _count(decoding: LabelDecoding, label: Path) -> np.ndarray | DataError:
    try:
        return np.bincount(decoding.decode(label).ravel(), minlength=256)[: decoding.num_classes]
    except DataError as error:
        return error
