"""Pictures for a page, small: photographs as JPEG, label maps and confidences as palette PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from utils.report.markup import Html, image

LARGEST = 480  # pixels a side
# Anchors of viridis, which grows evenly lighter: dark for doubt, in print and for the colour-blind, too.
_RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)

Pixels = npt.NDArray[np.uint8]


def photograph(pixels: Pixels, *, alt: str, width: int) -> Html:
    """RGB (H, W, 3)."""
    return _element(_small(Image.fromarray(pixels), Image.Resampling.LANCZOS), "jpeg", alt=alt, width=width)


def label_map(labels: Pixels, palette: Sequence[Sequence[int]], *, alt: str, width: int) -> Html:
    """Train ids (H, W) in the colours of their classes; whatever is no class is black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    return _element(_indexed(labels, colours), "png", alt=alt, width=width)


def confidence_map(confidence: npt.NDArray[np.float32], *, alt: str, width: int) -> Html:
    """Confidences (H, W) within 0..1, dark for 0."""
    place = np.linspace(0, len(_RAMP) - 1, 256)
    channels = [np.interp(place, range(len(_RAMP)), _RAMP[:, channel]) for channel in range(3)]
    colours = np.stack(channels, axis=1).round().astype(np.uint8)
    levels = (confidence.clip(0, 1) * 31).round() * (255 / 31)  # in steps that a PNG packs well
    return _element(_indexed(levels.astype(np.uint8), colours), "png", alt=alt, width=width)


def _indexed(values: Pixels, colours: Pixels) -> Image.Image:
    picture = _small(Image.fromarray(values), Image.Resampling.NEAREST)
    picture.putpalette(colours.tobytes())
    return picture


def _small(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
    picture.thumbnail((LARGEST, LARGEST), resampling)
    return picture


def _element(picture: Image.Image, kind: str, *, alt: str, width: int) -> Html:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return image(buffer.getvalue(), kind, alt=alt, width=width)
