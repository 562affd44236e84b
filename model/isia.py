"""ISIA: inter-class separation and intra-class aggregation (spec 3.4).

Source and target class centroids of the same class should meet (aggregation), those of different classes should part
(separation). Two forms of separation exist: the paper's, source against target over all classes, and that of the
released scripts, target stuff against target things.

Geometry: R regions, S stuff regions, B images, C classes, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.regions import Regions

MODES = ("none", "paper", "released")

RELEASED_SCALE = 500 / 2048
"""The literal factor of the released separation, whatever the number of slots or channels."""


def similarity(left: Tensor, right: Tensor) -> Tensor:
    """`D` of the paper: cosine mapped to [0, 1]; (M, D), (N, D) -> (M, N). A zero vector has similarity 1/2."""
    return (1 + _unit(left) @ _unit(right).T) / 2


def separation_released(
    vectors: Tensor, regions: Regions, *, stuff_valid: Tensor, instance_valid: Tensor, num_images: int
) -> Tensor:
    """Sum over stuff k and things m of one image of (1/n_m) sum_r (500/2048) (1 + cos(t_k, t_mr))/2 (spec 3.4).

    vectors (R, D) of the target's regions; stuff_valid (S,), instance_valid (instances,) bool. Gradient to both sides;
    averaged over the images.
    """
    stuff, things = regions.stuff, regions.instances
    together = regions.image[stuff][:, None] == regions.image[things][None, :]
    counted = together & stuff_valid[:, None] & instance_valid[None, :]
    cost = similarity(vectors[stuff], vectors[things]) / regions.siblings[things]
    return RELEASED_SCALE * torch.where(counted, cost, torch.zeros_like(cost)).sum() / num_images


class Centroids(NamedTuple):
    """Class centroids of a target batch: vectors (B, C, D) and whether the class is present (B, C)."""

    vectors: Tensor
    present: Tensor


def class_centroids(vectors: Tensor, regions: Regions, *, num_images: int, num_classes: int) -> Centroids:
    """c_t,k = GAP over all of an image's class-k pixels, from its regions' means and areas (no second pooling)."""
    row = regions.image * num_classes + regions.category
    area = regions.area.to(vectors.dtype)
    total = vectors.new_zeros(num_images * num_classes).index_add(0, row, area)
    sums = vectors.new_zeros(num_images * num_classes, vectors.shape[1]).index_add(0, row, vectors * area[:, None])
    means = sums / total.clamp(min=1)[:, None]
    return Centroids(means.view(num_images, num_classes, -1), (total > 0).view(num_images, num_classes))


def aggregation(source: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid classes of d(c_s,k, c_t,k), then over the images (spec 3.4, "paper").

    source (C, D), target (B, C, D), valid (B, C) bool. An image without a valid class counts as 0.
    """
    distance = (source - target).abs().mean(dim=2)
    return _masked_mean(distance, valid).mean()


def separation(source: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid ordered pairs i != k of (1 + cos(c_s,i, c_t,k))/2, then over the images (spec 3.4, "paper").

    source (C, D), target (B, C, D), valid (B, C) bool. An image without a valid pair counts as 0.
    """
    cosine = _unit(source) @ _unit(target).transpose(1, 2)  # (B, C source, C target)
    pair = valid[:, :, None] & valid[:, None, :]
    pair = pair & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return _masked_mean(((1 + cosine) / 2).flatten(1), pair.flatten(1)).mean()


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) scaled to length 1. A zero vector has no direction: it stays zero and passes no gradient."""
    return F.normalize(vectors, dim=-1).masked_fill((vectors == 0).all(dim=-1, keepdim=True), 0.0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its mask, 0 with no gradient for an empty mask: (B, N), (B, N) -> (B,)."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
