"""AIM: adaptive-weighted instance matching, and the plain matching it grew from (spec 3.2, 3.3).

Every matching loss is one sum: a distance per region, times a weight, over the number of sibling regions. The modes
differ in the weight alone:

| mode     | weight of an instance of class k            | stuff   |
|----------|---------------------------------------------|---------|
| none     | 1 (SIM's L_ins)                             | 1       |
| fixed    | a constant per class                        | 1       |
| adaptive | eta_k, see `AdaptiveWeights`                | 1       |
| released | its own distance, not detached: d^2         | d, too  |

Geometry: R regions, C classes, B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MODES = ("none", "fixed", "adaptive", "released")


def matching(distance: Tensor, *, weight: Tensor, siblings: Tensor, num_images: int) -> Tensor:
    """Weighted matching loss, per image and averaged over the images.

    distance (R,): 0 where a region takes no part; weight (R,); siblings (R,): n_k of the region's class and image.
    With weight 1 and one sibling it is L_cls, with weight 1 L_ins (spec 3.2), with eta_k L_AIM (spec 3.3).
    """
    return (weight * distance / siblings).sum() / num_images


class AdaptiveWeights(nn.Module):
    """eta_k: how hard class k is to adapt, relative to the classes seen so far (spec 3.3, "adaptive").

    zeta_k is the exponential moving average of the class's own matching distance, started at the first one;
    eta_k = zeta_k / mean zeta over the classes seen. Both are free of gradient and part of every checkpoint.
    """

    zeta: Tensor
    seen: Tensor

    def __init__(self, *, num_classes: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("zeta", torch.zeros(num_classes))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, distance: Tensor, category: Tensor, siblings: Tensor, valid: Tensor) -> None:
        """Move zeta towards each class's distance: the mean over its instances, then over its images.

        distance, category, siblings, valid: (R,), of a batch; an invalid region does not count.
        """
        share = torch.where(valid, 1.0 / siblings, torch.zeros_like(distance))  # sums to 1 per class and image
        zero = torch.zeros_like(self.zeta)
        images = zero.index_add(0, category, share)
        mean = zero.index_add(0, category, share * distance) / images.clamp(min=1e-12)
        present = images > 0
        moved = torch.where(self.seen, self.momentum * self.zeta + (1 - self.momentum) * mean, mean)
        self.zeta.copy_(torch.where(present, moved, self.zeta))
        self.seen |= present

    def forward(self) -> Tensor:
        """eta (C,): 1 on average over the classes seen; 1 for a class not seen, and where every zeta is 0."""
        mean = self.zeta.sum() / self.seen.sum().clamp(min=1)
        return torch.where(self.seen & (mean > 0), self.zeta / mean.clamp(min=1e-12), torch.ones_like(self.zeta))


def instance_weights(mode: str, distance: Tensor, category: Tensor, *, per_class: Tensor) -> Tensor:
    """The weight of each instance (R,) under `mode`; per_class (C,) serves `fixed` and `adaptive`."""
    if mode == "released":
        return distance
    if mode == "none":
        return torch.ones_like(distance)
    return per_class[category]


def fixed_weights(values: Sequence[float], *, num_classes: int) -> Tensor:
    """Constant weights per class id (C,). Raises ValueError unless there is exactly one per class."""
    if len(values) != num_classes:
        raise ValueError(f"AIM with fixed weights needs one weight per class: {num_classes}, not {len(values)}")
    return torch.tensor(values, dtype=torch.float32)
