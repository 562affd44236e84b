"""Paired transforms of image and label, and the normalisation that runs on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataset.images import resize
from dataset.labels import IGNORE
from dataset.toml import DataError

# The channel means, in the 0..255 range and BGR order, that the released weights expect.
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
MEAN_COLOUR = (123, 117, 104)  # the same, RGB, rounded: padding becomes about zero after normalisation

_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Paired random mirror (horizontal, probability 1/2), scale (factor uniform in 0.5..1.5) and turn (by 0, 90, 180 or
    270 degrees, alike; where the wanted size is not square, by 0 or 180).

    After scaling, a window of the wanted size is taken at a random place; what lies outside the scaled image
    is grey, the mean colour, in the image and 255 in the label.
    """

    mirror: bool = False
    scale: bool = False
    turn: bool = False

    def __call__(
        self,
        image: Image.Image,
        label: np.ndarray,
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[Image.Image, np.ndarray]:
        """An RGB image of any size and a label (h,w) uint8 -> both at `size` (W,H).

        Image and label are resampled once, from their own sizes. All randomness comes from `rng`, and always
        as five draws, so that switching one augmentation on or off does not change the others.
        """
        factor, across, down, flip, turn = rng.random(5)
        if self.scale:
            scaled = round(size[0] * (0.5 + factor)), round(size[1] * (0.5 + factor))
            image, label = resize(image, label, (max(1, scaled[0]), max(1, scaled[1])))
            image, label = self._window(image, label, size, (across, down))
        else:
            image, label = resize(image, label, size)
        if self.mirror and flip < 0.5:
            image, label = _mirrored(image, label)
        if self.turn:
            image, label = _turned(image, label, int(turn * 4) if size[0] == size[1] else 2 * int(turn * 2))
        return image, label

    def _window(
        self,
        image: Image.Image,
        label: np.ndarray,
        size: tuple[int, int],
        place: tuple[float, float],
    ) -> tuple[Image.Image, np.ndarray]:
        """Crop or pad to `size`. `place`: where in the free range the scaled image lies, 0..1 in x and y."""
        offset = _offset(size[0] - image.width, place[0]), _offset(size[1] - image.height, place[1])
        canvas = Image.new("RGB", size, MEAN_COLOUR)
        canvas.paste(image, offset)  # a negative offset crops, a positive one pads
        label_canvas = Image.new("L", size, IGNORE)
        label_canvas.paste(Image.fromarray(label), offset)
        return canvas, np.array(label_canvas)


def _offset(free: int, place: float) -> int:
    """An integer uniform over 0..free (or free..0), from `place` uniform in [0, 1)."""
    return int(place * (abs(free) + 1)) * (1 if free >= 0 else -1)


def _mirrored(image: Image.Image, label: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), np.ascontiguousarray(label[:, ::-1])


def _turned(image: Image.Image, label: np.ndarray, quarters: int) -> tuple[Image.Image, np.ndarray]:
    """Both turned counterclockwise by `quarters` of a full turn, 0..3."""
    if quarters == 0:
        return image, label
    return image.transpose(_TURNS[quarters]), np.ascontiguousarray(np.rot90(label, quarters))


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """The channel order, mean and standard deviation that a network expects.

    mean, std: in the 0..255 range, in the channel order `order` ("BGR" or "RGB").
    """

    order: str = "BGR"
    mean: tuple[float, float, float] = MEAN_BGR
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.order not in ("BGR", "RGB"):
            raise DataError(f"channel order must be 'BGR' or 'RGB', found {self.order!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"mean and std need three values, std positive; found {self.mean} and {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """What travels with weights, in JSON's types."""
        return {"order": self.order, "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) uint8 RGB -> float32 of the same shape on the same device, normalised, in `order`."""
        ordered = images.flip(-3) if self.order == "BGR" else images
        mean, std = _constants(tuple(self.mean), tuple(self.std), images.device)
        return (ordered.to(torch.float32) - mean) / std


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """mean and std as (3,1,1) on the device, made once: a fresh copy every step would wait for the device."""
    shaped = [torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std)]
    return shaped[0], shaped[1]
