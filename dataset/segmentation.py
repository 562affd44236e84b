"""One Dataset over the samples of any corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset.cache import ImageCache
from dataset.corpora import DataError, Sample
from dataset.images import read_image, read_resized, resize
from dataset.labels import IGNORE, LabelDecoding, read_bytes, same_shape
from dataset.orientation import TURN_FILES, orientation_of, seen_size
from dataset.transforms import Augment
from dataset.translation import Translator


class Example(NamedTuple):
    """image: (3,H,W) uint8 RGB, a pixel's channels side by side in memory (channels last). label: (H,W) uint8 train
    ids, 255 ignored. name: the sample's name."""

    image: torch.Tensor
    label: torch.Tensor
    name: str


class SegmentationDataset(Dataset[Example]):
    """Images and train-id labels of a list of samples, resized and augmented, not yet normalised.

    samples: as `Corpus.samples` gives them; a sample without a label gives one that is 255 throughout.
    decoding: how label files become train ids; may be None when no sample has a label.
    size: (W,H) of image and label, or None for the image's own size.
    augment: random mirror, scale and turn; the draws at a position depend on (seed, stream, position) alone.
    native_labels: keep each label at its own size (validation); an unlabelled image then gives its own size.
    cache: where images resized to `size` are kept; unused where that is None or the scale is random.

    Attributes to set: translate gives images the style of others before they are augmented; the style drawn at a
    position depends on (seed, stream, position) alone, and the draws of the augmentation do not change. shows: which
    sample a position of a training stream shows; None: each once per epoch (dataset.loading).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        decoding: LabelDecoding | None,
        size: tuple[int, int] | None,
        augment: Augment | None = None,
        seed: int = 0,
        stream: int = 0,
        native_labels: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        if decoding is None and any(sample.label is not None for sample in samples):
            raise ValueError("labelled samples need a decoding")
        if augment is not None and native_labels:
            raise ValueError("native_labels keeps labels as they are: augment must be None")
        self.samples = list(samples)
        self.decoding = decoding
        self.size = size
        self.augment = augment
        self.seed = seed
        self.stream = stream
        self.native_labels = native_labels
        self.cache = cache
        self.translate: Translator | None = None
        self.shows: Callable[[int], int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        """The example of an index, or of (position in the stream, index). Raises DataError naming a bad
        file."""
        position, index = key if isinstance(key, tuple) else (key, key)
        sample = self.samples[index]
        image, native = self._image(sample.image)
        label = self._label(sample, native)
        if self.translate is not None:
            image = Image.fromarray(self.translate(np.asarray(image), (self.seed, self.stream, position)))
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, self.stream, position])
            image, label = self.augment(image, label, self.size or native, rng)
        elif self.native_labels:
            _require_same_shape(sample, native, (label.shape[1], label.shape[0]))
        else:
            image, label = resize(image, label, self.size or native)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return Example(pixels, torch.from_numpy(label), sample.name)

    def _image(self, path: Path) -> tuple[Image.Image, tuple[int, int]]:
        """The image at `size`, and its own size; where the scale is random, or no size is set, as it is."""
        if self.size is None or (self.augment is not None and self.augment.scale):
            image = read_image(path)
            return image, image.size
        return read_resized(path, self.size, self.cache)

    def _label(self, sample: Sample, image_size: tuple[int, int]) -> np.ndarray:
        if sample.label is None or self.decoding is None:
            return np.full((image_size[1], image_size[0]), IGNORE, dtype=np.uint8)
        return self.decoding.decode(sample.label)


def _require_same_shape(sample: Sample, image: tuple[int, int], label: tuple[int, int]) -> None:
    """A prediction is compared with its label pixel by pixel: raise DataError for one of another shape."""
    if same_shape(image, label):
        return
    sizes = [f"{width}x{height}" for width, height in (label, image)]
    turned = same_shape(seen_size(image, orientation_of(read_bytes(sample.image))), label)
    remedy = f"the label lies on the image as EXIF turns it: {TURN_FILES}" if turned else "fetch both again"
    raise DataError(f"{sample.label} is {sizes[0]}, its image {sample.image} is {sizes[1]}; {remedy}")
