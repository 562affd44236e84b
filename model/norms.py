"""A norm whose output tells its input: what inplace-abn computes, with and without that package."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of the leaky ReLU: inplace-abn's own default


class InvertibleNorm(nn.BatchNorm2d):
    """Batch norm with scale |weight| + eps, then a leaky ReLU: what inplace-abn computes, and what has an inverse.

    `in_place` is the package's function. Where it is None the same is computed out of place, so that trained weights
    can be used where the package does not compile.
    """

    in_place: Callable[..., Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape. In place, what was in `input` is gone."""
        mean, var = self.running_mean, self.running_var
        if self.training and not self.track_running_stats:
            mean = var = None
        elif self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.in_place is None:
            scale = self.weight.abs() + self.eps
            normalised = F.batch_norm(input, mean, var, scale, self.bias, self.training, self.momentum or 0.0, self.eps)
            return F.leaky_relu(normalised, SLOPE, inplace=True)
        return self.in_place(
            input,
            *(self.weight, self.bias, mean, var),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            activation="leaky_relu",
            activation_param=SLOPE,
        )


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU of a norm of x, in place behind the norm; an `InvertibleNorm` has an activation of its own."""
    out = norm(x)
    return out if isinstance(norm, InvertibleNorm) else F.relu(out, inplace=True)
