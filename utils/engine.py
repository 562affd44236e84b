"""The engine: one update, and the loop around it.

It knows neither corpora nor prototypes. Stage 1, stage 2, source-only, adversarial-only and SIM are the same loop with
other weights: a term of the target whose weight is 0 is not computed.
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
from model.deeplab import SegmentationNetwork, SegOutput, frozen_statistics
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
        """State before the first update; Adam for the discriminator (spec 1)."""
        return cls(
            method=method,
            optimizer=network_optimizer(method.network, stage),
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
        if _group_keys(state["optimizer"]) != _group_keys(self.optimizer.state_dict()):  # torch would not notice
            raise ValueError("it was trained with another optimizer")
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        restore_rng(state["rng"])


def _group_keys(optimizer: Mapping[str, Any]) -> list[set[str]]:
    """The settings that an optimizer's state holds per group: what tells one optimizer from another."""
    return [set(group) for group in optimizer["param_groups"]]


def network_optimizer(network: SegmentationNetwork, stage: Stage) -> torch.optim.Optimizer:
    """SGD with momentum as released, or AdamW, which gets a network from scratch off the ground in fewer updates.

    Two groups, every trainable parameter once: the backbone, and the head at `head_lr_factor` times its rate.
    """
    backbone, head = network.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": head, "factor": stage.head_lr_factor}]
    groups = [group for group in groups if group["params"]]
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay)
    return torch.optim.SGD(groups, lr=stage.learning_rate, momentum=stage.momentum, weight_decay=stage.weight_decay)


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
    pairs, so accumulating n batches of m images weighs every image as one batch of n * m would. (Batch norm and AIM's
    adaptive weights still see one pair at a time.) Returns every computed loss, unweighted and detached.
    """
    source_pixels, target_pixels = (_labelled_pixels(side) for side in zip(*batches, strict=True))
    share = 1 / len(batches)
    total: Losses = {}
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer_d.zero_grad(set_to_none=True)
    for source, target in batches:
        losses, source_log = _source_part(state, recipe, source, pixels=source_pixels, share=share)
        if target is not None:
            target_losses, target_log = _target_part(state, recipe, target, pixels=target_pixels, share=share)
            losses |= target_losses
            if "adv" in recipe.active:
                losses |= _discriminator_part(state, recipe, source_log, target_log, share=share)
        for name, loss in losses.items():
            total[name] = total.get(name, 0.0) + loss.detach()
    if recipe.active:  # else only statistics move, and a scaler that has scaled nothing refuses to step
        state.scaler.step(state.optimizer)
        if "adv" in recipe.active:
            state.scaler.step(state.optimizer_d)
        state.scaler.update()
    return total


def _labelled_pixels(batches: Iterable[Any]) -> Tensor:
    """How many pixels carry a label, over all batches of an update."""
    counts = [(batch.labels != IGNORE).sum() for batch in batches if batch is not None]
    return torch.stack(counts).sum() if counts else torch.tensor(0)


def _source_part(
    state: TrainState, recipe: Recipe, batch: Any, *, pixels: Tensor, share: float
) -> tuple[Losses, Tensor]:
    """Source forward, fill the banks, cross-entropy, backward; returns losses and log probabilities (B, C, H, W)."""
    output, log_probabilities, labels = _forward(state.method, recipe, batch, moves=("source", "both"))
    losses = {"seg": state.method.segmentation_loss(log_probabilities, labels, pixels=pixels)}
    if needs_alignment(recipe.active):
        losses["accepted"] = share * state.method.observe_source(output, labels)
    _backward(state, recipe, losses)
    return losses, log_probabilities.detach()


def _target_part(
    state: TrainState, recipe: Recipe, batch: Any, *, pixels: Tensor, share: float
) -> tuple[Losses, Tensor]:
    """Target forward, matching, adversary and pseudo labels, backward; returns losses and log probabilities."""
    method, active = state.method, recipe.active
    with torch.set_grad_enabled(bool(active & set(TARGET_LOSSES))):  # without a loss only the statistics are wanted
        output, log_probabilities, pseudo = _forward(method, recipe, batch, moves=("target", "both"))
    losses: Losses = {}
    if needs_alignment(active):
        regions = method.describe_target(output, pseudo)
        method.observe_target(regions)
        computed = method.alignment_losses(regions)
        losses |= {name: share * loss for name, loss in computed.items() if name in active}
    if "pseudo" in active:
        losses["pseudo"] = method.segmentation_loss(log_probabilities, pseudo, pixels=pixels)
    if "adv" in active:
        with frozen(method.discriminator), _autocast(state, recipe):
            losses["adv"] = share * method.adversarial_loss(log_probabilities.exp())
    _backward(state, recipe, losses)
    return losses, log_probabilities.detach()


def _discriminator_part(state: TrainState, recipe: Recipe, source: Tensor, target: Tensor, *, share: float) -> Losses:
    """Discriminator on the detached log probabilities (B, C, H, W) of source and target, backward."""
    with _autocast(state, recipe):
        losses = state.method.discriminator_losses(source.exp(), target.exp())
    losses = {name: share * loss for name, loss in losses.items()}
    state.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
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


def set_learning_rates(state: TrainState, stage: Stage) -> dict[str, float]:
    """Both rates follow base * (1 - it/num_steps)^power (spec 1); returns the backbone's and the discriminator's."""
    decay = (1 - state.step / stage.num_steps) ** stage.power
    for group in state.optimizer.param_groups:
        group["lr"] = stage.learning_rate * decay * group["factor"]
    for group in state.optimizer_d.param_groups:
        group["lr"] = stage.learning_rate_d * decay
    return {"learning_rate": stage.learning_rate * decay, "learning_rate_D": stage.learning_rate_d * decay}


def fit(
    state: TrainState,
    recipe: Recipe,
    stage: Stage,
    batches: Iterable[Sequence[Pair]],
    *,
    on_update: Callable[[Sequence[Pair], Losses, dict[str, float]], str],
    on_snapshot: Callable[[], None],
) -> None:
    """Train from `state.step` to the stage's last step: the main loop of both stages.

    batches: one element per update. on_update gets every update's batches, losses and learning rates and returns what
    the progress bar shows; on_snapshot is called every `save_pred_every` updates and after the last.
    """
    state.method.train()
    with progress(total=stage.last_step, initial=state.step, description=stage.snapshot_dir) as bar:
        for batch in batches:
            rates = set_learning_rates(state, stage)
            losses = train_step(state, recipe, batch)
            state.step += 1
            bar.set_postfix_str(on_update(batch, losses, rates), refresh=False)
            bar.update()
            if stage.saves_after(state.step):
                on_snapshot()
