"""One training run from configuration to checkpoints: what `train_step1.py` and `train_step2.py` both do.

A stage is data: the two differ in weights, modes and where the target's labels come from, not in code.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tomli_w
import torch

from dataset.corpora import DataError, number_of
from dataset.labels import ClassTable
from dataset.loading import BatchLoader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Normalize
from model.weight_files import first_line
from model.weights import Report, write_weights
from utils import datasets, networks, quick_check
from utils.board import heatmap, pairs_text
from utils.checkpoint import LAST, PREVIOUS, CheckpointError, earlier_one, load_last, save_last
from utils.config import Config, ConfigError, Stage, completed
from utils.diagnostics import changed_pairs
from utils.engine import Losses, Pair, Recipe, TrainState, fit
from utils.files import atomic_write, names_and_sizes
from utils.flags import PREDICTION, Options, next_command
from utils.guard import Guard
from utils.inference import predict
from utils.inspection import Diagnosis
from utils.interrupts import Request, exit_code, postponed
from utils.lock import only_one
from utils.log import RunLog, say, write_json, write_manifest
from utils.metrics import ConfusionMatrix, Counts, iou_array, row_percent
from utils.notes import say_frozen_notes, say_notes
from utils.prepared import prepare_source
from utils.report.write import report_at_end
from utils.resume import changes, refusals
from utils.run_files import CONFIG, CONFUSION, MANIFEST, THRESHOLDS
from utils.run_folder import last_confusion, read_json
from utils.runtime import compile_network, peak_memory_mb, pick_device, seed_everything, tune_kernels
from utils.snapshots import disk_use, drop_old
from utils.tables import format_table

# The script that comes after a stage, and its section of the configuration.
NEXT = {"step1": ("Generate_Pseudo_Label.py", "pseudo_label"), "step2": ("evaluate_cityscapes.py", "evaluate")}


def run_stage(config: Config, options: Options, section: str) -> dict[str, Any]:
    """Train `[step1]` or `[step2]`, alone in the run's folder; returns the summary of the run, which --json writes,
    too."""
    stage: Stage = getattr(config, section)
    folder, classes = stage.snapshot_dir, datasets.class_table(config, options.arguments)
    datasets.keep_out_of_data(config, classes, [Path(folder)], split=stage.split)
    with only_one(folder, "wait for its end, or choose another --snapshot-dir"):
        return _train(config, options, section, classes)


def _train(config: Config, options: Options, section: str, classes: ClassTable) -> dict[str, Any]:
    stage: Stage = getattr(config, section)
    _say_before(config, options, section)
    _check_folder(stage, options)
    device = pick_device(config.run.device)

    with quick_check.full_report_named(options, section):
        source, target = datasets.training_sets(config, stage, classes)
        validation = datasets.validation_loader(config, classes)
        images = validation.images if validation else None
        quick_check.check_data(config, stage, source=source, target=target, validation=images)
        # Only now: the target images that it reads take their time, and what is wrong with the data is said first.
        prepare_source(config, stage, source, classes, resumed=options.continue_train)

    seed_everything(config.run.seed)
    tune_kernels(device, deterministic=config.run.deterministic)
    if options.continue_train:
        network, normalize, report = networks.resumed_network(stage.snapshot_dir, config, classes, device)
    else:
        network, normalize, report = networks.initial_network(stage.restore_from, config, classes, device)
    recipe = Recipe.of(config, stage, normalize)
    method = networks.build_method(network, classes, config, stage, device)
    diagnosis = Diagnosis.begin(config, stage, classes, network, normalize) if config.run.diagnostics else None
    state = TrainState.fresh(method, stage, device=device, precision=config.run.precision)
    batches_from = partial(datasets.training_pairs, stage=stage, source=source, target=target)
    run = TrainingRun(
        guard=Guard(config=config, folder=Path(stage.snapshot_dir), state=state, batches_from=batches_from),
        config=config,
        section=section,
        state=state,
        classes=classes,
        normalize=normalize,
        validation=validation,
        inputs={
            **_inputs(report, source, target),
            "translation": _translation(config, stage, source),
            "pseudo_labels": _pseudo_labels(stage),
        },
        diagnosis=diagnosis,
        before=last_confusion(stage.restore_from, classes.names),
    )
    if config.run.compile:
        compile_network(network, device)
    if options.continue_train:
        run.resume()
    else:
        run.announce(report)

    with RunLog(
        run.folder,
        names=classes.names,
        tensorboard=config.run.tensorboard,
        resume_step=state.step if options.continue_train else None,
        resume_lines=run.lines,
        board_folder=config.run.log_dir or None,
    ) as log:
        run.log = log
        with postponed() as run.request:
            if run.snapshot_is_due:
                run.snapshot()
            batches = batches_from(config, start=state.step)
            with run.kept_after_bad_files():
                fit(state, recipe, stage, batches, on_update=run.update, on_snapshot=run.snapshot)
    summary = run.finish()
    if options.json:
        write_json(options.json, summary)
    if config.run.report:  # last: whatever becomes of it, the run is complete
        report_at_end(run.folder)
    say(f"next: {_next(section, options, stage)}")
    return summary


@dataclass(kw_only=True)
class TrainingRun:
    """What a run leaves behind: its folder, logs, validation scores and checkpoints.

    lines: of the log as the state was saved that is resumed; lines_before: as the snapshot underway began;
    snapshot_step: the update after which the last snapshot was taken; before: confusions of the run whose weights this
    one started from, if they are known.
    """

    guard: Guard
    config: Config
    section: str
    state: TrainState
    classes: ClassTable
    normalize: Normalize
    validation: BatchLoader | None
    inputs: dict[str, Any]
    log: RunLog | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    request: Request = field(default_factory=Request)
    lines: int | None = None
    lines_before: int | None = None
    snapshot_step: int = 0
    diagnosis: Diagnosis | None = None
    before: Counts | None = None

    @property
    def snapshot_is_due(self) -> bool:
        """Whether the run was interrupted between an update and the snapshot that follows it."""
        step = self.state.step
        return step > 0 and self.stage.saves_after(step) and self.snapshot_step != step

    @property
    def stage(self) -> Stage:
        """The settings of the stage."""
        return getattr(self.config, self.section)

    @property
    def folder(self) -> Path:
        """The run's folder, `--snapshot-dir`."""
        return Path(self.stage.snapshot_dir)

    @property
    def meta(self) -> dict[str, Any]:
        """What travels with the weights: where they stand, classes, input statistics, configuration."""
        return {
            "architecture": self.state.method.network.architecture(),
            "step": self.state.step,
            "section": self.section,
            "classes": self.classes.to_mapping(),
            "input": self.normalize.to_dict(),
            "config": self.config.to_dict(),
            "initial_weights": self.inputs["weights"],
        }

    def announce(self, report: Report) -> None:
        """Say what starts, and write down everything that was decided."""
        for line in report.lines:
            say(line)
        say(f"source: {_summary(self.inputs['source'])}, {self.inputs['translation']}")
        say(f"target: {_summary(self.inputs['target'])}")
        for line in _origin_lines(self.stage, self.inputs["pseudo_labels"], report):
            say(line)
        method = self.state.method
        disk = disk_use(self.folder, self.stage, method.network, method.discriminator, method)
        say(f"run folder: {self.folder}; {disk}")
        self._write_config()

    def resume(self) -> None:
        """Go on from `last.pt`. Raises CheckpointError when it is of another network, class table, bank size, or of
        other images."""
        saved = load_last(self.folder)
        try:
            for reason in refusals(saved, self.meta, self.inputs):
                raise ValueError(reason)
            self.state.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = first_line(str(error))
            raise CheckpointError(
                f"{self.folder / LAST} does not fit this configuration ({reason}); continue with the settings in "
                f"{self.folder / CONFIG}, or start in another --snapshot-dir"
            ) from None
        meta = saved["meta"]
        self.scores = meta.get("scores", {})
        self.inputs["weights"] = meta["initial_weights"]
        self.began -= meta["seconds"]
        self.lines = meta.get("lines")
        self.guard.saved_step = self.state.step
        self.snapshot_step = meta.get("snapshot_step", self.state.step)
        self.guard.counts |= meta.get("counts", {})
        self._write_config()
        for change in changes(completed(meta["config"]), self.config.to_dict()):
            say(f"note: differs from the interrupted run: {change}")
        say(f"continuing {self.folder} after {self.state.step} updates")

    def update(self, batches: Sequence[Pair], losses: Losses, rates: dict[str, float]) -> str:
        """Log an update now and then; end the run, its state saved, where that was asked for."""
        step = self.state.step
        due = step % self.config.run.log_every == 0 or self.stage.saves_after(step)
        self.guard.see(batches, losses, judge=due or bool(self.request.signal))
        shown = self._report(losses, rates) if due else ""
        if self.request.signal:
            self._save()
            self._leave()
        return shown

    def snapshot(self) -> None:
        """Validate, then write the weights, the best weights so far, and last the state to resume from."""
        state, stage = self.state, self.stage
        self.guard.require_finite()
        assert self.log is not None
        self.lines_before = self.log.lines  # what is logged of a snapshot that is not finished is logged again
        if self.validation is not None:
            self._validate()
        if self.diagnosis is not None:
            self._diagnose(self.diagnosis)
        stem = f"{stage.prefix}_{state.step}"
        self._write_weights(stem)
        if self.scores and self.scores["miou"] > state.best:
            state.best, state.best_step = self.scores["miou"], state.step
            self._write_weights("best")
        self.snapshot_step, self.lines_before = state.step, None
        self._save()
        drop_old(self.folder, stage, state.step)
        if self.request.signal:
            self._leave()

    @contextlib.contextmanager
    def kept_after_bad_files(self) -> Iterator[None]:
        """A file that cannot be read ends a run, which keeps what it has learnt until then."""
        try:
            yield
        except DataError:
            validating = self.snapshot_is_due
            if self.state.step > self.guard.saved_step:
                self._save()
            if self.guard.saved_step:
                # A training file of another size than when the run began is another data set, which is refused.
                remedy = "mend that" if validating else "mend that, or leave it with --override run.bad_files=skip"
                say(f"saved after update {self.guard.saved_step}; {remedy}, and go on: {self._to_go_on}")
            raise

    def finish(self) -> dict[str, Any]:
        """Write the manifest and say how it went; returns the summary."""
        state = self.state
        device = next(state.method.network.parameters()).device
        last = self.scores if self.scores.get("step") == state.step else {}  # else validation was switched off since
        summary = {
            "section": self.section,
            "folder": str(self.folder),
            "steps": state.step,
            "last": last or None,
            "best_selected_on_target_labels": {"miou": state.best, "step": state.best_step} if self.scores else None,
            "skipped": self.guard.skipped(),
            "seconds": time.monotonic() - self.began,  # over every interruption
            "peak_memory_mb": peak_memory_mb(device),
        }
        write_manifest(self.folder / MANIFEST, {"inputs": self.inputs, "result": summary}, device=device)
        if last:
            names = self.classes.names
            say(format_table(names, iou_array(names, last["iou"]), self.classes.subsets))
            say(
                f"target val, last checkpoint: {last['miou']:.2f} mIoU; best, chosen on target labels: "
                f"{state.best:.2f} at update {state.best_step}"
            )
        say(f"{summary['seconds']:.0f} s, peak memory {summary['peak_memory_mb']:.0f} MiB, in {self.folder}")
        return summary

    def _report(self, losses: Losses, rates: dict[str, float]) -> str:
        """Log an update if it is one of those that are; what the progress bar shows."""
        values = {f"loss/{name}": value for name, value in _to_floats(losses).items()}
        if self.state.step % self.config.run.log_every == 0:
            assert self.log is not None
            skipped = {f"skipped/{name}": count for name, count in self.guard.skipped().items()}
            self.log.scalars(self.state.step, values | rates | self._memory() | skipped)
        return f"seg {values['loss/seg']:.3f}" + (f", mIoU {self.scores['miou']:.1f}" if self.scores else "")

    def _save(self) -> None:
        """Write the state to resume from."""
        self.guard.require_finite()
        assert self.log is not None
        progress = {
            "scores": self.scores,
            "seconds": time.monotonic() - self.began,
            "inputs": {domain: self.inputs[domain] for domain in ("source", "target")},
            "lines": self.log.lines if self.lines_before is None else self.lines_before,
            "snapshot_step": self.snapshot_step,
            "counts": self.guard.counts | self.guard.skipped(),
        }
        save_last(self.folder, self.state.state_dict() | {"meta": self.meta | progress})
        self.guard.saved_step = self.state.step

    def _leave(self) -> NoReturn:
        """End the process as its signal asked, after the state was saved."""
        name = signal.Signals(self.request.signal).name
        say(f"{name}: saved after update {self.state.step}; to go on: {self._to_go_on}")
        raise SystemExit(exit_code(self.request.signal))

    @property
    def _to_go_on(self) -> str:
        """The command that resumes this run."""
        script = f"train_{self.section}.py"
        return shlex.join(["python", script, "--config", str(self.folder / CONFIG), "--continue-train"])

    def _write_config(self) -> None:
        """Everything resolved, in a form that --config takes."""
        with atomic_write(self.folder / CONFIG) as temporary:
            temporary.write_bytes(tomli_w.dumps(self.config.to_dict()).encode())

    def _validate(self) -> None:
        assert self.validation is not None
        network = self.state.method.network
        confusion = ConfusionMatrix(self.classes.num_classes)
        for item in predict(network, self.validation, normalize=self.normalize, precision=self.config.run.precision):
            if self.request.signal:  # a validation may take longer than whoever asks to end will wait
                self._save()
                self._leave()
            confusion.update(item.classes(), item.label.numpy())
        quick_check.require_labelled_pixels(confusion, "the labels of target val")
        self.scores = confusion.to_dict(self.classes.names, self.classes.subsets) | {"step": self.state.step}
        say(f"update {self.state.step}: {self.scores['miou']:.2f} mIoU on target val")
        assert self.log is not None
        self.log.scalars(self.state.step, {"miou": self.scores["miou"], "iou": confusion.iou()})
        matrix = {"step": self.state.step, "classes": self.classes.names, "confusion": confusion.counts}
        write_json(self.folder / CONFUSION, matrix)
        if self.log.has_board:
            self._show_confusions(confusion.counts)

    def _show_confusions(self, counts: Counts) -> None:
        """For TensorBoard: the confusions, and what became of them since the run that this one started from."""
        assert self.log is not None
        step, names = self.state.step, self.classes.names
        self.log.picture(step, "confusion", heatmap(row_percent(counts)[:, :-1], names, top=100))
        if self.before is not None:
            self.log.text(step, "confusion_pairs", pairs_text(*changed_pairs(self.before, counts), names))

    def _diagnose(self, diagnosis: Diagnosis) -> None:
        """Log how far classes and domains lie apart; the matrices go to files of their own."""
        assert self.log is not None
        measured = diagnosis.measure()
        self.log.scalars(self.state.step, measured.scalars() | diagnosis.pseudo_scalars())
        content = {"step": self.state.step, "classes": self.classes.names, **measured.to_dict()}
        write_json(self.folder / "diagnostics" / f"{self.state.step}.json", content)
        if self.log.has_board:
            for name, matrix in measured.matrices.items():
                top = float(np.nanmax(matrix, initial=0.0))
                self.log.picture(self.state.step, f"divergence_{name}", heatmap(matrix, self.classes.names, top=top))

    def _write_weights(self, stem: str) -> None:
        method = self.state.method
        write_weights(self.folder / f"{stem}.pth", method.network.state_dict(), self.meta)
        write_weights(self.folder / f"{stem}_D.pth", method.discriminator.state_dict(), {"step": self.state.step})

    def _memory(self) -> dict[str, float]:
        """Bank fill, the filter's acceptance in the last batch and AIM's weight per class; NaN where there was none."""
        method, names = self.state.method, self.classes.names
        values = {f"accepted/{name}": share for name, share in zip(names, method.acceptance.tolist(), strict=True)}
        for bank in (method.stuff_bank, method.thing_bank):
            for category, fill in zip(bank.categories, bank.fill.tolist(), strict=True):
                values[f"bank/{names[category]}"] = fill
        if self.stage.aim == "adaptive":
            eta = method.adaptive().masked_fill(~method.adaptive.seen, math.nan).tolist()
            values |= {f"aim/{names[category]}": eta[category] for category in self.classes.things}
        return values


def _say_before(config: Config, options: Options, section: str) -> None:
    """Everything that a user should know and that is no mistake."""
    stage: Stage = getattr(config, section)
    say_notes(config, options)
    if not options.continue_train:
        say_frozen_notes(config, stage)
    if f"{section}.pseudo_labels" in options.changes and not datasets.wants_pseudo_labels(stage):
        say("note: --ssl-target-dir has no effect here: nothing in the stage reads pseudo labels")


def _check_folder(stage: Stage, options: Options) -> None:
    """A run never overwrites another one silently, nor resumes or starts from one that is not there."""
    folder = Path(stage.snapshot_dir)
    if options.continue_train:
        if not (folder / LAST).exists():
            raise ConfigError(f"--continue-train: there is no {folder / LAST} to go on from{earlier_one(folder)}")
        return
    another = "choose another --snapshot-dir, or remove the folder"
    if (folder / LAST).exists():
        raise ConfigError(f"{folder} already holds a run: add --continue-train to go on with it, {another}")
    if any((folder / name).exists() for name in (PREVIOUS, MANIFEST)):
        raise ConfigError(f"{folder} holds what a run left, without the {LAST} to go on from: {another}")
    if options.config_path and Path(options.config_path).resolve() == (folder / CONFIG).resolve():
        raise ConfigError(
            f"--config {options.config_path} would be overwritten by this run's own; choose another --snapshot-dir"
        )
    networks.last_checkpoint(stage.restore_from)


def _inputs(report: Report, source: SegmentationDataset, target: SegmentationDataset | None) -> dict[str, Any]:
    """What went into the run, for log and manifest."""
    domains = {"source": source, "target": target}
    described = {name: _describe(dataset) if dataset else "not used" for name, dataset in domains.items()}
    return {"weights": list(report.lines), **described}


def _pseudo_labels(stage: Stage) -> dict[str, Any] | None:
    """What the pseudo labels were made with, None where none are read; empty where their folder does not say."""
    if not datasets.wants_pseudo_labels(stage):
        return None
    record = read_json(Path(stage.pseudo_labels) / THRESHOLDS)
    return {key: record[key] for key in ("restore_from", "sha256")} if "sha256" in record else {}


def _origin_lines(stage: Stage, made_with: dict[str, Any] | None, report: Report) -> Iterator[str]:
    """Whose pseudo labels are learnt from, and a note where that is not the network that the stage starts from."""
    if made_with is None:
        return
    if not made_with:
        yield f"note: {stage.pseudo_labels} has no {THRESHOLDS}, so what made these pseudo labels is not known"
        return
    digest = made_with["sha256"][:12]
    yield f"pseudo labels: {stage.pseudo_labels}, of {made_with['restore_from']}, sha256 {digest}"
    if not any(digest in line for line in report.lines):
        yield "note: these pseudo labels are of other weights than the stage starts from"


def _translation(config: Config, stage: Stage, source: SegmentationDataset) -> str:
    """How source images come to the network."""
    if source.translate is None:
        return "as stored"
    settings, count = config.translation, len(source.translate.styles)
    details = [settings.method, f"{number_of(count, 'style')} of target {stage.split}"]
    if settings.method == "fda":
        details.insert(1, f"beta {settings.beta:g}")
    if settings.probability < 1:
        details.append(f"probability {settings.probability:g}")
    return f"translated on the fly: {', '.join(details)}"


def _describe(dataset: SegmentationDataset) -> dict[str, Any]:
    """Which files a data set is made of; the hash covers their names and sizes, not their contents."""
    files = [path for sample in dataset.samples for path in (sample.image, sample.label) if path is not None]
    first = dataset.samples[0]
    return {
        "images": len(dataset),
        "first_image": str(first.image),
        "first_label": None if first.label is None else str(first.label),
        "sha256_of_names_and_sizes": names_and_sizes(files),
    }


def _summary(described: dict[str, Any] | str) -> str:
    """One console line of what `_describe` gives."""
    if isinstance(described, str):
        return described
    labels = f", labels like {described['first_label']}" if described["first_label"] else ", no labels"
    return f"{described['images']} images like {described['first_image']}{labels}"


def _to_floats(losses: Losses) -> dict[str, float]:
    """All losses to the host in one transfer."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in losses.values()])
    return dict(zip(losses, values.tolist(), strict=True))


def _next(section: str, options: Options, stage: Stage) -> str:
    """The command that comes after a stage, with what it cannot guess."""
    script, following = NEXT[section]
    hands = {f"{following}.restore_from": stage.snapshot_dir}
    if following == "pseudo_label":
        hands["pseudo_label.split"] = stage.split
    return next_command(options, [script], flags=PREDICTION, section=following, hands=hands)
