"""A whole iteration, as the engine makes it, and as one would write it down from the spec: eager, float32, contiguous.

Networks and images are random and the learning rates 0, so that every call starts from the same state: optimisers do
all their work and move nothing. `python -m benchmarks.profile` takes an iteration apart.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.naive import Reference
from benchmarks.timing import Case
from dataset.loading import Batch
from model.bafft import ALIGNMENT_LOSSES, BAFFT
from utils import datasets, networks
from utils.config import DEFAULT_CONFIG, PRECISIONS, Config, Stage, build_config, override, read_config
from utils.console import say
from utils.engine import Losses, Pair, TrainState, UpdateRule, frozen, train_step
from utils.inference import upsample
from utils.runtime import DTYPES, compile_network, seed_everything, tune_kernels

Shape = Sequence[int]
QUICK = {
    "source.size": [128, 64],
    "target.size": [128, 64],
    "model.name": "resnet18",
    "model.branches": 2,
    "model.output_stride": 8,
    "model.feature_strides": [],
    "model.width": 16,
    "model.discriminator_width": 16,
}


def cases(*, quick: bool, device: torch.device) -> Iterator[Case]:
    """Stage 2 as released, in each precision that the device is made for, against plain float32."""
    for precision in PRECISIONS if device.type == "cuda" else ("fp32",):
        config = published(quick=quick, precision=precision)
        ours = Iteration.random(config, "step2", device)
        agree = _agree if precision == "fp32" else None
        repeats = 5 if quick or device.type == "cuda" else 3
        loops: dict[str, type[Reference] | None] = {"plain": None}
        if precision == "fp32":
            loops["plain, re-pooled per pair"] = Reference
        for title, loop in loops.items():
            plain = PlainIteration(Iteration.random(config, "step2", device), loop)
            name = f"iteration, stage 2, {precision} / {title}"
            yield Case(name=name, fast=ours.run, naive=plain.run, repeats=repeats, agree=agree)
        if device.type == "cuda":
            say(f"{name}: {Utilisation.of(ours, seconds_of(ours.run, device))}")


def published(*, quick: bool = False, precision: str = "fp32") -> Config:
    """The released recipe at its own sizes, or at small ones."""
    data = read_config(DEFAULT_CONFIG)
    for path, value in {"run.precision": precision, **(QUICK if quick else {})}.items():
        override(data, path, value)
    return build_config(data, where=str(DEFAULT_CONFIG))


@dataclass(kw_only=True)
class Iteration:
    """What one update needs, and the memory of the method as it was before."""

    config: Config
    stage: Stage
    state: TrainState
    rule: UpdateRule
    batches: Sequence[Pair]
    memory: dict[str, dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        memory = self.state.method.memory()
        self.memory = {part: {name: value.clone() for name, value in state.items()} for part, state in memory.items()}

    @classmethod
    def random(cls, config: Config, section: str, device: torch.device) -> Iteration:
        """A stage of a configuration with random weights, random images of its sizes, and full banks."""
        stage, classes = getattr(config, section), datasets.class_table(config)
        seed_everything(0)
        tune_kernels(device)
        network, normalize, _ = networks.initial_network("random", config, classes, device)
        if config.run.compile:
            compile_network(network, device)
        method = networks.build_method(network, classes, config, stage, device)
        for bank in (method.stuff_bank, method.thing_bank):
            bank.prototypes.normal_()
            bank.inserted.fill_(bank.slots + 1)
        state = TrainState.fresh(method, stage, device=device, precision=config.run.precision)
        for group in (*state.optimizer.param_groups, *state.optimizer_d.param_groups):
            group["lr"] = 0.0
        method.train()
        rule = UpdateRule.of(config, stage, normalize)
        sizes = [datasets.input_size(config, domain) for domain in ("source", "target")]
        rng = np.random.default_rng(0)

        def pair() -> Pair:
            source, target = (_batch(rng, size, stage.batch_size, classes.num_classes, device) for size in sizes)
            return source, target

        pairs = [pair() for _ in range(stage.iter_size)]
        return cls(config=config, stage=stage, state=state, rule=rule, batches=pairs)

    @property
    def images(self) -> int:
        """How many images an update sees."""
        return sum(len(batch.names) for pair in self.batches for batch in pair if batch is not None)

    def run(self) -> Losses:
        """One update, from the same state each time."""
        self.state.method.load_memory(self.memory)
        return train_step(self.state, self.rule, self.batches)


def _batch(
    rng: np.random.Generator, size: tuple[int, int], count: int, num_classes: int, device: torch.device
) -> Batch:
    """Blocks of random classes, some without a label, and images whose colours follow them; pinned for CUDA."""
    width, height = size
    side = 16
    coarse = rng.integers(num_classes + 1, size=(count, -(-height // side), -(-width // side)))
    labels = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
    colours = rng.integers(30, 226, size=(num_classes + 1, 3))
    pixels = colours[labels] + rng.integers(-25, 26, size=(*labels.shape, 3))
    images = torch.from_numpy(pixels.astype(np.uint8)).permute(0, 3, 1, 2)
    truth = torch.from_numpy(np.where(labels < num_classes, labels, 255).astype(np.uint8))
    if device.type == "cuda":
        images, truth = images.pin_memory(), truth.pin_memory()
    return Batch(images, truth, [f"image {number}" for number in range(count)])


class PlainIteration:
    """The iteration of spec 1, written down without regard to speed; its losses are the engine's.

    Float32 in the usual layout, images normalised before they are copied, a softmax for whoever wants one, optimisers
    parameter by parameter. `loop` replaces the alignment, too.
    """

    def __init__(self, iteration: Iteration, loop: type[Reference] | None) -> None:
        self.iteration, self.loop = iteration, loop
        method = iteration.state.method
        method.to(memory_format=torch.contiguous_format)
        stage, parameters = iteration.stage, iteration.state.optimizer.param_groups
        groups = [{"params": group["params"]} for group in parameters]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(groups, lr=0.0, momentum=stage.momentum, weight_decay=stage.weight_decay, foreach=False),
            torch.optim.Adam(method.discriminator.parameters(), lr=0.0, betas=(0.9, 0.99), foreach=False),
        ]

    def run(self) -> Losses:
        """One update, from the same state each time."""
        method, weights = self.iteration.state.method, self.iteration.rule.weights
        method.load_memory(self.iteration.memory)
        ((source, target),) = self.iteration.batches
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

        source_output, source_full, source_labels = self._forward(source)
        losses = {"seg": F.cross_entropy(source_full, source_labels, ignore_index=255)}
        losses["seg"].backward()
        output, full, pseudo = self._forward(target)
        with torch.no_grad():
            seen = source_output._replace(features=source_output.features.detach())
        target_losses = self._alignment(method, seen, source_labels, output, pseudo)
        target_losses["pseudo"] = F.cross_entropy(full, pseudo, ignore_index=255)
        with frozen(method.discriminator):
            target_losses["adv"] = method.adversarial_loss(full.softmax(dim=1))
            torch.stack([weights[name] * loss for name, loss in target_losses.items()]).sum().backward()
        discriminator = method.discriminator_losses(source_full.softmax(dim=1), full.softmax(dim=1))
        torch.stack(list(discriminator.values())).sum().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return {name: loss.detach() for name, loss in {**losses, **target_losses, **discriminator}.items()}

    def _forward(self, batch: Any) -> tuple[Any, Tensor, Tensor]:
        """Network output, logits at full size and labels."""
        state = self.iteration.state
        images = self.iteration.rule.normalize(batch.images).contiguous().to(state.device)
        output = state.method.network(images)
        return output, upsample(output.logits, images.shape[-2:]), batch.labels.to(state.device, torch.int64)

    def _alignment(self, method: BAFFT, seen: Any, labels: Tensor, output: Any, pseudo: Tensor) -> Losses:
        active = self.iteration.rule.active & set(ALIGNMENT_LOSSES)
        if self.loop is None:
            method.observe_source(seen, labels)
            losses = method.alignment_losses(method.describe_target(output, pseudo))
            return {name: losses[name] for name in losses if name in active}
        banks = (method.stuff_bank, method.thing_bank)
        slots = {category: bank.slots for bank in banks for category in bank.categories}
        inserts = {
            category: [rows[0], *rows]  # one more than the slots: the bank is full, its first vector overwritten
            for bank in banks
            for category, rows in zip(bank.categories, bank.prototypes, strict=True)
        }
        reference = self.loop(
            stuff=method.stuff,
            things=method.things,
            slots=slots,
            instances=method.alignment.instances,
            classify=lambda vector: int(method.network.classify(vector[None]).argmax()),
            precision=torch.float32,
            inserts=inserts,
        )
        with torch.no_grad():
            reference.observe_source(seen.features, seen.logits.argmax(dim=1), labels)
        features, maps = output.features, output.logits.argmax(dim=1)
        power = 2 if method.alignment.aim == "released" else 1
        return {
            "stuff": reference.matching_stuff(features, maps, power=power),
            "instances": reference.matching_instances(features, maps, weights=None, power=power),
            "separation": reference.separation_released(features, maps),
        }


def _agree(fast: Losses, naive: Losses) -> None:
    """AssertionError unless the losses are the same, but for pixels whose class hangs on the last digits."""
    for name, loss in naive.items():
        tolerance = 5e-2 if name in ALIGNMENT_LOSSES else 5e-3
        torch.testing.assert_close(fast[name], loss, rtol=tolerance, atol=1e-4, msg=f"the loss {name!r} differs")


@dataclass
class Stopwatch:
    """Seconds by part of an iteration; waits for the device at both ends of a part, so that each pays for its own."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens inside the scope to a part."""
        began = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def seconds_of(function: Callable[[], object], device: torch.device, *, repeats: int = 3) -> float:
    """Median seconds of a call, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        watch = Stopwatch(device)
        with watch.part("all"):
            function()
        taken.append(watch.seconds["all"])
    return float(np.median(taken[1:]))


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """What an iteration makes of its device.

    images: per second; operations: of convolutions and matrix products, forward and backward; per_second: of these;
    ceiling: what a large matrix product reaches.
    """

    images: float
    operations: int
    per_second: float
    ceiling: float

    @classmethod
    def of(cls, iteration: Iteration, seconds: float) -> Utilisation:
        """seconds: what an update takes."""
        work = operations(iteration.run)
        return cls(
            images=iteration.images / seconds,
            operations=work,
            per_second=work / seconds,
            ceiling=matmul_ceiling(iteration.state.device, iteration.rule.precision),
        )

    def __str__(self) -> str:
        return (
            f"{self.images:.3g} images/s; {self.operations / 1e12:.3g} TFLOP, {self.per_second / 1e12:.3g} TFLOP/s, "
            f"{self.per_second / self.ceiling:.0%} of a large matrix product's {self.ceiling / 1e12:.3g}"
        )


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in a call, forward and backward."""
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return int(counter.get_total_flops())


def _convolution_backward(gradient: Shape, image: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    """torch's own count takes the weight's gradient of a grouped convolution for that of a full one. Each of the two
    gradients costs what the forward pass does: every weight of a channel once per place."""
    transposed, output_mask = rest[4], rest[7]
    places = math.prod(image if transposed else gradient)
    return 2 * places * math.prod(weight[1:]) * sum(output_mask[:2])


def matmul_ceiling(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product in a precision, measured.

    In float32 with TF32 where convolutions may use it, as cuDNN does by default.
    """
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[precision] or torch.float32) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        return 2 * side**3 / seconds_of(lambda: left @ right, device, repeats=10)
    finally:
        torch.set_float32_matmul_precision(before)
