"""Pseudo labels (spec 3.6) beyond the network: from low-resolution logits to PNGs on the disk.

`cases` compares with the rule as published, which sorts every confidence in memory. `follow` is one long stream, for
benchmarks/stream.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.timing import Case
from utils.background import in_background, write_png
from utils.inference import upsample
from utils.pseudo_label import (
    ConfidenceHistogram,
    PredictionCache,
    PseudoLabeler,
    apply_thresholds,
    quantize,
)
from utils.runtime import peak_memory_mb
from utils.strips import highest_at

NUM_CLASSES = 19
GRID, SIZE = (65, 129), (512, 1024)  # of the logits and of the pseudo labels, (H, W)
DISTINCT = 8  # images of a stream before it repeats itself

Files = dict[str, npt.NDArray[np.uint8]]


def probabilities(logits: Tensor) -> Tensor:
    """Softmax at low resolution, then upsampled to SIZE at once (spec 3.6): (C, h, w) -> (C, H, W)."""
    return upsample(logits.softmax(dim=0), SIZE)


def cases(*, quick: bool, device: torch.device) -> Iterator[Case]:
    """The whole of it against the published way, then its parts without comparison. One call is one image, or so many
    as the name says."""
    logits = [image.to(device) for image in stream(2 if quick else DISTINCT, seed=0)]
    with tempfile.TemporaryDirectory() as folder:
        yield Case(
            name=f"pseudo labels, {len(logits)} images from logits to PNGs / as published",
            fast=partial(generate, logits, Path(folder) / "fast"),
            naive=partial(sort_everything, logits, Path(folder) / "naive"),
            repeats=3,
            agree=_agree,
        )
        for part in _parts(logits[0], Path(folder)):
            yield Case(name=f"pseudo labels, {part.name}", fast=part.fast, naive=part.naive, agree=part.agree)


def stream(images: int, *, seed: int) -> Iterator[Tensor]:
    """Logits (C, h, w) of images with regions of all sizes, some of them uncertain."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(images):
        coarse = 4 * torch.randn(1, NUM_CLASSES, 9, 17, generator=generator)
        fine = 0.5 * torch.randn(NUM_CLASSES, *GRID, generator=generator)
        yield F.interpolate(coarse, size=GRID, mode="bicubic")[0] + fine


def generate(logits: list[Tensor], folder: Path) -> Files:
    """As `Generate_Pseudo_Label.py` does it, and the files read again."""
    with PseudoLabeler(NUM_CLASSES, cache_folder=folder) as labeler:
        for index, image in enumerate(logits):
            labeler.add(f"{index}.png", image.softmax(dim=0), SIZE)
        for _ in in_background(partial(_write, folder), labeler.labels()):
            pass
    return _read(folder)


def sort_everything(logits: list[Tensor], folder: Path) -> Files:
    """The rule word by word: all confidences of a class in memory, in float64, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    tops = [probabilities(image).double().cpu().numpy() for image in logits]
    labels = np.stack([top.argmax(axis=0) for top in tops])
    confidences = np.stack([top.max(axis=0) for top in tops])
    for category in range(NUM_CLASSES):
        ordered = np.sort(confidences[labels == category])
        tau = min(ordered[min(round(ordered.size / 2), ordered.size - 1)], 0.9) if ordered.size else 0.0
        labels[(labels == category) & (confidences < tau)] = 255
    for index, label in enumerate(labels):
        Image.fromarray(label.astype(np.uint8)).save(folder / f"{index}.png")
    return _read(folder)


def follow(images: int, folder: Path) -> dict[str, float]:
    """A stream of so many images of random logits, through everything but a network.

    Returns milliseconds per image of wall clock and of processor time without the making of the logits, and the peak
    of the resident memory in MiB: of the whole process, and what it was before.
    """
    before_mb = peak_memory_mb(torch.device("cpu"))
    distinct = list(stream(min(images, DISTINCT), seed=0))
    began, worked = time.perf_counter(), time.process_time()
    with PseudoLabeler(NUM_CLASSES, cache_folder=folder) as labeler:
        for index in range(images):
            labeler.add(f"{index}.png", distinct[index % len(distinct)].softmax(dim=0), SIZE)
        for _ in in_background(partial(_write, folder), labeler.labels()):
            pass
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    return {
        "wall_ms": 1e3 * seconds / images,
        "processor_ms": 1e3 * processor / images,
        "before_mb": before_mb,
        "peak_mb": peak_memory_mb(torch.device("cpu")),
    }


class _Part(NamedTuple):
    name: str
    fast: Callable[[], Any]
    naive: Callable[[], Any] | None = None
    agree: Callable[[Any, Any], None] | None = None


def _parts(logits: Tensor, folder: Path) -> Iterator[_Part]:
    """What happens to one image, in its order."""
    low = logits.softmax(dim=0)
    yield _Part(
        "upsampling and maximum / one after the other",
        partial(highest_at, low, SIZE),
        partial(_full_size_maximum, logits),
        _agree_on_labels,
    )
    confidence, label = (tensor.cpu().numpy() for tensor in highest_at(low, SIZE))
    yield _Part("levels", partial(quantize, confidence))
    levels, histogram, cache = quantize(confidence), ConfidenceHistogram(NUM_CLASSES), PredictionCache(folder / "cache")
    yield _Part("histogram", partial(histogram.update, label, levels))
    yield _Part("cache, written", partial(cache.append, "a", label, levels))
    yield _Part("cache, read", lambda: next(iter(cache)))
    cache.close()
    tau = histogram.thresholds()
    yield _Part("thresholds applied", partial(apply_thresholds, label, levels, tau))
    pseudo = apply_thresholds(label, levels, tau)
    yield _Part("PNG, encoded and flushed to the disk", partial(_write, folder, ("a.png", pseudo)))


def _full_size_maximum(logits: Tensor) -> tuple[Tensor, Tensor]:
    confidence, label = probabilities(logits).max(dim=0)
    return confidence, label.to(torch.uint8)


def _write(folder: Path, named: tuple[str, npt.NDArray[np.uint8]]) -> None:
    name, label = named
    write_png(folder / name, Image.fromarray(label))


def _read(folder: Path) -> Files:
    files: Files = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            files[path.name] = np.asarray(image)
    return files


def _agree(fast: Files, naive: Files) -> None:
    """But for pixels within a level of their threshold (or of two classes' tie), the files are the same."""
    assert fast.keys() == naive.keys()
    for name, label in fast.items():
        assert (label != naive[name]).mean() < 1e-3, name


def _agree_on_labels(fast: tuple[Tensor, Tensor], naive: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(fast[0], naive[0])
    assert (fast[1] != naive[1]).double().mean() < 1e-5
