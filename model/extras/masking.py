"""Masked image consistency (Hoyer et al., MIC, CVPR 2023): what is covered has to be told from its surroundings."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked(images: Tensor, *, block: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) uint8 with blocks of `block` pixels covered by the image's mean colour, each with
    probability `ratio`."""
    batch, _, height, width = images.shape
    grid = (batch, 1, math.ceil(height / block), math.ceil(width / block))
    covered = (torch.rand(grid, generator=generator) < ratio).to(images.device, non_blocking=True)
    covered = covered.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[..., :height, :width]
    mean = images.to(torch.float32).mean(dim=(2, 3), keepdim=True).round().to(images.dtype)
    return torch.where(covered, mean, images)
