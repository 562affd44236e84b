"""What watches over a training run: numbers that are none, and what was skipped.

The order of data is a function of the update, so the batch of a bad one can be read again when it is noticed later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.console import say
from utils.engine import Losses, Pair, TrainState
from utils.nonfinite import MOST_IN_A_ROW, NonFiniteError, Watch, is_finite, keep_evidence

COUNTS = ("loss_scale", "updates", "bad_files")
"""What may be skipped: updates by fp16's loss scale, updates with a number that is none, files that cannot be read."""


@dataclass(kw_only=True)
class Guard:
    """The watch over the updates of `state`.

    batches_from: (configuration, start=update) -> the batches of every update from that number on. counts: what was
    skipped, over every interruption. saved_step: the update whose state is on the disk.
    """

    config: Config
    folder: Path
    state: TrainState
    batches_from: Callable[..., Iterator[Sequence[Pair]]]
    counts: dict[str, int] = field(default_factory=dict)
    saved_step: int = 0

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0) | self.counts
        self._watch = Watch(self.state.device, scaled=self.state.scaler.is_enabled())
        self._in_a_row = 0

    def see(self, batches: Sequence[Pair], losses: Losses, *, judge: bool) -> None:
        """Take note of an update and say which files it left out.

        judge: raise NonFiniteError where one since the last time was bad, which waits for the device. It is done anyway
        on the CPU, and where bad updates are skipped: there the host has waited already.
        """
        state = self.state
        self._watch.see(state.step, losses, state.method)
        for reason in (reason for pair in batches for side in pair if side for reason in side.skipped):
            self.counts["bad_files"] += 1
            say(f"note: update {state.step}: {reason}; another image takes its place")
        if judge or state.device.type == "cpu" or self.config.run.nonfinite == "skip":
            self._judge()

    def skipped(self) -> dict[str, int]:
        """How much was skipped so far, of what the configuration lets be skipped; waits for the device."""
        settings = self.config.run
        possible = {
            "loss_scale": settings.precision == "fp16",
            "updates": settings.nonfinite == "skip",
            "bad_files": settings.bad_files == "skip",
        }
        now = self.counts | {"loss_scale": self.counts["loss_scale"] + self._watch.overflows()}
        return {name: now[name] for name, wanted in possible.items() if wanted}

    def require_finite(self) -> None:
        """Raise NonFiniteError before networks and banks are saved that hold what is no number, as an infinite step
        makes them."""
        if not is_finite(self.state.method):
            raise NonFiniteError(self._evidence(self.state.step, ["weights, statistics or banks"]))

    def _judge(self) -> None:
        step, names = self._watch.first()
        if not step:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self.config.run.nonfinite == "error" or self._in_a_row > MOST_IN_A_ROW:
            raise NonFiniteError(self._evidence(step, names))
        self.counts["updates"] += 1
        say(f"note: update {step} is skipped, {', '.join(names)} not finite")

    def _evidence(self, step: int, names: Sequence[str]) -> str:
        """Keep what the update was made of in a folder of its own; what there is to say."""
        folder = self.folder / f"nonfinite_{step}"
        alone = dataclasses.replace(self.config, run=dataclasses.replace(self.config.run, num_workers=0))
        sides = {
            f"{domain}{pair}": batch
            for pair, both in enumerate(next(self.batches_from(alone, start=step - 1)))
            for domain, batch in zip(("source", "target"), both, strict=True)
            if batch is not None
        }
        report: dict[str, Any] = {"update": step, "not_finite": names, "noticed_after": self.state.step}
        keep_evidence(folder, report | {"config": self.config.to_dict()}, sides, self.state.state_dict())
        images = ", ".join(name for batch in sides.values() for name in batch.names)
        return (
            f"{', '.join(names)} not finite at update {step}, images {images}; {folder} holds the batch and the state, "
            f"{self.folder} nothing later than update {self.saved_step}. Lower the learning rate, use --precision fp32 "
            "(then --continue-train), or leave such updates out: --override run.nonfinite=skip"
        )
