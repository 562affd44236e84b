"""The teacher: a moving average of the network, whose labels are steadier than the network's own.

Tarvainen & Valpola, *Mean teachers are better role models*, NeurIPS 2017; weights by image as in Tranheden et al.,
DACS, WACV 2021, by pixel as in Sohn et al., FixMatch, NeurIPS 2020.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from model.deeplab import SegmentationNetwork, SegOutput


class TeacherLabels(NamedTuple):
    """What a teacher says of a batch: labels (B, H, W) int64, and weights (B, H, W) in 0..1."""

    labels: Tensor
    weights: Tensor


class Teacher(torch.nn.Module):
    """An average of the network over its updates, always in eval mode and without gradient.

    momentum: how much of the average an update keeps; less at first, so that the random start is soon forgotten.
    """

    updates: Tensor

    def __init__(self, network: SegmentationNetwork, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Teacher:
        """A teacher does not train: it stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, network: SegmentationNetwork) -> None:
        """Move towards the network after an update of it; batch-norm statistics are averages already and are copied."""
        self.updates += 1
        keep = torch.clamp(1 - 1 / (self.updates + 1), max=self.momentum)
        own = dict(self.network.named_parameters())
        for name, parameter in network.named_parameters():
            own[name].lerp_(parameter, (1 - keep).to(parameter.dtype))
        buffers = dict(self.network.named_buffers())
        for name, buffer in network.named_buffers():
            buffers[name].copy_(buffer)

    @torch.no_grad()
    def forward(self, images: Tensor) -> SegOutput:
        """Normalised images (B, 3, H, W) -> what the averaged network makes of them."""
        return self.network(images)


def confident(confidence: Tensor, labels: Tensor, *, threshold: float, weighted_by: str = "image") -> TeacherLabels:
    """Pseudo labels that weigh as much as they are certain, above the threshold.

    confidence (B, H, W): probability of the label (B, H, W). weighted_by: "pixel", 1 where the pixel is certain, else 0
    (FixMatch); "image", the share of the image's pixels that are (DACS). Where the confidence is NaN the label is none:
    there it becomes class 0 and its weight NaN, so that the loss shows what happened.
    """
    unknown = confidence.isnan()
    labels = labels.masked_fill(unknown, 0)
    certain = torch.where(unknown, confidence, (confidence > threshold).to(confidence.dtype))
    if weighted_by == "pixel":
        return TeacherLabels(labels, certain)
    return TeacherLabels(labels, certain.mean(dim=(1, 2), keepdim=True).expand_as(confidence))
