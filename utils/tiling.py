"""Large images in overlapping tiles: the scores of the tiles, blended to classes at full size in bounded memory.

Every tile is predicted alone. Where tiles overlap their scores are averaged with weights that fall smoothly towards a
tile's edge and sum to 1 at every pixel: no seam is left, and a single tile is the image itself. Held are, at most, the
tiles of the rows that meet a band, on their feature grids, and full-size scores for one band.

Geometry: C classes, (h, w) a tile's feature grid, (H, W) the full size; boxes are (left, top, right, bottom).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from utils.inference import LEAST_SIDE
from utils.strips import classes_and_confidences, strips

Box = tuple[int, int, int, int]

LARGE = 2**22  # pixels that the network sees at once, unless it is told otherwise: four times 1024x1024
_ENTRIES = 2**22  # of a band's blended scores: 16 MB
_ROWS = 16  # of a band at least: whoever reads the image by the same bands reads it by rows


@dataclass(frozen=True)
class Axis:
    """Tiles along one side: `begins` of tiles of length `tile` over `length` pixels, `overlap` the wanted share."""

    length: int
    tile: int
    overlap: float

    @cached_property
    def begins(self) -> tuple[int, ...]:
        """As few tiles as overlap by the share of their length at least, evenly spread from end to end."""
        free = self.length - self.tile
        if free <= 0:
            return (0,)
        stride = max(1, int(self.tile * (1 - self.overlap)))
        steps = -(-free // stride)
        return tuple(round(index * free / steps) for index in range(steps + 1))

    @cached_property
    def weights(self) -> Tensor:
        """(tiles, tile) float32: a tile's share at each of its pixels; over all tiles they sum to 1 at every pixel."""
        inside = np.minimum(np.arange(self.tile), np.arange(self.tile)[::-1]) + 0.5
        rise = np.clip(inside / max(self.overlap * self.tile, 1), 0, 1)
        window = rise * rise * (3 - 2 * rise)
        total = np.zeros(self.length)
        for begin in self.begins:
            total[begin : begin + self.tile] += window
        return torch.from_numpy(
            np.stack([window / total[begin : begin + self.tile] for begin in self.begins]).astype(np.float32)
        )

    def meeting(self, start: int, stop: int) -> list[int]:
        """The tiles that have pixels in start..stop-1."""
        return [i for i, begin in enumerate(self.begins) if begin < stop and start < begin + self.tile]


@dataclass(frozen=True)
class Grid:
    """Tiles over an image, row by row."""

    x: Axis
    y: Axis

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return len(self.x.begins) * len(self.y.begins)

    def row(self, index: int) -> list[Box]:
        """The boxes of a row of tiles, from left to right."""
        top = self.y.begins[index]
        return [(left, top, left + self.x.tile, top + self.y.tile) for left in self.x.begins]


def grid(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> Grid:
    """The tiles of an image of `size` (W, H); overlap: share of a tile's side that it has in common with the next one,
    0 to 0.5. A side that is not longer than the tile's has one tile of its own length."""
    width, height = size
    return Grid(Axis(width, min(width, tile[0]), overlap), Axis(height, min(height, tile[1]), overlap))


def classify(tiles: Grid, scores_of: Callable[[Box], Tensor]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, classes (rows, W) uint8, confidences (rows, W) float32) of an image, band by band from top to bottom.

    scores_of: a box's logits (C, h, w), asked for once per tile. A pixel's class has the highest of the blended
    upsampled logits, its confidence is their softmax there.
    """
    held: dict[int, list[Tensor]] = {}
    height = tiles.y.length
    start = 0
    while start < height:
        first = tiles.y.meeting(start, start + 1)
        held = {index: held.get(index) or [scores_of(box) for box in tiles.row(index)] for index in first}
        classes = len(held[first[0]][0])
        edges = [edge for begin in tiles.y.begins for edge in (begin, begin + tiles.y.tile) if edge > start]
        stop = min(*edges, height, start + max(_ROWS, _ENTRIES // (classes * tiles.x.length)))
        yield slice(start, stop), *classes_and_confidences(_blended(tiles, held, slice(start, stop)))
        start = stop


def _blended(tiles: Grid, held: dict[int, list[Tensor]], rows: slice) -> Iterator[Tensor]:
    """The scores (C, some rows, W) of a band that meets the same rows of tiles throughout, top to bottom."""
    size = tiles.y.tile, tiles.x.tile
    if tiles.count == 1:
        yield from (strip for _, strip in strips(held[0][0], size, within=rows))
        return
    first = next(iter(held.values()))[0]
    blended = first.new_zeros((len(first), rows.stop - rows.start, tiles.x.length))
    for index, row in held.items():
        top = tiles.y.begins[index]
        for left, across, scores in zip(tiles.x.begins, tiles.x.weights.to(first.device), row, strict=True):
            for part, strip in strips(scores, size, within=slice(rows.start - top, rows.stop - top)):
                down = tiles.y.weights[index, part].to(first.device)
                place = slice(part.start + top - rows.start, part.stop + top - rows.start)
                blended[:, place, left : left + tiles.x.tile] += strip.mul_(down[:, None] * across)
    yield blended


# ---- sizes ----


@dataclass(frozen=True)
class Zoom:
    """The size at which the network sees a picture: `size` (W, H) itself, or `scale` times the picture's own, or else
    as many pixels as the images of `trained` (W, H) that it was trained on, in the picture's own shape."""

    trained: tuple[int, int]
    size: tuple[int, int] | None = None
    scale: float | None = None

    @property
    def chosen(self) -> bool:
        """Whether anybody asked for a size."""
        return self.size is not None or self.scale is not None

    def __call__(self, native: tuple[int, int]) -> tuple[int, int]:
        """(W, H) for a picture of `native` (W, H); no side is shorter than a network can use."""
        if self.size is not None:
            return self.size
        factor = self.scale or math.sqrt(math.prod(self.trained) / math.prod(native))
        return max(LEAST_SIDE, round(native[0] * factor)), max(LEAST_SIDE, round(native[1] * factor))


@dataclass(frozen=True)
class Plan:
    """How a picture is predicted: its tiles, in its own pixels, and the size (W, H) at which the network sees each."""

    tiles: Grid
    shown: tuple[int, int]


def plan(
    native: tuple[int, int],
    seen: tuple[int, int],
    *,
    tile: tuple[int, int] | None,
    otherwise: tuple[int, int],
    overlap: float,
) -> Plan:
    """The plan for a picture of `native` (W, H) that the network sees at `seen` (W, H) in all.

    tile: the most that the network is shown at once (W, H); None: the whole picture, or `otherwise` at a time where it
    has more than LARGE pixels.
    """
    if tile is None:
        tile = otherwise if math.prod(seen) > LARGE else seen
    # A side on which one tile is enough keeps its length to the pixel.
    whole = [side <= most for side, most in zip(seen, tile, strict=True)]
    sides = [
        own if fits else min(own, max(1, round(most * own / side)))
        for own, side, most, fits in zip(native, seen, tile, whole, strict=True)
    ]
    shown = [side if fits else most for side, most, fits in zip(seen, tile, whole, strict=True)]
    return Plan(grid(native, (sides[0], sides[1]), overlap), (shown[0], shown[1]))
