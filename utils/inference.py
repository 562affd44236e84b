"""Prediction as a stream: one pass of the network, whatever the consumer makes of it.

Validation, PNG export and pseudo labels all read from `predict`; whoever brings images of their own calls `scores`, and
who wants features or gradients `output_of`.

Geometry: B images, C classes, (H, W) the input size, (h, w) the feature grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.nonfinite import NOT_NUMBERS, NonFiniteError
from utils.runtime import autocast, prefetch
from utils.strips import class_map

Output = TypeVar("Output")


class Prediction(NamedTuple):
    """One image: its name, float32 logits (C, h, w) on the feature grid, and its label (H, W) at native size (255
    throughout where the image has none; its size is the image's own)."""

    name: str
    logits: Tensor
    label: Tensor

    def classes(self) -> npt.NDArray[np.uint8]:
        """The train ids (H, W) at the label's size, on the host."""
        return class_map(self.logits, self.label.shape[-2:]).cpu().numpy()


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: what the network is shown of an image. scales: factors of the input size, above 0; flip:
    the mirror image, too. The default is the image as it is."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing but the image as it is."""
        return self.scales == (1.0,) and not self.flip


PLAIN = Views()
LEAST_SIDE = 32  # of what a network is shown: its features have a stride of 8 or 16


@torch.no_grad()
def predict(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    normalize: Callable[[Tensor], Tensor],
    precision: str = "fp32",
    views: Views = PLAIN,
) -> Iterator[Prediction]:
    """Predict every image of a loader, in its order, in eval mode; the network's mode is restored after each batch.

    Raises NonFiniteError for scores that are no numbers, of which there would be a class all the same.
    """
    device = next(network.parameters()).device

    def move(batch: Any) -> Any:  # labels stay: whoever compares with them does so on the host
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    for batch in prefetch(loader, move, device):
        training = network.training
        network.eval()
        logits = scores(network, batch.images, normalize=normalize, precision=precision, views=views)
        network.train(training)
        finite = logits.isfinite().flatten(1).all(dim=1).tolist()
        for name, item, label, sound in zip(batch.names, logits, batch.labels, finite, strict=True):
            if not sound:
                raise NonFiniteError(f"{name}: {NOT_NUMBERS}")
            yield Prediction(name, item, label)


@torch.no_grad()
def scores(
    network: nn.Module,
    images: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    precision: str = "fp32",
    views: Views = PLAIN,
) -> Tensor:
    """(B, 3, H, W) uint8 RGB on the network's device -> float32 logits (B, C, h, w). The network is in eval mode.

    Of several views the probabilities are averaged, on the feature grid of the largest; their logarithm is returned,
    which is what softmax turns back into them.
    """

    def answer(shown: Tensor) -> Tensor:
        return output_of(network, shown, normalize=normalize, precision=precision).logits.float()

    if views.plain:
        return answer(images)
    total: Tensor | None = None
    for scale in sorted(views.scales, reverse=True):
        shown = _scaled(images, scale)
        for mirrored in (False, True) if views.flip else (False,):
            logits = answer(shown.flip(-1)).flip(-1) if mirrored else answer(shown)
            grid = logits.shape[-2:] if total is None else total.shape[-2:]
            probabilities = upsample(logits, grid).softmax(dim=1)
            total = probabilities if total is None else total + probabilities
    assert total is not None
    mean = total / (len(views.scales) * (1 + views.flip))
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def output_of(
    network: Callable[[Tensor], Output], images: Tensor, *, normalize: Callable[[Tensor], Tensor], precision: str
) -> Output:
    """What a segmentation network makes of images (B, 3, H, W) RGB on its device, uint8 or float in 0..255.

    The one way from pixels to features, in training and without; mode and gradients are the caller's.
    """
    shown = normalize(images).contiguous(memory_format=torch.channels_last)
    with autocast(shown.device, precision):
        return network(shown)


def _scaled(images: Tensor, scale: float) -> Tensor:
    """The images at a multiple of their size, bicubic with antialiasing as the loader resizes, in 0..255."""
    if scale == 1.0:
        return images
    size = [max(LEAST_SIDE, round(side * scale)) for side in images.shape[-2:]]
    resized = F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp_(0, 255)


def upsample(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=True (spec 1): (B, C, h, w) or (C, h, w) to `size` = (H, W), contiguous.

    What follows at full size reduces over the classes: from channels_last that takes two to four times as long.
    """
    batched = scores if scores.dim() == 4 else scores[None]
    resized = F.interpolate(batched.contiguous(), size=list(size), mode="bilinear", align_corners=True)
    return resized if scores.dim() == 4 else resized[0]
