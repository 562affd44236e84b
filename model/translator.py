"""CycleGAN, an unpaired translator between two domains' images (Zhu et al., ICCV 2017), with the semantic-consistency
loss of bidirectional learning (Li et al., CVPR 2019).

B images of H x W pixels, RGB within -1..1. Two generators, two discriminators of patches, and the losses as pure
functions; who weighs them and calls backward is utils/cyclegan.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SIZE = 8  # pixels a side that a generator can halve twice and still normalise

Segmenter = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> class logits (B, C, h, w)."""


class Generator(nn.Module):
    """7x7 convolution, two of stride 2, residual blocks, and back up (section 7.1 of the paper).

    Reflection padding and instance norm throughout. A nearest enlargement with a 3x3 convolution takes the place of
    each transposed convolution: it leaves no checkerboard, and fits sides that are no multiples of four.
    """

    def __init__(self, *, width: int = 64, blocks: int = 9) -> None:
        """width: channels at full size, four times as many in the residual blocks."""
        super().__init__()
        self.stem = _layer(3, width, kernel=7)
        self.down = nn.ModuleList([_layer(width, 2 * width, stride=2), _layer(2 * width, 4 * width, stride=2)])
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))
        self.up = nn.ModuleList([_layer(4 * width, 2 * width), _layer(2 * width, width)])
        self.head = _convolution(width, 3, kernel=7)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape within -1..1; H, W at least `LEAST_SIZE`."""
        x = self.stem(images)
        sizes = []
        for layer in self.down:
            sizes.append(x.shape[-2:])
            x = layer(x)
        x = self.blocks(x)
        for layer in self.up:
            x = layer(F.interpolate(x, size=sizes.pop(), mode="nearest"))
        return torch.tanh(self.head(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _layer(channels, channels)
        self.second = nn.Sequential(_convolution(channels, channels), nn.InstanceNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same shape."""
        return x + self.second(self.first(x))


class PatchDiscriminator(nn.Sequential):
    """Real or translated, for every patch of 70x70 pixels: 4x4 convolutions, three of stride 2, then two of stride 1.

    Unlike the output-space `Discriminator`, which halves five times and has no norm, it answers for every eighth pixel:
    (B, 3, H, W) -> (B, 1, about H/8, about W/8); H, W at least 32.
    """

    def __init__(self, *, width: int = 64) -> None:
        """width: channels of the first convolution, up to eight times as many in the fourth."""
        super().__init__(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            *_judging(width, 2 * width, stride=2),
            *_judging(2 * width, 4 * width, stride=2),
            *_judging(4 * width, 8 * width, stride=1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )


class ImagePool(nn.Module):
    """Translated images of earlier updates, of which a discriminator sees some again (section 4 of the paper).

    A buffer, so that it survives a restart; its draws are torch's own. `size` 0 keeps none.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, size: int, *, crop: tuple[int, int]) -> None:
        """crop: (W, H) of the images."""
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, 3, crop[1], crop[0]))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def swap(self, images: Tensor) -> Tensor:
        """Take (B, 3, H, W) in and return as many: while the pool fills these very images, then each with probability
        1/2 one drawn from the pool, whose place it takes."""
        if self.size == 0:
            return images
        return torch.stack([self._swap(image) for image in images.to(self.images.dtype)])

    def _swap(self, image: Tensor) -> Tensor:
        filled = int(self.filled)
        if filled < self.size:
            self.images[filled] = image
            self.filled += 1
            return image
        if torch.rand(()) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        drawn = self.images[place].clone()
        self.images[place] = image
        return drawn


class CycleGAN(nn.Module):
    """Both directions: generators `to_target` and `to_source`, discriminators and pools of either domain."""

    def __init__(self, *, width: int, blocks: int, discriminator_width: int, pool: int, crop: tuple[int, int]) -> None:
        """pool: earlier images kept per domain; crop: (W, H) of the training images."""
        super().__init__()
        self.to_target = Generator(width=width, blocks=blocks)
        self.to_source = Generator(width=width, blocks=blocks)
        self.judge_target = PatchDiscriminator(width=discriminator_width)
        self.judge_source = PatchDiscriminator(width=discriminator_width)
        self.pool_target = ImagePool(pool, crop=crop)
        self.pool_source = ImagePool(pool, crop=crop)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:  # as the paper says
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)

    def generators(self) -> list[nn.Parameter]:
        """What the generators' optimiser moves."""
        return [*self.to_target.parameters(), *self.to_source.parameters()]

    def judges(self) -> nn.ModuleList:
        """Both discriminators."""
        return nn.ModuleList([self.judge_target, self.judge_source])

    def generator_losses(
        self, source: Tensor, target: Tensor, *, identity: bool = True, segment: Segmenter | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What the generators are to lower, for (B, 3, H, W) of each domain, both directions summed.

        adv: the discriminator of the other domain takes a translation for real. cycle: there and back is the image
        itself, in L1. identity: an image that is of the wanted domain already stays as it is, in L1. semantic:
        `semantic_consistency` of source to target, where there is a segmenter. Also returns the translations towards
        target and towards source.
        """
        fake_target, fake_source = self.to_target(source), self.to_source(target)
        losses = {
            "adv": least_squares(self.judge_target(fake_target), 1.0)
            + least_squares(self.judge_source(fake_source), 1.0),
            "cycle": F.l1_loss(self.to_source(fake_target).float(), source)
            + F.l1_loss(self.to_target(fake_source).float(), target),
        }
        if identity:
            losses["identity"] = F.l1_loss(self.to_target(target).float(), target) + F.l1_loss(
                self.to_source(source).float(), source
            )
        if segment is not None:
            with torch.no_grad():
                before = segment(source)
            losses["semantic"] = semantic_consistency(before, segment(fake_target))
        return losses, fake_target, fake_source

    def discriminator_losses(
        self, source: Tensor, target: Tensor, fake_target: Tensor, fake_source: Tensor
    ) -> dict[str, Tensor]:
        """What the discriminators are to lower, each halved against the generators; translations go through the pools.

        Translations (B, 3, H, W) must be detached.
        """
        fake_target, fake_source = self.pool_target.swap(fake_target), self.pool_source.swap(fake_source)
        return {
            "judge_target": _judged(self.judge_target, real=target, fake=fake_target),
            "judge_source": _judged(self.judge_source, real=source, fake=fake_source),
        }


def least_squares(scores: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of patch scores from what they should be, 1 for real and 0 for translated (LSGAN)."""
    return (scores.float() - wanted).square().mean()


def semantic_consistency(before: Tensor, after: Tensor) -> Tensor:
    """How far the segmenter's opinion moves: the mean over pixels of KL(softmax(before) || softmax(after)), in nats.

    before, after: logits (B, C, h, w) of the image and of its translation; gradient goes through `after` alone. (The
    paper compares the two outputs in L1; cross-entropy's own distance does not fade where both are unsure.)
    """
    wanted = F.log_softmax(before.detach().float(), dim=1)
    found = F.log_softmax(after.float(), dim=1)
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=1).mean()


def to_unit(images: Tensor) -> Tensor:
    """uint8 within 0..255 -> float32 within -1..1, any shape."""
    return images.to(torch.float32) / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """-1..1 -> uint8 within 0..255, rounded, any shape."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _judged(judge: nn.Module, *, real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (least_squares(judge(real), 1.0) + least_squares(judge(fake), 0.0))


def _convolution(channels: int, planes: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, planes, kernel, stride=stride, padding=kernel // 2, padding_mode="reflect")


def _layer(channels: int, planes: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = _convolution(channels, planes, kernel=kernel, stride=stride)
    return nn.Sequential(convolution, nn.InstanceNorm2d(planes), nn.ReLU(inplace=True))


def _judging(channels: int, planes: int, *, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, planes, 4, stride=stride, padding=1)
    return convolution, nn.InstanceNorm2d(planes), nn.LeakyReLU(0.2, inplace=True)
