"""ClassMix: half of the classes of a source image, pasted on a target image.

Olsson et al., WACV 2021; between domains as in Tranheden et al., DACS, WACV 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.regions import IGNORE


def pasted(labels: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
    """Which pixels of each source image are pasted (B, H, W) bool: those of half of its classes, drawn at random.

    labels (B, H, W) int64; of an odd number of classes the larger half. Ignored pixels are never pasted. The draw is
    made on the host and the rest on the labels' device, which nothing waits for.
    """
    flat = labels.flatten(1)
    present = torch.zeros(len(flat), IGNORE + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, flat, torch.ones_like(flat, dtype=torch.bool))
    present = present[:, :num_classes]
    draws = torch.rand(present.shape, generator=generator).to(labels.device, non_blocking=True)
    order = draws.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)  # absent classes come last
    chosen = present & (order < (present.sum(dim=1, keepdim=True) + 1) // 2)
    nothing = chosen.new_zeros(len(chosen), IGNORE + 1 - num_classes)
    return torch.cat([chosen, nothing], dim=1).gather(1, flat).view_as(labels)


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """`source` where mask (B, H, W), else `target`; both (B, H, W) or (B, D, H, W)."""
    return torch.where(mask if source.dim() == 3 else mask[:, None], source, target)
