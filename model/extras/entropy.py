"""Entropy minimisation (Vu et al., ADVENT, CVPR 2019, Eq. 4)."""

from __future__ import annotations

import math

from torch import Tensor


def entropy(log_probabilities: Tensor) -> Tensor:
    """Mean over pixels of the entropy of (B, C, H, W) log probabilities, divided by log C: 0 (sure) to 1 (uniform)."""
    per_pixel = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    return per_pixel.mean() / math.log(log_probabilities.shape[1])
