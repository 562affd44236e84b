"""Pictures side by side, to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

MARGIN, BAR = 4, 18  # pixels between pictures, and of the titles


def contact_sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """A table of pictures of one size, a title above each column."""
    width, height = rows[0][0].size
    columns = len(titles)
    size = (columns * width + (columns - 1) * MARGIN, len(rows) * (height + MARGIN) + BAR)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + MARGIN) + 4, 3), title, fill="black")
        for row, pictures in enumerate(rows):
            sheet.paste(pictures[column], (column * (width + MARGIN), BAR + row * (height + MARGIN)))
    return sheet
