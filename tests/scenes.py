"""Small random worlds, told twice: to the fast method and to the naive reference."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.alignment import NearestMean
from model.bafft import BAFFT, Alignment
from model.deeplab import SegmentationNetwork, SegOutput

STUFF, THINGS, NEITHER = (3, 0), (1, 5, 4), 2
NUM_CLASSES, DIM = 6, 8
GRID, SIZE = (9, 13), (31, 40)

# Fixed seeds, because of near-ties: once in a million queries float32 chooses another prototype than float64.
seeded = pytest.mark.parametrize("seed", range(16))


def draw(seed: int, *limits: int) -> list[int]:
    """One number from 1 up to each limit, inclusive."""
    return np.random.default_rng([seed, 1]).integers(1, limits, endpoint=True).tolist()


class Target(NamedTuple):
    """A target batch: features (B, D, h, w) that want a gradient, label maps (B, h, w), pseudo labels (B, H, W)."""

    features: Tensor
    prediction: Tensor
    pseudo: Tensor

    @property
    def output(self) -> SegOutput:
        """The target as the network would give it."""
        return SegOutput(self.features, logits_of(self.prediction))


class World:
    """A method and its reference, fed with the same random batches.

    The grids are noisy enough that some predictions and some pooled vectors are wrong, that classes have more
    components than count, and that one observation can hold more vectors than a ring.
    """

    def __init__(self, seed: int, **alignment: Any) -> None:
        self.rng = np.random.default_rng(seed)
        settings = Alignment(**{"instances": 3, "slots_stuff": 2, "slots_thing": 4, **alignment})
        self.means = self.rng.normal(size=(NUM_CLASSES, DIM)).astype(np.float32)
        network = NearestMean(torch.from_numpy(self.means))
        self.method = BAFFT(
            network=cast(SegmentationNetwork, network),
            discriminator=nn.Conv2d(NUM_CLASSES, 1, 3),
            stuff=STUFF,
            things=THINGS,
            alignment=settings,
        )
        slots = {k: settings.slots_stuff for k in STUFF} | {k: settings.slots_thing for k in THINGS}
        self.reference = naive.Reference(
            stuff=STUFF,
            things=THINGS,
            slots=slots,
            instances=settings.instances,
            classify=lambda vector: int(network.classify(vector[None].float()).argmax()),
        )

    def observe(self, steps: int, batch: int = 2) -> World:
        """Show `steps` source batches to both."""
        for _ in range(steps):
            features, prediction, labels = self.source(batch)
            self.method.observe_source(SegOutput(features, logits_of(prediction)), labels)
            self.reference.observe_source(features, prediction, labels)
        return self

    def source(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, D, h, w), prediction (B, h, w), ground truth (B, H, W) of which a tenth is ignored."""
        labels = self._labels((batch, *SIZE), range(NUM_CLASSES))
        truth = naive.resize_nearest(torch.from_numpy(labels), GRID).numpy()
        guess = self._labels(truth.shape, range(NUM_CLASSES), ignored=0.0)
        prediction = np.where((truth == naive.IGNORE) | (self.rng.random(truth.shape) < 0.2), guess, truth)
        features = self._features(prediction, shift=0.0)
        return features, torch.from_numpy(prediction), torch.from_numpy(labels)

    def target(self, batch: int = 2, categories: Any = range(NUM_CLASSES)) -> Target:
        """A target batch that predicts the given categories only; half of its pseudo labels are ignored."""
        prediction = self._labels((batch, *GRID), categories, ignored=0.0)
        pseudo = self._labels((batch, *SIZE), categories, ignored=0.5)
        features = self._features(prediction, shift=0.3).requires_grad_()
        return Target(features, torch.from_numpy(prediction), torch.from_numpy(pseudo))

    def some_categories(self) -> list[int]:
        """Most of the classes, at least one."""
        return [int(self.rng.integers(NUM_CLASSES)), *np.flatnonzero(self.rng.random(NUM_CLASSES) < 0.6).tolist()]

    def _labels(self, shape: tuple[int, ...], categories: Any, *, ignored: float = 0.1) -> np.ndarray:
        labels = self.rng.choice(list(categories), shape)
        return np.where(self.rng.random(shape) < ignored, naive.IGNORE, labels)

    def _features(self, labels: np.ndarray, *, shift: float) -> Tensor:
        means = np.moveaxis(self.means[labels], -1, 1)
        return torch.from_numpy((means + self.rng.normal(shift, 2.0, means.shape)).astype(np.float32))


def logits_of(prediction: Tensor) -> Tensor:
    """Logits (B, C, h, w) whose argmax is the prediction (B, h, w), by a margin that varies."""
    one_hot = nn.functional.one_hot(prediction, NUM_CLASSES).movedim(-1, 1).float()
    return one_hot * (1 + prediction[:, None] / NUM_CLASSES)


def losses_of(world: World, target: Target) -> dict[str, Tensor]:
    """The fast alignment losses of a target batch."""
    return world.method.alignment_losses(world.method.describe_target(target.output, target.pseudo))


def gradient(loss: Tensor, features: Tensor) -> Tensor:
    """d loss / d features, kept for further calls."""
    return torch.autograd.grad(loss, features, retain_graph=True)[0]


def assert_same(fast: Tensor, slow: Tensor, features: Tensor) -> None:
    """Equal value and equal gradient with respect to the features, up to float32."""
    torch.testing.assert_close(fast, slow.float(), rtol=1e-5, atol=1e-6)
    expected = gradient(slow, features)
    torch.testing.assert_close(gradient(fast, features), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def assert_nothing(loss: Tensor, features: Tensor) -> None:
    """Exactly 0, with an exactly zero gradient that does reach the features."""
    assert loss.item() == 0
    found = gradient(loss, features)
    assert found.isfinite().all()
    assert not found.any()
