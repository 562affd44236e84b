"""Pictures and text for TensorBoard, which draws curves by itself but knows no matrix of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from utils.diagnostics import PairChange
from utils.metrics import Scores

CELL, MARGIN = 16, 4  # pixels: side of a cell, space around a name
FULL = np.array([8, 64, 129])  # RGB of `top` and above, white of 0 and below
NONE = np.array([224, 224, 224])  # of NaN


def heatmap(values: Scores, names: Sequence[str], *, top: float) -> npt.NDArray[np.uint8]:
    """A matrix (C, C) as a picture (H, W, 3), darker for more, rows and columns named; NaN is grey."""
    strength = np.clip(values / top if top > 0 else values * 0, 0, 1)[..., None]
    cells = np.where(np.isnan(strength), NONE, 255 + strength * (FULL - 255))
    grid = Image.fromarray(np.nan_to_num(cells).round().astype(np.uint8)).resize(
        (CELL * len(names), CELL * len(names)), Image.Resampling.NEAREST
    )
    words = _words(names)
    sheet = Image.new("RGB", (words.width + grid.width, words.width + grid.height), "white")
    sheet.paste(grid, (words.width, words.width))
    sheet.paste(words, (0, words.width))
    sheet.paste(words.transpose(Image.Transpose.ROTATE_90), (words.width, 0))  # read upwards, the first leftmost
    return np.asarray(sheet)


def _words(names: Sequence[str]) -> Image.Image:
    """The names below each other, a cell's height each."""
    font = ImageFont.load_default()
    width = max(round(font.getlength(name)) for name in names) + 2 * MARGIN
    words = Image.new("RGB", (width, CELL * len(names)), "white")
    draw = ImageDraw.Draw(words)
    for row, name in enumerate(names):
        draw.text((MARGIN, row * CELL + 2), name, fill="black", font=font)
    return words


def pairs_text(improved: Sequence[PairChange], worsened: Sequence[PairChange], names: Sequence[str]) -> str:
    """Confusions of two classes that changed most, as a table in Markdown."""
    rows = [
        f"| {heading} | {names[pair.truth]} | {names[pair.predicted]} | {pair.before:.1f} | {pair.after:.1f} |"
        for heading, pairs in (("improved", improved), ("worsened", worsened))
        for pair in pairs
    ]
    head = "| | truth | taken for | before, % of truth | now |"
    return "\n".join((head, "|---|---|---|---:|---:|", *rows))
