"""Random changes of colour and sharpness, so that a student does not see what its teacher saw."""

from __future__ import annotations

import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor

STRENGTH = 0.2  # of brightness, contrast and saturation, as factors around 1
HUE = 0.05  # turns of the colour circle, either way
SIGMA = (0.15, 1.15)  # of the blur, in pixels, which half of the images get


def photometric(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) uint8 RGB with their own brightness, contrast, saturation, hue and blur each."""
    return torch.stack([_changed(image, torch.rand(6, generator=generator).tolist()) for image in images])


def _changed(image: Tensor, draws: list[float]) -> Tensor:
    brightness, contrast, saturation = (1 + STRENGTH * (2 * draw - 1) for draw in draws[:3])
    image = T.adjust_saturation(T.adjust_contrast(T.adjust_brightness(image, brightness), contrast), saturation)
    image = T.adjust_hue(image, HUE * (2 * draws[3] - 1))
    if draws[4] < 0.5:
        image = T.gaussian_blur(image, [5, 5], [SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[5]])
    return image
