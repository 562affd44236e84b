"""What is made of a prediction: pictures of labels, colours and confidence, gathered row by row and written at the end.

Geometry: (H, W) the picture's size; a part is some of its rows, (rows, W).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from utils.background import write_png
from utils.files import atomic_write, errors_naming

if TYPE_CHECKING:
    from rasterio.windows import Window

Pixels = npt.NDArray[np.uint8]

KINDS = ("overlay", "labels", "colour", "confidence", "label_ids")


@dataclass(frozen=True)
class Part:
    """Rows of a picture and what is predicted there. labels: train ids uint8; confidence: 0..1; pixels: uint8 RGB."""

    rows: slice
    labels: Pixels
    confidence: npt.NDArray[np.float32]
    pixels: Pixels


@dataclass(frozen=True)
class Look:
    """How labels are shown. colours: (256, 3) uint8 per train id; label_ids: (256,) official ids, or None; opacity: of
    the colours over the picture, 0..1."""

    colours: Pixels
    label_ids: Pixels | None
    opacity: float = 0.5

    def render(self, kind: str, part: Part) -> Pixels:
        """A part of a product: (rows, W) or (rows, W, 3) uint8. Confidence 0..1 becomes 0..255."""
        if kind == "overlay":
            mixed = cv2.addWeighted(part.pixels, 1 - self.opacity, self.colours[part.labels], self.opacity, 0)
            return np.asarray(mixed, dtype=np.uint8)
        if kind == "confidence":
            return np.rint(part.confidence * 255).astype(np.uint8)
        if kind == "label_ids":
            assert self.label_ids is not None
            return self.label_ids[part.labels]
        return part.labels


class PngSheet:
    """A PNG, held in memory until it is whole. palette: (256, 3), of values that stand for colours."""

    suffix = ".png"

    def __init__(self, path: Path, shape: Sequence[int], palette: Pixels | None) -> None:
        self.path = path
        self.pixels = np.empty(tuple(shape), dtype=np.uint8)
        self._palette = palette

    def add(self, rows: slice, part: Pixels) -> None:
        """Take some rows."""
        self.pixels[rows] = part

    def close(self) -> None:
        """Write the file."""
        image = Image.fromarray(self.pixels)
        if self._palette is not None:
            image.putpalette(self._palette.tobytes())
        write_png(self.path, image)

    def discard(self) -> None:
        """Nothing is left behind."""


class TiffSheet:
    """A compressed TIFF, written while its rows come. georeference: "crs" and "transform" as rasterio knows them."""

    suffix = ".tif"

    def __init__(self, path: Path, shape: Sequence[int], palette: Pixels | None, georeference: dict[str, Any]) -> None:
        self.path = path
        self._width = shape[1]
        self._written: list[tuple[slice, int]] = []  # rows and the checksum of their values
        layout = {"height": shape[0], "width": shape[1], "count": shape[2] if len(shape) == 3 else 1, "dtype": "uint8"}
        options = {"compress": "DEFLATE", "BIGTIFF": "IF_SAFER", **georeference}
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_write(path))
            stack.enter_context(self._read_back())
            self._file = stack.enter_context(_raster(self._temporary, "w", driver="GTiff", **layout, **options))
            if palette is not None:
                self._file.write_colormap(1, {value: (*map(int, colour), 255) for value, colour in enumerate(palette)})
            self._stack = stack.pop_all()

    def add(self, rows: slice, part: Pixels) -> None:
        """Write some rows. An OSError of a full disk names the file."""
        bands = np.ascontiguousarray(part[None] if part.ndim == 2 else np.moveaxis(part, 2, 0))
        with errors_naming(self.path, unfinished=self._temporary):
            self._file.write(bands, window=self._window(rows))
        self._written.append((rows, zlib.crc32(bands.data)))

    def _window(self, rows: slice) -> Window:
        from rasterio.windows import Window

        return Window(0, rows.start, self._width, rows.stop - rows.start)

    @contextmanager
    def _read_back(self) -> Iterator[None]:
        """Whoever leaves this has closed the file. Raises OSError where it does not hold what was written: GDAL says
        nothing of a disk that is full by then."""
        yield
        with _raster(self._temporary) as file:
            for rows, checksum in self._written:
                if zlib.crc32(file.read(window=self._window(rows))) != checksum:
                    raise OSError(f"{self.path}: the file does not hold what was written to it")

    def close(self) -> None:
        """Finish the file, which takes its place. An OSError of a full disk names it."""
        self._stack.close()

    def discard(self) -> None:
        """Leave nothing behind."""
        error = RuntimeError(f"{self.path} is not wanted")
        self._stack.__exit__(type(error), error, None)


def _raster(*arguments: Any, **options: Any) -> Any:
    """`rasterio.open`, without a warning where there is no georeference: nor had the picture one."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # for good: other threads come here, too
    return rasterio.open(*arguments, **options)


Sheet = PngSheet | TiffSheet


class Products:
    """The files that are made of one picture of `size` (W, H): `folder`/<kind>/<name>.png, or .tif for one that is too
    large for memory."""

    def __init__(
        self,
        folder: Path,
        name: str,
        size: tuple[int, int],
        kinds: Sequence[str],
        look: Look,
        georeference: dict[str, Any] | None = None,
    ) -> None:
        self._look = look
        self.sheets: dict[str, Sheet] = {}
        for kind in kinds:
            shape = (size[1], size[0], 3) if kind == "overlay" else (size[1], size[0])
            palette = look.colours if kind == "colour" else None
            stem = folder / kind / name
            if georeference is None:
                self.sheets[kind] = PngSheet(stem.with_name(stem.name + PngSheet.suffix), shape, palette)
            else:
                path = stem.with_name(stem.name + TiffSheet.suffix)
                self.sheets[kind] = TiffSheet(path, shape, palette, georeference)

    def add(self, part: Part) -> None:
        """Take the next rows of the picture."""
        for kind, sheet in self.sheets.items():
            sheet.add(part.rows, self._look.render(kind, part))

    def pixels(self, kind: str) -> Pixels:
        """A product that is held in memory."""
        sheet = self.sheets[kind]
        assert isinstance(sheet, PngSheet)
        return sheet.pixels

    def close(self) -> dict[str, str]:
        """Write what is not written yet; returns kind -> file."""
        for sheet in self.sheets.values():
            sheet.close()
        return {kind: str(sheet.path) for kind, sheet in self.sheets.items()}

    def discard(self) -> None:
        """Leave nothing behind."""
        for sheet in self.sheets.values():
            sheet.discard()
