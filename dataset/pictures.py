"""Pictures of any kind for prediction: upright, read whole where they fit into memory and by windows where not."""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from dataset.images import to_rgb
from dataset.labels import open_image, read_bytes
from dataset.orientation import orientation, orientation_of
from dataset.toml import DataError

Box = tuple[int, int, int, int]

TIFF = (".tif", ".tiff")
_SLAB = 2**24  # pixels that are read at once of what is shrunk
_QUIET = threading.Lock()  # filters of warnings belong to all threads


class Picture(Protocol):
    """A picture, open inside a `with`. size: (W, H). notes: what the user should know of it, a line each. turned: its
    pixels are not where they are stored, but upright, as its EXIF orientation says.
    georeference: "crs" and "transform" for rasterio of one that is too large for memory, as its results may be; else
    None."""

    size: tuple[int, int]
    notes: tuple[str, ...]
    turned: bool
    georeference: dict[str, Any] | None

    def __enter__(self) -> Picture: ...

    def __exit__(self, *exception: object) -> None: ...

    def read(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """(h, w, 3) uint8 RGB of a box (left, top, right, bottom), resized to (w, h): bicubic with antialiasing."""


class WholePicture:
    """A picture in memory."""

    georeference: dict[str, Any] | None = None

    def __init__(self, image: Image.Image, notes: tuple[str, ...] = (), *, turned: bool = False) -> None:
        self._image = image
        self.size = image.size
        self.notes = notes
        self.turned = turned

    def __enter__(self) -> WholePicture:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """As `Picture.read` says."""
        part = self._image if box == (0, 0, *self.size) else self._image.crop(box)
        return _resized(part, size)


class WindowedPicture:
    """A TIFF too large for memory, of which only windows are read. An orientation is not applied.

    Raises DataError for pixels that are not 8-bit.
    """

    turned = False

    def __init__(self, path: Path) -> None:
        from dataset.photographs import colour_bands, opened

        self._path = path
        self._stack = ExitStack()
        with opened(path) as dataset:
            self.size = dataset.width, dataset.height
            self.georeference: dict[str, Any] | None = {"crs": dataset.crs, "transform": dataset.transform}
            bands = len(colour_bands(dataset))
        self.notes: tuple[str, ...] = (
            f"{path} is large, {self.size[0]}x{self.size[1]}: read by windows, as stored (no EXIF orientation)",
        )
        if bands not in (1, 3):
            self.notes += (
                f"{path} has {bands} channels; {'the first three are' if bands > 3 else 'the first is'} used",
            )

    def __enter__(self) -> WindowedPicture:
        from dataset.photographs import opened

        self._dataset = self._stack.enter_context(opened(self._path))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """As `Picture.read` says; of a large box that is shrunk, blocks of pixels are averaged first."""
        left, top, right, bottom = box
        factor = max(1, min((right - left) // size[0], (bottom - top) // size[1]) // 2)
        if factor == 1 or (right - left) * (bottom - top) <= _SLAB:
            return _resized(Image.fromarray(self._window(left, top, right, bottom)), size)
        rows = max(1, _SLAB // (right - left) // factor) * factor
        slabs = [
            Image.fromarray(self._window(left, start, right, min(start + rows, bottom))).reduce(factor)
            for start in range(top, bottom, rows)
        ]
        return _resized(Image.fromarray(np.concatenate([np.asarray(slab) for slab in slabs])), size)

    def _window(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """(h, w, 3) uint8, grey repeated."""
        from dataset.photographs import read_window

        pixels = read_window(self._dataset, top, left, bottom - top, right - left)
        colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
        return np.ascontiguousarray(colours)


def open_picture(path: Path) -> Picture:
    """The picture in a file, its orientation (EXIF) applied: a photograph is looked at upright.

    Modes are read by the rules of `dataset.images.read_image`; of an animation the first frame. A TIFF above
    Pillow's limit is read by windows. Raises DataError naming a file that is not readable, or of another kind and above
    the limit.
    """
    if path.suffix.lower() in TIFF and _is_large(path):
        return WindowedPicture(path)
    data = read_bytes(path)
    with _QUIET, warnings.catch_warnings():
        # Pillow refuses what is beyond twice its limit and warns of what is beyond it; of flaws in EXIF it warns, too.
        warnings.simplefilter("ignore")
        image = open_image(path, data, as_stored=False)
        frames = getattr(image, "n_frames", 1)
        # A TIFF loses it as it is loaded.
        turned = (orientation_of(data) if image.format == "TIFF" else orientation(image)) != 1
        ImageOps.exif_transpose(image, in_place=True)
    # A photograph's MPO holds previews of itself, no animation.
    notes = (f"{path} holds {frames} images; the first is used",) if frames > 1 and image.format != "MPO" else ()
    return WholePicture(to_rgb(path, image), notes, turned=turned)


def _is_large(path: Path) -> bool:
    """Whether a TIFF has more pixels than Pillow takes without a warning. What is no TIFF is judged elsewhere."""
    from dataset.photographs import opened

    if Image.MAX_IMAGE_PIXELS is None or not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        with opened(path) as dataset:
            return dataset.width * dataset.height > Image.MAX_IMAGE_PIXELS
    except DataError:
        return False


def _resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.array(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))
