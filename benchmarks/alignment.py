"""The alignment of one iteration: banks, matching, AIM and ISIA, forward and backward (spec 3.1 to 3.4).

Three ways to the same losses and the same gradient: the project's own, the plain loop that pools each region once, and
the loop that pools again for every pair of regions, as published (`benchmarks.naive`). Stage 1 as released has no
pairs, so there the two loops are one.

Geometry: D channels, C classes, h w feature grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.naive import PooledOnce, Reference
from benchmarks.timing import Case
from model.bafft import BAFFT, Alignment
from model.deeplab import SegmentationNetwork, SegOutput

STUFF = (0, 1, 2, 3, 4, 8, 9, 10)
THINGS = (5, 6, 7, *range(11, 19))
NUM_CLASSES = len(STUFF) + len(THINGS)
STRIDE = 8  # of the features: label maps are as many times larger

MODES = {
    "stage 1 released": Alignment(),
    "stage 2 released": Alignment(aim="released", isia="released"),
    "both stages paper": Alignment(aim="adaptive", isia="paper"),
}
LOOPS: dict[str, type[Reference]] = {"pooled once": PooledOnce, "re-pooled per pair": Reference}


class Size(NamedTuple):
    """Of the features of an image: h, w, D."""

    height: int
    width: int
    dim: int


FULL = Size(65, 129, 2048)  # a target image of 1024x512 in the ResNet-101
QUICK = Size(33, 65, 512)


def cases(*, quick: bool, device: torch.device) -> Iterator[Case]:
    """Every mode of the alignment against every loop, an iteration each, on one source and one target image."""
    scene = Scene.random(QUICK if quick else FULL, device=device)
    for title, modes in MODES.items():
        for loop, reference in LOOPS.items():
            if modes.isia == "none" and reference is Reference:
                continue  # no pairs to pool again for
            yield Case(
                name=f"alignment, {title} / {loop}",
                fast=Fast(scene, modes).iteration,
                naive=Naive(scene, modes, reference).iteration,
                agree=agree,
            )


class Outcome(NamedTuple):
    """What an iteration gives: losses by name, and the gradient of their sum, (1, D, h, w)."""

    losses: dict[str, Tensor]
    gradient: Tensor

    @classmethod
    def of(cls, losses: dict[str, Tensor], features: Tensor) -> Outcome:
        """Runs backward."""
        (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), features)
        return cls({name: loss.detach() for name, loss in losses.items()}, gradient)


def agree(fast: Outcome, naive: Outcome) -> None:
    """AssertionError unless the losses that the loops know and the gradients are the same, up to float32."""
    for name, loss in naive.losses.items():
        torch.testing.assert_close(fast.losses[name], loss, rtol=1e-4, atol=1e-6, msg=f"the loss {name!r} differs")
    # As a norm: where a pooled channel meets its prototype in every digit, rounding chooses the gradient's sign.
    error = (fast.gradient - naive.gradient).norm() / naive.gradient.norm()
    assert error < 1e-3, f"the gradients differ by {float(error):.1%}"


class NearestMean(nn.Module):
    """Stands in for the network: a pooled vector belongs to the class whose mean (C, D) is closest."""

    means: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.num_classes, self.feature_dim = means.shape
        self.register_buffer("means", means)

    def classify(self, vectors: Tensor) -> Tensor:
        """(R, D) -> (R, C) logits."""
        return vectors @ self.means.T - self.means.square().sum(dim=1) / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A source and a target image, and what the banks held before; the same for every way to align them.

    source, target: features in channels_last, the target's with gradient, and logits; labels (1, H, W): the source's
    truth; memory: class id -> the vectors its bank was given, one more than it has slots.
    """

    network: NearestMean
    source: SegOutput
    labels: Tensor
    target: SegOutput
    memory: dict[int, Tensor]

    @classmethod
    def random(cls, size: Size, *, device: torch.device, seed: int = 0) -> Scene:
        """Bands of stuff under blobs of things; a twentieth of the source's pixels is predicted wrongly."""
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(NUM_CLASSES, size.dim, generator=generator)
        truth, target_map = (_label_map(size, rng) for _ in range(2))
        guess = np.where(rng.random(truth.shape) < 0.05, rng.integers(NUM_CLASSES, size=truth.shape), truth)

        def output(label_map: np.ndarray, shift: float) -> SegOutput:
            labels = torch.from_numpy(label_map)[None]
            noise = torch.randn(1, *label_map.shape, size.dim, generator=generator)
            features = (means[labels] + noise + shift).to(device).permute(0, 3, 1, 2)
            logits = nn.functional.one_hot(labels, NUM_CLASSES).permute(0, 3, 1, 2).float().to(device)
            return SegOutput(features, logits)

        target = output(target_map, 0.3)
        target.features.requires_grad_()
        slots = slots_of(Alignment())
        memory = {k: means[k] + torch.randn(slots[k] + 1, size.dim, generator=generator) / 10 for k in slots}
        return cls(
            network=NearestMean(means).to(device),
            source=output(guess, 0.0),
            labels=torch.from_numpy(np.kron(truth, np.ones((STRIDE, STRIDE), np.int64)))[None].to(device),
            target=target,
            memory={k: vectors.to(device) for k, vectors in memory.items()},
        )


def slots_of(modes: Alignment) -> dict[int, int]:
    """Class id -> K."""
    return dict.fromkeys(STUFF, modes.slots_stuff) | dict.fromkeys(THINGS, modes.slots_thing)


def _label_map(size: Size, rng: np.random.Generator) -> np.ndarray:
    """(h, w) class ids: every stuff class, and ten blobs of every thing class, which may touch or hide each other."""
    height, width = size.height, size.width
    grid = np.repeat(np.array(STUFF)[np.arange(height) * len(STUFF) // height], width).reshape(height, width)
    largest = max(height // 8, 1)
    for category in rng.permutation(np.repeat(THINGS, 10)):
        y, x = rng.integers(0, (height, width))
        h, w = rng.integers(1, largest, size=2, endpoint=True)
        grid[y : y + h, x : x + w] = category
    return grid


class Fast:
    """The project's own way."""

    def __init__(self, scene: Scene, modes: Alignment) -> None:
        self.scene = scene
        self.method = BAFFT(
            network=cast(SegmentationNetwork, scene.network),
            discriminator=nn.Identity(),
            stuff=STUFF,
            things=THINGS,
            alignment=modes,
        ).to(scene.labels.device)
        for bank in (self.method.stuff_bank, self.method.thing_bank):
            for category in bank.categories:
                vectors = scene.memory[category]
                bank.insert(vectors, torch.full((len(vectors),), category, device=vectors.device))
        # An iteration writes the same slots again if these are as before.
        self._counters = [bank.inserted for bank in (self.method.stuff_bank, self.method.thing_bank)]
        self._counters += self.method.adaptive.buffers()
        self._before = [counter.clone() for counter in self._counters]

    def iteration(self) -> Outcome:
        """One iteration, from the same state each time."""
        method, scene = self.method, self.scene
        for counter, before in zip(self._counters, self._before, strict=True):
            counter.copy_(before)
        source = method.view_source(scene.source, scene.labels)
        target = method.view_target(scene.target, scene.labels)
        _, described = method.observe_and_describe(source, target)
        method.observe_target(described)
        return Outcome.of(method.alignment_losses(described), scene.target.features)


class Naive:
    """A loop of the spec."""

    def __init__(self, scene: Scene, modes: Alignment, loop: type[Reference]) -> None:
        self.scene, self.modes, self.loop = scene, modes, loop

    def iteration(self) -> Outcome:
        """One iteration, from the same state each time."""
        scene, modes = self.scene, self.modes
        reference = self.loop(
            stuff=STUFF,
            things=THINGS,
            slots=slots_of(modes),
            instances=modes.instances,
            classify=lambda vector: int(scene.network.classify(vector[None]).argmax()),
            precision=torch.float32,
            inserts={k: list(vectors) for k, vectors in scene.memory.items()},
        )
        with torch.no_grad():
            reference.observe_source(scene.source.features, scene.source.logits.argmax(dim=1), scene.labels)
        return Outcome.of(self._losses(reference), scene.target.features)

    def _losses(self, reference: Reference) -> dict[str, Tensor]:
        features, label_maps = self.scene.target.features, self.scene.target.logits.argmax(dim=1)
        power = 2 if self.modes.aim == "released" else 1
        weights = None
        if self.modes.aim == "adaptive":
            reference.observe_target(features, label_maps)
            weights = reference.eta()
        losses = {
            "stuff": reference.matching_stuff(features, label_maps, power=power),
            "instances": reference.matching_instances(features, label_maps, weights=weights, power=power),
        }
        if self.modes.isia == "released":
            losses["separation"] = reference.separation_released(features, label_maps)
        if self.modes.isia == "paper":
            losses["separation"] = reference.separation(features, label_maps)
            losses["aggregation"] = reference.aggregation(features, label_maps)
        return losses
