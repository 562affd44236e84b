"""What a user should know before anything starts though it is no mistake: settings without effect, slow paths."""

from __future__ import annotations

from dataset.png import FAST_PNG
from model.bafft import ALIGNMENT_LOSSES
from utils.config import Config, Stage
from utils.datasets import worker_count
from utils.flags import Options
from utils.log import say


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
