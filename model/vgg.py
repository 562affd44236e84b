"""VGG-16 with the DeepLab head (spec section 2): evaluates the released VGG weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from model.deeplab import Head, SegmentationNetwork, initialise_convolutions

# (channels in units of `width`, dilation) of each 3x3 convolution, "pool" for a 2x2 max-pool. The published
# VGG-16 pools twice more, before and after its last block: these two pools are gone, what follows is dilated.
LAYERS: tuple[tuple[int, int] | str, ...] = (
    *((1, 1), (1, 1), "pool"),
    *((2, 1), (2, 1), "pool"),
    *((4, 1), (4, 1), (4, 1), "pool"),
    *((8, 1), (8, 1), (8, 1)),
    *((8, 2), (8, 2), (8, 2)),
    *((16, 4), (16, 4)),  # fc6, fc7
)


class VGG16(SegmentationNetwork):
    """conv1-conv5, fc6, fc7 (all in `features`), the head `classifier` on 1024 channels; output stride 8."""

    head_name = "classifier"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        layers: list[nn.Module] = []
        channels = 3
        for layer in LAYERS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2, stride=2))
                continue
            planes, dilation = layer[0] * self.width, layer[1]
            layers.append(nn.Conv2d(channels, planes, 3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            channels = planes
        self.features = nn.Sequential(*layers)
        initialise_convolutions(self)
        self.classifier = Head(channels, self.num_classes, branches=self.branches)
        self._finish(channels)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> fc7's features (B, D, H/8, W/8)."""
        return self.features(images)
