"""One training run from configuration to checkpoints: what `train_step1.py` and `train_step2.py` both do.

A stage is data: the two differ in weights, modes and where the target's labels come from, not in code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch

from dataset.labels import ClassTable
from dataset.loading import BatchLoader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Normalize
from model.weight_files import first_line
from model.weights import Report, write_weights
from utils import build
from utils.checkpoint import CheckpointError, load_state, save_state
from utils.config import Config, ConfigError, Stage
from utils.engine import Losses, Pair, Recipe, TrainState, fit
from utils.files import atomic_write
from utils.flags import PREDICTION, Options, next_command
from utils.inference import predict
from utils.log import RunLog, say, write_json, write_manifest
from utils.metrics import ConfusionMatrix, iou_array
from utils.runtime import compile_network, peak_memory_mb, pick_device, seed_everything, tune_kernels
from utils.strips import class_map
from utils.tables import format_table

# The script that comes after a stage, and its section of the configuration.
NEXT = {"step1": ("Generate_Pseudo_Label.py", "pseudo_label"), "step2": ("evaluate_cityscapes.py", "evaluate")}


def run_stage(config: Config, options: Options, section: str) -> dict[str, Any]:
    """Train `[step1]` or `[step2]`; returns the summary of the run, which --json writes, too."""
    stage: Stage = getattr(config, section)
    build.say_notes(config, options)
    if f"{section}.pseudo_labels" in options.changes and not build.wants_pseudo_labels(stage):
        say("note: --ssl-target-dir has no effect here: nothing in the stage reads pseudo labels")
    _check_folder(stage, options)
    device = pick_device(config.run.device)

    classes = build.class_table(config, options.arguments)
    weights = dataclasses.asdict(stage.weights)
    needs_target = Recipe.needs_target(weights, stage.statistics)
    with build.full_report_named(options, section):
        source = build.source_dataset(config, stage, classes)
        target = build.target_dataset(config, stage, classes) if needs_target else None
        validation = build.validation_loader(config, classes)
        images = validation.images if validation else None
        build.check_data(config, stage, source=source, target=target, validation=images)

    seed_everything(config.run.seed)
    tune_kernels(device)
    # A run that goes on brings its own weights; those it once started from may be gone.
    restore_from = "random" if options.continue_train else stage.restore_from
    network, report = build.network_and_report(config, restore_from, classes, device)
    normalize = build.normalizer(network, config)
    recipe = Recipe(weights=weights, statistics=stage.statistics, precision=config.run.precision, normalize=normalize)
    method = build.build_method(network, classes, config, stage, device)
    state = TrainState.fresh(method, stage, device=device, precision=config.run.precision)
    run = TrainingRun(
        config=config,
        section=section,
        state=state,
        classes=classes,
        normalize=normalize,
        validation=validation,
        inputs=_inputs(report, source, target),
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
        board_folder=config.run.log_dir or None,
    ) as log:
        run.log = log
        batches = build.training_pairs(config, stage, source, target, start=state.step)
        fit(state, recipe, stage, batches, on_update=run.update, on_snapshot=run.snapshot)
    summary = run.finish()
    if options.json:
        write_json(options.json, summary)
    say(f"next: {_next(section, options, stage)}")
    return summary


@dataclass(kw_only=True)
class TrainingRun:
    """What a run leaves behind: its folder, logs, validation scores and checkpoints."""

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
        classes, normalize = self.classes, self.normalize
        return {
            "architecture": self.state.method.network.architecture(),
            "step": self.state.step,
            "section": self.section,
            "classes": {
                "names": list(classes.names),
                "palette": [list(colour) for colour in classes.palette],
                "stuff": list(classes.stuff),
                "things": list(classes.things),
            },
            "input": {"order": normalize.order, "mean": list(normalize.mean), "std": list(normalize.std)},
            "config": self.config.to_dict(),
            "initial_weights": self.inputs["weights"],
        }

    def announce(self, report: Report) -> None:
        """Say what starts, and write down everything that was decided."""
        for line in report.lines:
            say(line)
        for domain in ("source", "target"):
            say(f"{domain}: {_summary(self.inputs[domain])}")
        say(f"run folder: {self.folder}")
        self._write_config()

    def resume(self) -> None:
        """Go on from `last.pt`. Raises CheckpointError when it is of another network, class table or bank size."""
        saved = load_state(self.folder / "last.pt")
        try:
            self.state.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = first_line(str(error))
            raise CheckpointError(
                f"{self.folder / 'last.pt'} does not fit this configuration ({reason}); continue with the settings in "
                f"{self.folder / 'config.toml'}, or start in another --snapshot-dir"
            ) from None
        self.scores = saved["meta"].get("scores", {})
        self.inputs["weights"] = saved["meta"]["initial_weights"]
        self.began -= saved["meta"]["seconds"]
        self._write_config()
        for change in _changes(saved["meta"]["config"], self.config.to_dict()):
            say(f"note: differs from the interrupted run: {change}")
        say(f"continuing {self.folder} after {self.state.step} updates")

    def update(self, batches: Sequence[Pair], losses: Losses, rates: dict[str, float]) -> str:
        """Log an update now and then; stop at a loss that is no number, in any case before it is saved."""
        logged = self.state.step % self.config.run.log_every == 0
        if not (logged or self.stage.saves_after(self.state.step)):
            return ""
        values = {f"loss/{name}": value for name, value in _to_floats(losses).items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            images = ", ".join(name for pair in batches for side in pair if side for name in side.names)
            raise FloatingPointError(f"{', '.join(broken)} not finite at update {self.state.step}, images {images}")
        if logged:
            assert self.log is not None
            self.log.scalars(self.state.step, values | rates | self._memory())
        return f"seg {values['loss/seg']:.3f}" + (f", mIoU {self.scores['miou']:.1f}" if self.scores else "")

    def snapshot(self) -> None:
        """Validate, then write the weights, the best weights so far, and last the state to resume from."""
        state, stage = self.state, self.stage
        if self.validation is not None:
            self._validate()
        stem = f"{stage.prefix}_{state.step}"
        self._write_weights(stem)
        if self.scores and self.scores["miou"] > state.best:
            state.best, state.best_step = self.scores["miou"], state.step
            self._write_weights("best")
        progress = {"scores": self.scores, "seconds": time.monotonic() - self.began}
        save_state(self.folder / "last.pt", state.state_dict() | {"meta": self.meta | progress})

    def finish(self) -> dict[str, Any]:
        """Write the manifest and say how it went; returns the summary."""
        state = self.state
        device = next(state.method.network.parameters()).device
        summary = {
            "section": self.section,
            "folder": str(self.folder),
            "steps": state.step,
            "last": self.scores or None,
            "best_selected_on_target_labels": {"miou": state.best, "step": state.best_step} if self.scores else None,
            "seconds": time.monotonic() - self.began,  # over every interruption
            "peak_memory_mb": peak_memory_mb(device),
        }
        write_manifest(self.folder / "manifest.json", {"inputs": self.inputs, "result": summary}, device=device)
        if self.scores:
            names = self.classes.names
            say(format_table(names, iou_array(names, self.scores["iou"]), self.classes.subsets))
            say(
                f"target val, last checkpoint: {self.scores['miou']:.2f} mIoU; best, chosen on target labels: "
                f"{state.best:.2f} at update {state.best_step}"
            )
        say(f"{summary['seconds']:.0f} s, peak memory {summary['peak_memory_mb']:.0f} MiB, in {self.folder}")
        return summary

    def _write_config(self) -> None:
        """Everything resolved, in a form that --config takes."""
        with atomic_write(self.folder / "config.toml") as temporary:
            temporary.write_bytes(tomli_w.dumps(self.config.to_dict()).encode())

    def _validate(self) -> None:
        assert self.validation is not None
        network = self.state.method.network
        confusion = ConfusionMatrix(self.classes.num_classes)
        for item in predict(network, self.validation, normalize=self.normalize, precision=self.config.run.precision):
            confusion.update(class_map(item.logits, item.label.shape[-2:]).cpu().numpy(), item.label.numpy())
        build.require_labelled_pixels(confusion, "the labels of target val")
        self.scores = confusion.to_dict(self.classes.names, self.classes.subsets) | {"step": self.state.step}
        say(f"update {self.state.step}: {self.scores['miou']:.2f} mIoU on target val")
        assert self.log is not None
        self.log.scalars(self.state.step, {"miou": self.scores["miou"], "iou": confusion.iou()})

    def _write_weights(self, stem: str) -> None:
        method = self.state.method
        write_weights(self.folder / f"{stem}.pth", method.network.state_dict(), self.meta)
        write_weights(self.folder / f"{stem}_D.pth", method.discriminator.state_dict(), {"step": self.state.step})

    def _memory(self) -> dict[str, float]:
        """Bank fill and AIM's weight per class."""
        method, names = self.state.method, self.classes.names
        values = {}
        for bank in (method.stuff_bank, method.thing_bank):
            for category, fill in zip(bank.categories, bank.fill.tolist(), strict=True):
                values[f"bank/{names[category]}"] = fill
        if self.stage.aim == "adaptive":
            eta = method.adaptive().tolist()
            values |= {f"aim/{names[category]}": eta[category] for category in self.classes.things}
        return values


def _check_folder(stage: Stage, options: Options) -> None:
    """A run never overwrites another one silently, nor resumes one that is not there."""
    exists = (Path(stage.snapshot_dir) / "last.pt").exists()
    if exists and not options.continue_train:
        raise ConfigError(
            f"{stage.snapshot_dir} already holds a run: add --continue-train to go on with it, choose another "
            "--snapshot-dir, or remove the folder"
        )
    if options.continue_train and not exists:
        raise ConfigError(f"--continue-train: there is no {Path(stage.snapshot_dir) / 'last.pt'} to go on from")


def _inputs(report: Report, source: SegmentationDataset, target: SegmentationDataset | None) -> dict[str, Any]:
    """What went into the run, for log and manifest."""
    domains = {"source": source, "target": target}
    described = {name: _describe(dataset) if dataset else "not used" for name, dataset in domains.items()}
    return {"weights": list(report.lines), **described}


def _describe(dataset: SegmentationDataset) -> dict[str, Any]:
    """Which files a data set is made of; the hash covers their names and sizes, not their contents."""
    files = [path for sample in dataset.samples for path in (sample.image, sample.label) if path is not None]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    first = dataset.samples[0]
    return {
        "images": len(dataset),
        "first_image": str(first.image),
        "first_label": None if first.label is None else str(first.label),
        "sha256_of_names_and_sizes": digest.hexdigest(),
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


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting that differs, nested keys dotted."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _changes(left, right, f"{prefix}{key}.")
        elif _plain(left) != _plain(right):
            found.append(f"{prefix}{key}: {left} -> {right}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _next(section: str, options: Options, stage: Stage) -> str:
    """The command that comes after a stage, with what it cannot guess."""
    script, following = NEXT[section]
    hands = {f"{following}.restore_from": stage.snapshot_dir}
    return next_command(options, [script], flags=PREDICTION, section=following, hands=hands)
