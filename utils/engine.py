"""The engine: one update, and the loop around it.

It knows neither corpora nor prototypes. Stage 1, stage 2, source-only, adversarial-only and SIM are the same loop with
other weights: what the target is needed for by terms of weight 0 alone is not computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from model.bafft import BAFFT, TARGET_LOSSES, View, needs_alignment
from model.deeplab import SegmentationNetwork, SegOutput, frozen_statistics
from model.extras.entropy import entropy
from model.extras.lessons import (
    EXTRA_LOSSES,
    LESSON_LOSSES,
    Labelled,
    LessonSettings,
    draws,
    lesson_loss,
    lessons,
)
from model.extras.teacher import Teacher, TeacherLabels, confident
from model.regions import IGNORE
from utils.checkpoint import require_keys, restore_rng, rng_state
from utils.config import Config, Stage
from utils.console import progress
from utils.inference import output_of, upsample
from utils.nonfinite import is_bad, remembered
from utils.runtime import autocast, loss_scaler, prefetch
from utils.strips import highest_at

Losses = dict[str, Tensor]
Rates = dict[str, float]
Pair = tuple[Any, Any]
"""A source batch and a target batch; the latter is None in a run that never looks at the target."""


@dataclass
class TrainState:
    """Everything an interrupted run needs to go on as if nothing had happened."""

    method: BAFFT
    optimizer: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    teacher: Teacher | None = None
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
                method.discriminator.parameters(), lr=stage.learning_rate_d, betas=(0.9, 0.99), fused=fuses(device)
            ),
            scaler=loss_scaler(device, precision),
            teacher=Teacher(method.network, momentum=stage.teacher_momentum) if needs_teacher(stage) else None,
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.method.network.parameters()).device

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
            "teacher": self.teacher.state_dict() if self.teacher else None,
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
        if len(state["optimizer"]["param_groups"]) != len(self.optimizer.param_groups):
            raise ValueError("of one of the two runs the backbone is frozen ([model] freeze_backbone)")
        if _group_keys(state["optimizer"]) != _group_keys(self.optimizer.state_dict()):  # torch would not notice
            raise ValueError("it was trained with another optimizer")
        _restore(self.optimizer, state["optimizer"])
        _restore(self.optimizer_d, state["optimizer_d"])
        if state["scaler"]:  # empty of a run without a loss scale, whose first one then starts
            self.scaler.load_state_dict(state["scaler"])
        if (self.teacher is None) != (state["teacher"] is None):
            raise ValueError("one of the two runs has a teacher, the other has none")
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        restore_rng(state["rng"])


def _group_keys(optimizer: Mapping[str, Any]) -> list[set[str]]:
    """The settings that an optimizer's state holds per group: what tells one optimizer from another."""
    return [set(group) for group in optimizer["param_groups"]]


def _restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer's state; whether it is fused is this run's own choice, whatever the interrupted one chose."""
    fused = [group["fused"] for group in optimizer.param_groups]
    groups = [{**group, "fused": own} for group, own in zip(saved["param_groups"], fused, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def fuses(device: torch.device) -> bool:
    """Whether optimisers update all parameters in one kernel: on CUDA, where nothing then waits for the host either.

    Not on the CPU: torch's kernels there pair the elements of weight and gradient in memory order, whatever their
    layouts, and would save one part in two hundred of an update.
    """
    return device.type == "cuda"


def needs_target(stage: Stage) -> bool:
    """Whether target images go through the network at all: a source-only run never touches them."""
    losses = (getattr(stage.weights, name) for name in (*TARGET_LOSSES, *EXTRA_LOSSES))
    return stage.statistics in ("target", "both") or any(losses)


def needs_teacher(stage: Stage) -> bool:
    """Whether any loss of the stage is made from a teacher's labels."""
    return any(getattr(stage.weights, name) for name in LESSON_LOSSES)


def network_optimizer(network: SegmentationNetwork, stage: Stage) -> torch.optim.Optimizer:
    """SGD with momentum as released, or AdamW, which gets a network from scratch off the ground in fewer updates.

    Two groups, every trainable parameter once: the backbone, and the head at `head_lr_factor` times its rate.
    """
    backbone, head = network.parameter_groups()
    groups = [{"params": backbone, "factor": 1.0}, {"params": head, "factor": stage.head_lr_factor}]
    groups = [group for group in groups if group["params"]]
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if stage.optimizer == "sgd":
        make = partial(torch.optim.SGD, momentum=stage.momentum)
    fused = fuses(next(network.parameters()).device)
    return make(groups, lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=fused)


@dataclass(frozen=True)
class UpdateRule:
    """How an update is made: loss weights by name, whose images move the batch-norm statistics, precision.

    lessons: how a teacher's labels are made to lessons; seed: of their random draws.
    skip_nonfinite: leave out an update with a number that is none; to know it the host waits once more.
    part: scope around each named part of an update; a range in torch's profiler unless somebody wants to time them.
    """

    weights: Mapping[str, float]
    statistics: str
    precision: str
    normalize: Callable[[Tensor], Tensor]
    lessons: LessonSettings = field(default_factory=LessonSettings)
    seed: int = 0
    skip_nonfinite: bool = False
    part: Callable[[str], contextlib.AbstractContextManager] = record_function
    active: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "active", frozenset(name for name, weight in self.weights.items() if weight))

    @classmethod
    def of(cls, config: Config, stage: Stage, normalize: Callable[[Tensor], Tensor]) -> UpdateRule:
        """What a configuration says of a stage. normalize: of the network's input (utils/networks.py)."""
        return cls(
            weights=asdict(stage.weights),
            statistics=stage.statistics,
            precision=config.run.precision,
            normalize=normalize,
            lessons=LessonSettings(
                threshold=stage.teacher_threshold,
                weighted_by=stage.teacher_weights,
                block=stage.mask_block,
                ratio=stage.mask_ratio,
            ),
            seed=config.run.seed,
            skip_nonfinite=config.run.nonfinite == "skip",
        )


def train_step(state: TrainState, rule: UpdateRule, batches: Sequence[Pair]) -> Losses:
    """One update from `iter_size` pairs of source and target batches (spec 1, "one training iteration").

    Returns every computed loss, unweighted and detached. Nothing here waits for the device but the alignment, once a
    pair: components are found on the host (model/regions.py).
    """
    undo = remembered(state.method) if rule.skip_nonfinite else None
    total = accumulate(state, rule, batches)
    if undo is not None and is_bad(total, state.method, scaled=state.scaler.is_enabled()):
        undo()
        return total
    if rule.active:  # else only statistics move, and a scaler that has scaled nothing refuses to step
        with rule.part("optimisers"):
            _step(state, rule)
    if state.teacher is not None:
        with rule.part("teacher"):
            state.teacher.follow(state.method.network)
    return total


def accumulate(state: TrainState, rule: UpdateRule, batches: Sequence[Pair]) -> Losses:
    """Leave the gradients of an update in the parameters; statistics, banks and AIM's weights move, no weight does.

    Cross-entropies are normalised by the labelled pixels of all pairs together and the other terms averaged over the
    pairs, so accumulating n batches of m images weighs every image as one batch of n * m would. (Batch norm and AIM's
    adaptive weights still see one pair at a time.) Returns every computed loss, unweighted and detached.
    """
    with rule.part("data"):
        batches = on_device(batches, state.device)
        source_pixels, target_pixels = (_labelled_pixels(side) for side in zip(*batches, strict=True))
    share = 1 / len(batches)
    total: Losses = {}
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer_d.zero_grad(set_to_none=True)
    for pair, (source, target) in enumerate(batches):
        losses, source_log, view = _source_part(state, rule, source, pixels=source_pixels)
        if target is not None:
            target_losses, probabilities = _target_part(
                state, rule, target, source=view, pixels=target_pixels, share=share
            )
            losses |= target_losses | _lesson_part(state, rule, source, target, share=share, pair=pair)
            if probabilities is not None:
                losses |= _discriminator_part(state, rule, source_log, probabilities, share=share)
        for name, loss in losses.items():
            total[name] = total.get(name, 0.0) + loss.detach()
    return total


def on_device(batches: Sequence[Pair], device: torch.device) -> Sequence[Pair]:
    """The batches with images (uint8) and labels on the device; from pinned memory without waiting for the copy.

    Labels travel as bytes and become int64, which the losses need, once they are there.
    """

    def move(batch: Any) -> Any:
        images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        return batch._replace(images=images, labels=labels.to(torch.int64))

    return [(move(source), target and move(target)) for source, target in batches]


def _labelled_pixels(batches: Iterable[Any]) -> Tensor | int:
    """How many pixels carry a label, over all batches of an update; a tensor on their device."""
    return sum((batch.labels != IGNORE).sum() for batch in batches if batch is not None)


def _step(state: TrainState, rule: UpdateRule) -> None:
    """Both optimisers, then the loss scale."""
    state.scaler.step(state.optimizer)
    if "adv" in rule.active:
        state.scaler.step(state.optimizer_d)
    state.scaler.update()


def _source_part(
    state: TrainState, rule: UpdateRule, batch: Any, *, pixels: Tensor | int
) -> tuple[Losses, Tensor, View | None]:
    """Source forward, cross-entropy, backward.

    Returns the losses, log probabilities (B, C, H, W), and what the banks are to see if anything needs them: they do
    together with the target, so that the host waits for the label maps of both at once.
    """
    output, log_probabilities = _forward(state.method, rule, batch, domain="source")
    with rule.part("source cross-entropy"):
        losses = {"seg": state.method.segmentation_loss(log_probabilities, batch.labels, pixels=pixels)}
    view = state.method.view_source(output, batch.labels) if needs_alignment(rule.active) else None
    with rule.part("source backward"):
        _backward(state, rule, losses)
    return losses, log_probabilities.detach(), view


def _target_part(
    state: TrainState, rule: UpdateRule, batch: Any, *, source: View | None, pixels: Tensor | int, share: float
) -> tuple[Losses, Tensor | None]:
    """Target forward, fill the banks from `source`, matching, adversary and pseudo labels, backward.

    Returns the losses and, if there is an adversary, the probabilities (B, C, H, W), detached: the same that it saw.
    """
    method, active = state.method, rule.active
    with torch.set_grad_enabled(
        bool(active & {*TARGET_LOSSES, "entropy"})
    ):  # without a loss only the statistics are wanted
        output, log_probabilities = _forward(method, rule, batch, domain="target")
    losses: Losses = {}
    probabilities = None
    if source is not None:
        with rule.part("alignment"):
            target = method.view_target(output, batch.labels)
            losses |= {name: share * loss for name, loss in _alignment(method, active, source, target).items()}
    if "entropy" in active:
        with rule.part("entropy"):
            losses["entropy"] = share * entropy(log_probabilities)
    if "pseudo" in active:
        with rule.part("target cross-entropy"):
            losses["pseudo"] = method.segmentation_loss(log_probabilities, batch.labels, pixels=pixels)
    if "adv" in active:
        with rule.part("adversary"), frozen(method.discriminator), _autocast(state, rule):
            probabilities = log_probabilities.exp()
            losses["adv"] = share * method.adversarial_loss(probabilities)
    with rule.part("target backward"):
        _backward(state, rule, losses)
    return losses, None if probabilities is None else probabilities.detach()


def _alignment(method: BAFFT, active: frozenset[str], source: View, target: View) -> Losses:
    """Fill the banks, move AIM's weights; the alignment losses that are wanted, and the share that the banks took."""
    accepted, regions = method.observe_and_describe(source, target)
    method.observe_target(regions)
    losses = method.alignment_losses(regions)
    return {"accepted": accepted} | {name: loss for name, loss in losses.items() if name in active}


def _discriminator_part(
    state: TrainState, rule: UpdateRule, source_log: Tensor, target: Tensor, *, share: float
) -> Losses:
    """Discriminator on source, given by its log probabilities, and target probabilities (B, C, H, W), backward."""
    with rule.part("discriminator"):
        with _autocast(state, rule):
            losses = state.method.discriminator_losses(source_log.exp(), target)
        losses = {name: share * loss for name, loss in losses.items()}
        state.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
    return losses


def _lesson_part(state: TrainState, rule: UpdateRule, source: Any, target: Any, *, share: float, pair: int) -> Losses:
    """What the teacher has to say of the target: for each lesson a forward pass, its loss, backward."""
    if state.teacher is None:
        return {}
    with rule.part("teacher"):
        pseudo = _teachers_labels(state.teacher, rule, target.images)
    losses: Losses = {}
    for lesson in lessons(
        rule.active,
        Labelled(source.images, source.labels),
        target.images,
        pseudo,
        num_classes=state.method.network.num_classes,
        settings=rule.lessons,
        generator=draws(rule.seed, state.step, pair),
    ):
        _, log_probabilities = _forward(state.method, rule, lesson, domain="lesson")
        with rule.part("lesson cross-entropy"):
            loss = {lesson.name: share * lesson_loss(log_probabilities, lesson)}
        with rule.part("lesson backward"):
            _backward(state, rule, loss)
        losses |= loss
    return losses


@torch.no_grad()
def _teachers_labels(teacher: Teacher, rule: UpdateRule, images: Tensor) -> TeacherLabels:
    """Of target images (B, 3, H, W) uint8, as the spec makes pseudo labels: softmax, then upsampled (3.6)."""
    logits = output_of(teacher, images, normalize=rule.normalize, precision=rule.precision).logits
    found = [highest_at(scores.float().softmax(dim=0), images.shape[-2:]) for scores in logits]
    confidence, labels = (torch.stack(maps) for maps in zip(*found, strict=True))
    settings = rule.lessons
    return confident(confidence, labels.to(torch.int64), threshold=settings.threshold, weighted_by=settings.weighted_by)


def _forward(method: BAFFT, rule: UpdateRule, batch: Any, *, domain: str) -> tuple[SegOutput, Tensor]:
    """Network output, and log probabilities (B, C, H, W) at input size in float32: the one softmax of that size.

    The batch moves the running statistics if `rule.statistics` names its domain, or both; a lesson never does.
    """
    moving = ("source", "target") if rule.statistics == "both" else (rule.statistics,)
    statistics = contextlib.nullcontext() if domain in moving else frozen_statistics(method.network)
    with rule.part(f"{domain} forward"), statistics:
        output = output_of(method.network, batch.images, normalize=rule.normalize, precision=rule.precision)
    with rule.part(f"{domain} softmax"):
        log_probabilities = F.log_softmax(upsample(output.logits.float(), batch.images.shape[-2:]), dim=1)
    return output, log_probabilities


def _backward(state: TrainState, rule: UpdateRule, losses: Losses) -> None:
    """Backward of the weighted sum; the one place where loss weights are applied. Terms that nothing learns from, as
    alignment on a frozen backbone, are left out."""
    terms = [rule.weights[name] * loss for name, loss in losses.items() if name in rule.active and loss.requires_grad]
    if terms:
        state.scaler.scale(torch.stack(terms).sum()).backward()


def _autocast(state: TrainState, rule: UpdateRule) -> contextlib.AbstractContextManager:
    return autocast(state.device, rule.precision)


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


def set_learning_rates(state: TrainState, stage: Stage) -> Rates:
    """Both rates follow base * (1 - it/num_steps)^power (spec 1); returns the backbone's and the discriminator's."""
    decay = (1 - state.step / stage.num_steps) ** stage.power
    for group in state.optimizer.param_groups:
        group["lr"] = stage.learning_rate * decay * group["factor"]
    for group in state.optimizer_d.param_groups:
        group["lr"] = stage.learning_rate_d * decay
    return {"learning_rate": stage.learning_rate * decay, "learning_rate_D": stage.learning_rate_d * decay}


def update(state: TrainState, rule: UpdateRule, stage: Stage, batches: Sequence[Pair]) -> tuple[Losses, Rates]:
    """One update of either stage, at the learning rates of its place in it."""
    rates = set_learning_rates(state, stage)
    return train_step(state, rule, batches), rates


class Learner(Protocol):
    """What is trained. step: the number of updates so far."""

    step: int

    @property
    def method(self) -> nn.Module:
        """All that has weights."""

    @property
    def device(self) -> torch.device:
        """Where they are."""


class Schedule(Protocol):
    """How long it is trained."""

    @property
    def last_step(self) -> int:
        """The update after which the run ends."""

    @property
    def snapshot_dir(self) -> str:
        """The run's folder."""

    def saves_after(self, step: int) -> bool:
        """Whether a snapshot follows update number `step`."""


def fit(
    learner: Learner,
    schedule: Schedule,
    batches: Iterable[Sequence[Pair]],
    learn: Callable[[Sequence[Pair]], tuple[Losses, Rates]],
    *,
    on_update: Callable[[Sequence[Pair], Losses, Rates], str],
    on_snapshot: Callable[[], None],
) -> None:
    """Train from the learner's step to the schedule's last: the main loop, of both stages and of the translator.

    batches: one element per update. learn: makes an update of it. on_update gets every update's batches, losses and
    learning rates and returns what the progress bar shows, or raises to end the run; on_snapshot is called after the
    updates that the schedule names.
    """
    learner.method.train()
    moved = prefetch(batches, partial(on_device, device=learner.device), learner.device)
    with progress(total=schedule.last_step, initial=learner.step, description=schedule.snapshot_dir) as bar:
        for batch in moved:
            losses, rates = learn(batch)
            learner.step += 1
            bar.set_postfix_str(on_update(batch, losses, rates), refresh=False)
            bar.update()
            if schedule.saves_after(learner.step):
                on_snapshot()
