"""What a user should know before anything starts though it is no mistake: settings without effect, slow paths."""

from __future__ import annotations

from collections.abc import Iterator

from dataset.png import FAST_PNG
from model.bafft import ALIGNMENT_LOSSES
from utils.config import Config, Stage
from utils.console import say
from utils.datasets import wants_pseudo_labels, worker_count
from utils.engine import needs_teacher
from utils.flags import Options

TEACHER = ("teacher_momentum", "teacher_threshold", "teacher_weights")


def say_notes(config: Config, options: Options) -> None:
    """What the user should know before anything starts: flags without effect, slower decoding, fewer workers."""
    for note in options.notes:
        say(f"note: {note}")
    if not FAST_PNG:
        say("note: kornia-rs 0.2 or newer is not installed; decoding a PNG image takes three times as long")
    workers = worker_count(config)
    if workers < config.run.num_workers:
        say(f"note: num_workers = {config.run.num_workers}, but there are {workers} processors; {workers} are used")


def say_frozen_notes(config: Config, stage: Stage) -> None:
    """What does not go together with what is kept or frozen."""
    kept = stage.statistics == "kept"
    if kept and stage.restore_from == "random":
        say("note: [step*] statistics = kept is for trained weights; a random start has means 0 and variances 1")
    if config.model.freeze_backbone and not kept:
        say(f"note: [model] freeze_backbone freezes weights; norms still follow statistics = {stage.statistics}")
    if config.model.freeze_backbone and config.model.train_norm_affine:
        say("note: [model] train_norm_affine has no effect on a frozen backbone")
    aligned = [name for name in ALIGNMENT_LOSSES if getattr(stage.weights, name)]
    if config.model.freeze_backbone and not config.model.feature_strides and aligned:
        say(f"note: {', '.join(aligned)}: no effect on a frozen backbone (feature_strides adds a layer that learns)")


def say_idle_notes(config: Config, options: Options, section: str) -> None:
    """Settings of a training that somebody changed and that change nothing as the others stand, and why."""
    default = Config(source={}, target={})
    for idle, reason, paths in _idle(config, section):
        for path in paths if idle else ():
            room, key = path.split(".")
            other = getattr(getattr(config, room), key) != getattr(getattr(default, room), key)
            # A folder of pseudo labels is always there, handed over from the step before.
            if path in options.changes or (other and key != "pseudo_labels"):
                say(f"note: [{room}] {key} has no effect: {reason}")


def _idle(config: Config, section: str) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """Whether settings have no effect, why, and which they are."""
    stage: Stage = getattr(config, section)
    weights = stage.weights
    aligned = any(getattr(weights, name) for name in ALIGNMENT_LOSSES)
    matched = weights.instances or (stage.aim == "released" and weights.stuff)
    of_stage = (
        (stage.aim != "fixed", f"aim = {stage.aim!r}", ("aim_weights",)),
        (not matched, "the loss that it weighs is off", ("aim",)),
        (not (weights.separation or weights.aggregation), "separation and aggregation are off", ("isia",)),
        (not aligned, "every loss of regions is off", ("num_prototype",)),
        (not weights.adv, "the loss adv is off", ("learning_rate_d",)),
        (stage.optimizer != "sgd", f"optimizer = {stage.optimizer!r}", ("momentum",)),
        (not needs_teacher(stage), "every loss of a teacher is off", TEACHER),
        (not weights.masked, "the loss masked is off", ("mask_block", "mask_ratio")),
        (not wants_pseudo_labels(stage), "nothing reads pseudo labels", ("pseudo_labels",)),
    )
    for idle, reason, keys in of_stage:
        yield idle, reason, tuple(f"{section}.{key}" for key in keys)
    method = config.translation.method
    yield method != "fda", f"method = {method!r}", ("translation.beta",)
    yield method == "none", "method = 'none'", ("translation.styles", "translation.probability")
    yield not config.run.cache, "no cache is named", ("run.cache_gb",)
    yield not config.run.tensorboard, "tensorboard = false", ("run.log_dir",)
