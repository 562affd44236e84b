"""Images from disk: decoding and resizing against the Pillow path of the spec, the cache, translation, and the loader.

The images are smooth noise with the grain of a camera, which compresses as photographs do.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks import naive_translation
from benchmarks.timing import Case
from dataset.cache import ImageCache
from dataset.corpora import Sample
from dataset.labels import train_id_decoding
from dataset.loading import train_loader
from dataset.segmentation import SegmentationDataset, read_resized
from dataset.transforms import Augment
from dataset.translation import METHODS, Translator, band, fda, histogram_match, lab_transfer, method_named
from utils.console import say

SIZES = {"Cityscapes": ((2048, 1024), (1024, 512)), "GTA5": ((1914, 1052), (1280, 720))}  # stored, wanted (W,H)
WORKERS = (0, 1, 2)
STEPS_S = (0.05, 0.1, 0.2, 0.5)
NUM_CLASSES = 19
BETA = 0.01
LIMIT = 10**9  # bytes of the cache, never reached


def cases(*, quick: bool, device: torch.device) -> Iterator[Case]:
    """An image of each corpus, without and with a cache, and passes of the loader over some; all on the CPU.

    At the end it says how many loading processes feed a training step of which length.
    """
    images, repeats = (6, 3) if quick else (24, 9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for corpus, (stored, wanted) in SIZES.items():
            sample = write_sample(folder / corpus, stored)
            yield from _image_cases(corpus, sample.image, wanted, repeats=repeats)
        yield from _translation_cases(sample, wanted, repeats=repeats)
        samples = [sample] * images  # of GTA5, the larger ones
        yield from _loader_cases(samples, wanted)
        plain, cached = (_dataset(samples, wanted, cache) for cache in (None, _cache(sample.image)))
        say(f"data: {feeding(_example_s(plain), _example_s(cached))}")


def workers_to_feed(example_s: float, step_s: float, *, images: int = 1) -> int:
    """Loading processes that make `images` examples, of so many seconds each, while a training step runs."""
    return math.ceil(images * example_s / step_s)


def feeding(plain_s: float, cached_s: float) -> str:
    """What the seconds of an example mean for the number of processes per loader."""
    needed = ", ".join(
        f"{step} s {workers_to_feed(plain_s, step)} ({workers_to_feed(cached_s, step)})" for step in STEPS_S
    )
    return (
        f"an example with its label takes {1000 * plain_s:.0f} ms of one processor, {1000 * cached_s:.0f} ms from the "
        f"cache; loading processes that feed a step of one image per loader (with the cache): {needed}"
    )


# ---- input ----


def write_sample(folder: Path, size: tuple[int, int]) -> Sample:
    """A PNG photograph of `size` (W,H), and its label of train ids in blobs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    image, label = folder / "image.png", folder / "label.png"
    Image.fromarray(photograph(rng, size)).save(image)
    blobs = rng.integers(0, NUM_CLASSES, (size[1] // 32, size[0] // 32), dtype=np.uint8)
    Image.fromarray(cv2.resize(blobs, size, interpolation=cv2.INTER_NEAREST)).save(label)
    return Sample(image.name, image, label)


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8: noise of four scales, the coarse ones stronger, and grain."""
    width, height = size
    pixels = rng.normal(128, 0.7, (height, width, 3)).astype(np.float32)
    for cells in (4, 16, 64, 256):
        coarse = rng.normal(0, 60 / cells**0.4, (cells, 2 * cells, 3)).astype(np.float32)
        pixels += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


# ---- cases ----


def _image_cases(corpus: str, path: Path, size: tuple[int, int], *, repeats: int) -> Iterator[Case]:
    for title, cache in (("decode and resize", None), ("cached", _cache(path))):
        yield Case(
            name=f"data, {corpus}, {title}, an image",
            fast=partial(_read, path, size, cache),
            naive=partial(pillow, path, size),
            repeats=repeats,
            naive_repeats=repeats,
            agree=np.testing.assert_array_equal,  # the promise is one grey level in a thousandth of the values
        )


def _read(path: Path, size: tuple[int, int], cache: ImageCache | None) -> np.ndarray:
    return np.asarray(read_resized(path, size, cache)[0])


def pillow(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8: an image as the spec says it."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def _translation_cases(sample: Sample, size: tuple[int, int], *, repeats: int) -> Iterator[Case]:
    """A translation beside the naive one; and what an example takes with it, beside the same one as stored: there the
    column "faster" is the share of the loader's throughput that is left."""
    source, target = _read(sample.image, size, None), photograph(np.random.default_rng(1), (1024, 512))
    ways = {
        "fda": (
            partial(fda, source, target, beta=BETA),
            partial(naive_translation.fda, source, target, band(size, BETA)),
        ),
        "lab": (partial(lab_transfer, source, target), partial(naive_translation.lab, source, target)),
        "histogram": (partial(histogram_match, source, target), partial(naive_translation.histogram, source, target)),
    }
    for name in METHODS:
        fast, naive = ways[name]
        yield Case(
            name=f"data, {name}, an image and its target",
            fast=fast,
            naive=naive,
            repeats=repeats,
            agree=partial(_same_pixels, levels=3 if name == "lab" else 1),  # its statistics are those of a grid
        )
        method = method_named(name, beta=BETA, size=size)
        translated = _dataset([sample], size, None)
        translated.translate = Translator(method, method.describe(target)[None])
        yield Case(
            name=f"data, GTA5, an example with {name} (naive: as stored)",
            fast=partial(translated.__getitem__, 0),
            naive=partial(_dataset([sample], size, None).__getitem__, 0),
            repeats=3 * repeats,
            naive_repeats=3 * repeats,
        )


def _same_pixels(fast: np.ndarray, naive: np.ndarray, *, levels: int) -> None:
    """To so many grey levels."""
    assert np.abs(fast - naive.round().clip(0, 255)).max() <= levels


def _loader_cases(samples: list[Sample], size: tuple[int, int]) -> Iterator[Case]:
    """A pass over the samples with each number of processes, their start included, beside the pass without any."""
    dataset = _dataset(samples, size, None)
    repeats = 1 if len(samples) < 10 else 3
    alone = partial(_pass, dataset, num_workers=0)
    for workers in WORKERS:
        yield Case(
            name=f"data, GTA5, loader with {workers} processes, {len(samples)} examples",
            fast=partial(_pass, dataset, num_workers=workers),
            naive=alone if workers else None,
            repeats=repeats,
            naive_repeats=repeats,
            agree=_equal,
        )


def _pass(dataset: SegmentationDataset, *, num_workers: int) -> list[torch.Tensor]:
    loader = train_loader(dataset, batch_size=1, seed=0, stop=len(dataset), num_workers=num_workers)
    return [batch.images for batch in loader]


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


def _dataset(samples: list[Sample], size: tuple[int, int], cache: ImageCache | None) -> SegmentationDataset:
    decoding = train_id_decoding(NUM_CLASSES)
    return SegmentationDataset(samples, decoding=decoding, size=size, augment=Augment(mirror=True), cache=cache)


def _cache(image: Path) -> ImageCache:
    """The one beside the image."""
    return ImageCache(image.parent / "cache", limit=LIMIT)


def _example_s(dataset: SegmentationDataset) -> float:
    """Median seconds of one processor for an example; the first one is not counted."""
    seconds = []
    for index in range(min(7, len(dataset))):
        began = time.process_time()
        dataset[index]
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])
