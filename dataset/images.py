"""Image files as 8-bit RGB, and at another size. Imports nothing heavy: every worker process reads images."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from dataset.cache import ImageCache, Resized
from dataset.labels import open_image, read_bytes, refuse_unknown_range
from dataset.png import plain_png

Label = TypeVar("Label", np.ndarray, None)


def resize(image: Image.Image, label: Label, size: tuple[int, int]) -> tuple[Image.Image, Label]:
    """Bring image and label to `size` (W,H): bicubic with antialiasing for the image, nearest for the label.

    label: (h,w) uint8 or None; it may have another size than the image.
    """
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if label is not None and label.shape != (size[1], size[0]):
        label = np.array(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    return image, label


def read_resized(
    path: Path, size: tuple[int, int], cache: ImageCache | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """An image file as `read_image` gives it, resized to `size` (W,H), and its own size; from the cache if it is there.

    Raises DataError as `read_image` does, and for a cache that cannot be used.
    """
    data = read_bytes(path)
    key = cache.key(data, size) if cache else b""
    known = cache.load(key) if cache else None
    if known is not None:
        return Image.fromarray(known.pixels), known.native
    image = _decode(path, data)
    resized, _ = resize(image, None, size)
    if cache:
        cache.store(key, Resized(np.asarray(resized), image.size))
    return resized, image.size


def read_image(path: Path) -> Image.Image:
    """An image file of any mode as 8-bit RGB.

    Transparency is dropped, 16-bit grey keeps its high byte, CMYK is converted; of an animation the first frame is
    read. An EXIF orientation is not applied: labels lie on the pixels as stored (`dataset.orientation`).
    Raises DataError naming a file that is missing, damaged, larger than Pillow's decompression limit, or of 32-bit
    pixels, whose range is unknown.
    """
    return _decode(path, read_bytes(path))


def _decode(path: Path, data: bytes) -> Image.Image:
    """`read_image` of a file's bytes."""
    pixels = plain_png(data, "rgb")
    if pixels is not None:
        return Image.fromarray(pixels)
    return to_rgb(path, open_image(path, data))


def to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """A decoded image of any mode as 8-bit RGB, by the rules of `read_image`; raises DataError for 32-bit pixels."""
    refuse_unknown_range(path, image)
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn
    return image if image.mode == "RGB" else image.convert("RGB")
