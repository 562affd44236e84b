"""The patch discriminator of output-space adversarial adaptation (Tsai et al., CVPR 2018; spec section 2)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Five 4x4 convolutions of stride 2, LeakyReLU(0.2) between them, no norm; state dict as released."""

    name = "discriminator"

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        """width: channels of the first convolution, the others in proportion; 64 is the published network."""
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        self.conv1 = _halve(num_classes, width)
        self.conv2 = _halve(width, 2 * width)
        self.conv3 = _halve(2 * width, 4 * width)
        self.conv4 = _halve(4 * width, 8 * width)
        self.classifier = _halve(8 * width, 1)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Softmax output (B, C, H, W) -> one domain logit per patch (B, 1, H/32, W/32); H, W at least 32."""
        x = probabilities
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(conv(x), 0.2, inplace=True)
        return self.classifier(x)

    def architecture(self) -> dict[str, Any]:
        """Plain values that rebuild the discriminator (without its weights)."""
        return {"name": self.name, "num_classes": self.num_classes, "width": self.width}


def _halve(channels: int, planes: int) -> nn.Conv2d:
    return nn.Conv2d(channels, planes, 4, stride=2, padding=1)
