"""The engine: one update, and the loop around it.

It knows neither corpora nor prototypes. Stage 1, stage 2, source-only, adversarial-only and SIM are the same loop with
other weights: a term of weight 0 is not computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bafft import BAFFT, TARGET_LOSSES, needs_alignment
from model.deeplab import SegOutput, frozen_statistics
from model.regions import IGNORE
from utils.checkpoint import require_keys, restore_rng, rng_state
from utils.config import Stage
from utils.inference import upsample
from utils.log import progress
from utils.runtime import autocast, loss_scaler

Losses = dict[str, Tensor]
Pair = tuple[Any, Any]
"""A source batch and a target batch; the latter is None in a run that never looks at the target."""


@dataclass
class TrainState:
    """Everything an interrupted run needs to go on as if nothing had happened."""

    method: BAFFT
    optimizer: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = -math.inf
    best_step: int = 0

    @classmethod
    def fresh(cls, method: BAFFT, stage: Stage, *, device: torch.device, precision: str) -> TrainState:
        """State before the first update: SGD for the network (head at its own rate), Adam for the discriminator."""
        backbone, head = method.network.parameter_groups()
        groups = [{"params": backbone, "factor": 1.0}, {"params": head, "factor": stage.head_lr_factor}]
        return cls(
            method=method,
            optimizer=torch.optim.SGD(
                [group for group in groups if group["params"]],
                lr=stage.learning_rate,
                momentum=stage.momentum,
                weight_decay=stage.weight_decay,
            ),
            optimizer_d=torch.optim.Adam(
                method.discriminator.parameters(), lr=stage.learning_rate_d, betas=(0.9, 0.99)
            ),
            scaler=loss_scaler(device, precision),
        )

    def state_dict(self) -> dict[str, Any]:
        """One dict of plain values and tensors."""
        return {
            "network": self.method.network.state_dict(),
            "architecture": self.method.network.architecture(),
            "discriminator": self.method.discriminator.state_dict(),
            "memory": self.method.memory(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it; a missing key is an error."""
        require_keys(state, [*self.state_dict(), "format", "meta"])
        self.method.network.load_state_dict(state["network"])
        self.method.discriminator.load_state_dict(state["discriminator"])
        self.method.load_memory(state["memory"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        restore_rng(state["rng"])


@dataclass(frozen=True)
class Recipe:
    """How an update is made: loss weights by name, whose images move the batch-norm statistics, precision."""

    weights: Mapping[str, float]
    statistics: str
    precision: str
    normalize: Callable[[Tensor], Tensor]
    active: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "active", frozenset(name for name, weight in self.weights.items() if weight))

    @staticmethod
    def needs_target(weights: Mapping[str, float], statistics: str) -> bool:
        """Whether target images go through the network at all: a source-only run never touches them."""
        return statistics != "source" or any(weights[name] for name in TARGET_LOSSES)


def train_step(state: TrainState, recipe: Recipe, batches: Sequence[Pair]) -> Losses:
    """One update from `iter_size` pairs of source and target batches (spec 1, "one training iteration").

    Cross-entropies are normalised by the labelled pixels of all pairs together and the other terms averaged over the
    pairs, so accumulating n batches of m images weighs every image as one batch of n * m would.
    Returns every computed loss, unweighted and detached.
    """
    pixels = [_labelled_pixels(side) for side in zip(*batches, strict=True)]
    total: Losses = {}
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer_d.zero_grad(set_to_none=True)
    for source, target in batches:
        parts = _accumulate(state, recipe, source, target, pixels=pixels, share=1 / len(batches))
        for name, loss in parts.items():
            total[name] = total.get(name, 0.0) + loss.detach()
    optimizers = [state.optimizer, *([state.optimizer_d] if "adv" in recipe.active else [])]
    for optimizer in optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    return total


def _labelled_pixels(batches: Iterable[Any]) -> Tensor:
    """How many pixels carry a label, over all batches of an update."""
    counts = [(batch.labels != IGNORE).sum() for batch in batches if batch is not None]
    return torch.stack(counts).sum() if counts else torch.tensor(0)


def _accumulate(
    state: TrainState, recipe: Recipe, source: Any, target: Any, *, pixels: Sequence[Tensor], share: float
) -> Losses:
    """Forward and backward of one pair of batches: source, target, discriminator. Gradients add up."""
    method = state.method

    source_output, source_log, labels = _forward(method, recipe, source, moves=("source", "both"))
    losses = {"seg": method.segmentation_loss(source_log, labels, pixels=pixels[0])}
    if needs_alignment(recipe.active):
        losses["accepted"] = share * method.observe_source(source_output, labels)
    _backward(state, recipe, losses)
    if target is None:
        return losses

    aligned = bool(recipe.active & set(TARGET_LOSSES))
    with contextlib.nullcontext() if aligned else torch.no_grad():  # else only the statistics are wanted
        target_output, target_log, pseudo = _forward(method, recipe, target, moves=("target", "both"))
    target_losses: Losses = {}
    if needs_alignment(recipe.active):
        regions = method.describe_target(target_output, pseudo)
        method.observe_target(regions)
        computed = method.alignment_losses(regions)
        target_losses |= {name: share * computed[name] for name in computed if name in recipe.active}
    if "pseudo" in recipe.active:
        target_losses["pseudo"] = method.segmentation_loss(target_log, pseudo, pixels=pixels[1])
    if "adv" in recipe.active:
        probabilities = target_log.exp()
        with frozen(method.discriminator), _autocast(state, recipe):
            target_losses["adv"] = share * method.adversarial_loss(probabilities)
    _backward(state, recipe, target_losses)
    losses |= target_losses

    if "adv" in recipe.active:
        with _autocast(state, recipe):
            fooled = method.discriminator_losses(source_log.detach().exp(), probabilities.detach())
        losses |= {name: share * loss for name, loss in fooled.items()}
        state.scaler.scale(share * (fooled["D_source"] + fooled["D_target"])).backward()
    return losses


def _forward(method: BAFFT, recipe: Recipe, batch: Any, *, moves: Sequence[str]) -> tuple[SegOutput, Tensor, Tensor]:
    """Network output, log probabilities (B, C, H, W) at input size in float32, and labels, of one batch.

    The batch moves the running statistics if `recipe.statistics` is one of `moves`.
    """
    device = next(method.network.parameters()).device
    images = recipe.normalize(batch.images.to(device, non_blocking=True))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = batch.labels.to(device, non_blocking=True)
    still = frozen_statistics(method.network) if recipe.statistics not in moves else contextlib.nullcontext()
    with still, autocast(device, recipe.precision):
        output = method.network(images)
    log_probabilities = F.log_softmax(upsample(output.logits.float(), images.shape[-2:]), dim=1)
    return output, log_probabilities, labels


def _backward(state: TrainState, recipe: Recipe, losses: Losses) -> None:
    """Backward of the weighted sum; the one place where loss weights are applied."""
    terms = [recipe.weights[name] * loss for name, loss in losses.items() if name in recipe.active]
    if terms:
        state.scaler.scale(torch.stack(terms).sum()).backward()


def _autocast(state: TrainState, recipe: Recipe) -> contextlib.AbstractContextManager:
    return autocast(next(state.method.network.parameters()).device, recipe.precision)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the scope gradients flow through `module` but not into its parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def set_learning_rates(state: TrainState, stage: Stage) -> float:
    """Both rates follow base * (1 - it/num_steps)^power (spec 1); returns the network's."""
    decay = (1 - state.step / stage.num_steps) ** stage.power
    for group in state.optimizer.param_groups:
        group["lr"] = stage.learning_rate * decay * group["factor"]
    for group in state.optimizer_d.param_groups:
        group["lr"] = stage.learning_rate_d * decay
    return stage.learning_rate * decay


def fit(
    state: TrainState,
    recipe: Recipe,
    stage: Stage,
    batches: Iterable[Sequence[Pair]],
    *,
    on_update: Callable[[Losses, float], str],
    on_snapshot: Callable[[], None],
) -> None:
    """Train from `state.step` to the stage's last step: the main loop of both stages.

    batches: one element per update. on_update gets the losses and the learning rate of every update and returns what
    the progress bar shows; on_snapshot is called every `save_pred_every` updates and after the last.
    """
    last = stage.num_steps_stop or stage.num_steps
    state.method.train()
    with progress(total=last, initial=state.step, description=stage.snapshot_dir) as bar:
        for batch in batches:
            rate = set_learning_rates(state, stage)
            losses = train_step(state, recipe, batch)
            state.step += 1
            bar.set_postfix_str(on_update(losses, rate), refresh=False)
            bar.update()
            if state.step % stage.save_pred_every == 0 or state.step == last:
                on_snapshot()
