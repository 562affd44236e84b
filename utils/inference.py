"""Prediction as a stream: one pass of the network, whatever the consumer makes of it.

Validation, PNG export and pseudo labels all read from `predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.runtime import autocast, prefetch


class Prediction(NamedTuple):
    """One image: its name, float32 logits (C, h, w) on the feature grid, and its label (H, W) at native size (255
    throughout where the image has none; its size is the image's own)."""

    name: str
    logits: Tensor
    label: Tensor


@torch.no_grad()
def predict(
    network: nn.Module, loader: Iterable[Any], *, normalize: Callable[[Tensor], Tensor], precision: str = "fp32"
) -> Iterator[Prediction]:
    """Predict every image of a loader, in its order, in eval mode; the network's mode is restored after each batch."""
    device = next(network.parameters()).device

    def move(batch: Any) -> Any:  # labels stay: whoever compares with them does so on the host
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    for batch in prefetch(loader, move, device):
        images = normalize(batch.images).contiguous(memory_format=torch.channels_last)
        training = network.training
        network.eval()
        with autocast(device, precision):
            logits = network(images).logits
        network.train(training)
        for name, scores, label in zip(batch.names, logits.float(), batch.labels, strict=True):
            yield Prediction(name, scores, label)


def upsample(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=True (spec 1): (B, C, h, w) or (C, h, w) to `size` = (H, W), contiguous.

    What follows at full size reduces over the classes: from channels_last that takes two to four times as long.
    """
    batched = scores if scores.dim() == 4 else scores[None]
    resized = F.interpolate(batched.contiguous(), size=list(size), mode="bilinear", align_corners=True)
    return resized if scores.dim() == 4 else resized[0]
