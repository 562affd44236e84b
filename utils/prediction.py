"""Pictures and films through a network, whatever their size, to rows of predictions and files.

Geometry: C classes, (H, W) a picture's size; sizes (W, H), boxes (left, top, right, bottom).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.console import progress
from utils.nonfinite import NOT_NUMBERS, NonFiniteError
from utils.products import Look, Part, Products
from utils.tiling import Box, Zoom, classify, plan
from utils.video import Frame, opened_film, written_film

MANY_TILES = 16  # of a picture that has a progress bar of its own


class TooLargeError(ValueError):
    """A picture for which the device has not enough memory; the message is one line for the user."""


class Picture(Protocol):
    """What is predicted."""

    @property
    def size(self) -> tuple[int, int]:
        """(W, H)."""

    def read(self, box: Box, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """(h, w, 3) RGB of a box, resized to (w, h)."""


@dataclass(frozen=True)
class Sight:
    """How the network sees pictures. zoom: at what size; tile: the most of it at once (W, H), None for what is
    reasonable; overlap: of tiles, as a share of their sides."""

    zoom: Zoom
    tile: tuple[int, int] | None = None
    overlap: float = 0.25


@dataclass(frozen=True)
class Predictor:
    """A network for pictures of any size. show: (1, 3, H, W) uint8 RGB on the device -> logits (1, C, h, w)."""

    show: Callable[[Tensor], Tensor]
    device: torch.device
    sight: Sight

    def parts(self, picture: Picture, name: str) -> Iterator[Part]:
        """A picture's rows with their predictions, from top to bottom; `name` is for the user. Raises TooLargeError."""
        sight, seen = self.sight, self.sight.zoom(picture.size)
        view = plan(picture.size, seen, tile=sight.tile, otherwise=sight.zoom.trained, overlap=sight.overlap)
        bar = progress(total=view.tiles.count, description=name, unit="tile", shown=view.tiles.count > MANY_TILES)

        def scores_of(box: Box) -> Tensor:
            pixels = torch.from_numpy(picture.read(box, view.shown)).permute(2, 0, 1)
            logits = self.show(pixels[None].to(self.device))[0]
            bar.update()
            return logits

        width, _ = picture.size
        try:
            with bar:
                for rows, labels, confidence in classify(view.tiles, scores_of):
                    _require_numbers(confidence, name)
                    pixels = picture.read((0, rows.start, width, rows.stop), (width, rows.stop - rows.start))
                    yield Part(rows, labels.cpu().numpy(), confidence.cpu().numpy(), pixels)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            width, height = view.shown
            raise TooLargeError(
                f"{name}: {width}x{height} at once are too much for the memory of {self.device}; give a smaller --tile"
            ) from None

    def fill(self, products: Products, picture: Picture, name: str) -> Products:
        """Predict a picture into products, of which nothing is left behind after an error."""
        try:
            for part in self.parts(picture, name):
                products.add(part)
        except BaseException:
            products.discard()
            raise
        return products


def _require_numbers(confidence: Tensor, name: str) -> None:
    """Raise NonFiniteError for scores that are NaN, of which there would be a class all the same."""
    if confidence.isnan().any():
        raise NonFiniteError(f"{name}: {NOT_NUMBERS}")


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or the host, has no memory left; torch has no exception of its own for the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def predict_film(
    path: Path,
    predictor: Predictor,
    *,
    folder: Path,
    name: str,
    kinds: Sequence[str],
    look: Look,
    frames: bool,
    picture_of: Callable[[Frame], Picture],
) -> tuple[dict[str, str], str | None]:
    """Predict a video frame by frame: `folder`/overlay/`name`.mp4 where overlay is among the kinds, and, with `frames`,
    `folder`/<kind>/`name`/<number>.png. Returns kind -> file or folder, and a note if frames are missing.

    Raises VideoError for a file that cannot be read.
    """
    files = {kind: str(folder / kind / name) for kind in kinds} if frames else {}
    made = kinds if frames else ("overlay",)
    count = 0
    with opened_film(path) as film, ExitStack() as stack:
        writer = None
        if "overlay" in made:
            files["film"] = str(folder / "overlay" / f"{name}.mp4")
            writer = stack.enter_context(written_film(Path(files["film"]), film.size, film.fps))
        for frame in progress(film.frames, total=film.count or None, description=str(path), unit="frame"):
            products = Products(folder, f"{name}/{count:06d}", film.size, made, look)
            predictor.fill(products, picture_of(frame), str(path))
            if writer:
                writer.add(products.pixels("overlay"))
            if frames:
                products.close()
            count += 1
    missing = f"{path} announces {film.count} frames, {count} could be read" if count < film.count else None
    return files, missing
