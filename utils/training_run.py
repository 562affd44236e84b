"""What a training run leaves behind in its folder: logs, validation scores, checkpoints, and last the manifest."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from dataset.corpora import DataError
from dataset.loading import BatchLoader
from model.weights import write_weights
from utils import quick_check
from utils.board import heatmap, pairs_text
from utils.checkpoint import save_last
from utils.console import say
from utils.diagnostics import changed_pairs
from utils.engine import Losses, Pair, Rates
from utils.guard import Guard
from utils.inference import predict
from utils.inspection import Diagnosis
from utils.interrupts import Request, exit_code
from utils.json_files import write_json
from utils.log import RunLog
from utils.manifest import write_manifest
from utils.metrics import ConfusionMatrix, Counts, iou_array, row_percent
from utils.resume import Progress
from utils.run_files import CONFIG, CONFUSION, MANIFEST
from utils.runtime import peak_memory_mb
from utils.snapshots import drop_old
from utils.tables import format_table
from utils.training import Training


@dataclass(kw_only=True)
class TrainingRun:
    """Keeps the books of a training: what is called after every update, at every snapshot, and at the end.

    progress: how far an earlier process had come; it goes on from there. before: confusions of the run whose weights
    this one started from, if they are known. lines_before: lines of the log as the snapshot underway began.
    """

    training: Training
    progress: Progress
    log: RunLog
    guard: Guard
    validation: BatchLoader | None
    diagnosis: Diagnosis | None
    before: Counts | None
    began: float = field(default_factory=time.monotonic)
    request: Request = field(default_factory=Request)
    lines_before: int | None = None

    @property
    def step(self) -> int:
        """The number of updates so far."""
        return self.training.state.step

    @property
    def snapshot_is_due(self) -> bool:
        """Whether the run was interrupted between an update and the snapshot that follows it."""
        return self.step > 0 and self.training.stage.saves_after(self.step) and self.progress.snapshot_step != self.step

    # ---- what the main loop calls ----

    def update(self, batches: Sequence[Pair], losses: Losses, rates: Rates) -> str:
        """Log an update now and then; end the run, its state saved, where that was asked for."""
        due = self._is_logged or self.training.stage.saves_after(self.step)
        self.guard.see(batches, losses, judge=due or bool(self.request.signal))
        shown = self._report(losses, rates) if due else ""
        if self.request.signal:
            self._save()
            self._leave()
        return shown

    def snapshot(self) -> None:
        """Validate, then write the weights, the best weights so far, and last the state to resume from."""
        training, state = self.training, self.training.state
        self.guard.require_finite()
        self.lines_before = self.log.lines  # what is logged of a snapshot that is not finished is logged again
        if self.validation is not None:
            self._validate(self.validation)
        if self.diagnosis is not None:
            self._diagnose(self.diagnosis)
        self._write_weights(f"{training.stage.prefix}_{self.step}")
        if self.progress.scores and self.progress.scores["miou"] > state.best:
            state.best, state.best_step = self.progress.scores["miou"], self.step
            self._write_weights("best")
        self.progress.snapshot_step, self.lines_before = self.step, None
        self._save()
        drop_old(training.folder, training.stage, self.step)
        if self.request.signal:
            self._leave()

    @contextlib.contextmanager
    def kept_after_bad_files(self) -> Iterator[None]:
        """A file that cannot be read ends a run, which keeps what it has learnt until then."""
        try:
            yield
        except DataError:
            validating = self.snapshot_is_due
            if self.step > self.guard.saved_step:
                self._save()
            if self.guard.saved_step:
                # A training file of another size than when the run began is another data set, which is refused.
                remedy = "mend that" if validating else "mend that, or leave it with --override run.bad_files=skip"
                say(f"saved after update {self.guard.saved_step}; {remedy}, and go on: {self._to_go_on}")
            raise

    def finish(self) -> dict[str, Any]:
        """Write the manifest and say how it went; returns the summary."""
        training, state, scores = self.training, self.training.state, self.progress.scores
        device = next(state.method.network.parameters()).device
        last = scores if scores.get("step") == self.step else {}  # else validation was switched off since
        summary = {
            "section": training.section,
            "folder": str(training.folder),
            "steps": self.step,
            "last": last or None,
            "best_selected_on_target_labels": {"miou": state.best, "step": state.best_step} if scores else None,
            "skipped": self.guard.skipped(),
            "seconds": self._seconds,
            "peak_memory_mb": peak_memory_mb(device),
        }
        write_manifest(training.folder / MANIFEST, {"inputs": training.inputs, "result": summary}, device=device)
        if last:
            names = training.classes.names
            say(format_table(names, iou_array(names, last["iou"]), training.classes.subsets))
            say(
                f"target val, last checkpoint: {last['miou']:.2f} mIoU; best, chosen on target labels: "
                f"{state.best:.2f} at update {state.best_step}"
            )
        say(f"{summary['seconds']:.0f} s, peak memory {summary['peak_memory_mb']:.0f} MiB, in {training.folder}")
        return summary

    # ---- an update ----

    @property
    def _is_logged(self) -> bool:
        return self.step % self.training.config.run.log_every == 0

    def _report(self, losses: Losses, rates: Rates) -> str:
        """Log an update if it is one of those that are; what the progress bar shows."""
        values = {f"loss/{name}": value for name, value in _to_floats(losses).items()}
        if self._is_logged:
            skipped = {f"skipped/{name}": count for name, count in self.guard.skipped().items()}
            self.log.scalars(self.step, values | rates | self._memory() | skipped)
        scores = self.progress.scores
        return f"seg {values['loss/seg']:.3f}" + (f", mIoU {scores['miou']:.1f}" if scores else "")

    def _memory(self) -> dict[str, float]:
        """Bank fill, the filter's acceptance in the last batch and AIM's weight per class; NaN where there was none."""
        training, method = self.training, self.training.state.method
        names = training.classes.names
        values = {f"accepted/{name}": share for name, share in zip(names, method.acceptance.tolist(), strict=True)}
        for bank in (method.stuff_bank, method.thing_bank):
            for category, fill in zip(bank.categories, bank.fill.tolist(), strict=True):
                values[f"bank/{names[category]}"] = fill
        if training.stage.aim == "adaptive":
            eta = method.adaptive().masked_fill(~method.adaptive.seen, math.nan).tolist()
            values |= {f"aim/{names[category]}": eta[category] for category in training.classes.things}
        return values

    # ---- a snapshot ----

    def _validate(self, validation: BatchLoader) -> None:
        training, network = self.training, self.training.state.method.network
        names = training.classes.names
        confusion = ConfusionMatrix(training.classes.num_classes)
        precision = training.config.run.precision
        for item in predict(network, validation, normalize=training.normalize, precision=precision):
            if self.request.signal:  # a validation may take longer than whoever asks to end will wait
                self._save()
                self._leave()
            confusion.update(item.classes(), item.label.numpy())
        quick_check.require_labelled_pixels(confusion, "the labels of target val")
        scores = self.progress.scores = confusion.to_dict(names, training.classes.subsets) | {"step": self.step}
        say(f"update {self.step}: {scores['miou']:.2f} mIoU on target val")
        self.log.scalars(self.step, {"miou": scores["miou"], "iou": confusion.iou()})
        matrix = {"step": self.step, "classes": names, "confusion": confusion.counts}
        write_json(training.folder / CONFUSION, matrix)
        if self.log.has_board:
            self._show_confusions(confusion.counts)

    def _show_confusions(self, counts: Counts) -> None:
        """For TensorBoard: the confusions, and what became of them since the run that this one started from."""
        names = self.training.classes.names
        self.log.picture(self.step, "confusion", heatmap(row_percent(counts)[:, :-1], names, top=100))
        if self.before is not None:
            self.log.text(self.step, "confusion_pairs", pairs_text(*changed_pairs(self.before, counts), names))

    def _diagnose(self, diagnosis: Diagnosis) -> None:
        """Log how far classes and domains lie apart; the matrices go to files of their own."""
        names = self.training.classes.names
        measured = diagnosis.measure()
        self.log.scalars(self.step, measured.scalars() | diagnosis.pseudo_scalars())
        content = {"step": self.step, "classes": names, **measured.to_dict()}
        write_json(self.training.folder / "diagnostics" / f"{self.step}.json", content)
        if self.log.has_board:
            for name, matrix in measured.matrices.items():
                top = float(np.nanmax(matrix, initial=0.0))
                self.log.picture(self.step, f"divergence_{name}", heatmap(matrix, names, top=top))

    def _write_weights(self, stem: str) -> None:
        training, method = self.training, self.training.state.method
        write_weights(training.folder / f"{stem}.pth", method.network.state_dict(), training.meta)
        write_weights(training.folder / f"{stem}_D.pth", method.discriminator.state_dict(), {"step": self.step})

    # ---- the state to resume from ----

    def _save(self) -> None:
        self.guard.require_finite()
        training, progress = self.training, self.progress
        come = {
            "scores": progress.scores,
            "seconds": self._seconds,
            "inputs": {domain: training.inputs[domain] for domain in ("source", "target")},
            "lines": self.log.lines if self.lines_before is None else self.lines_before,
            "snapshot_step": progress.snapshot_step,
            "counts": self.guard.counts | self.guard.skipped(),
        }
        save_last(training.folder, training.state.state_dict() | {"meta": training.meta | come})
        self.guard.saved_step = self.step

    def _leave(self) -> NoReturn:
        """End the process as its signal asked, after the state was saved."""
        name = signal.Signals(self.request.signal).name
        say(f"{name}: saved after update {self.step}; to go on: {self._to_go_on}")
        raise SystemExit(exit_code(self.request.signal))

    @property
    def _seconds(self) -> float:
        """What the run took so far, over every interruption."""
        return self.progress.seconds + time.monotonic() - self.began

    @property
    def _to_go_on(self) -> str:
        """The command that resumes this run."""
        script = f"train_{self.training.section}.py"
        return shlex.join(["python", script, "--config", str(self.training.folder / CONFIG), "--continue-train"])


def _to_floats(losses: Losses) -> dict[str, float]:
    """All losses to the host in one transfer."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in losses.values()])
    return dict(zip(losses, values.tolist(), strict=True))
