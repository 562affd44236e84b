"""One training run from configuration to checkpoints: what `train_step1.py` and `train_step2.py` both do.

A stage is data: the two differ in weights, modes and where the target's labels come from, not in code.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from dataset.corpora import DataError
from dataset.labels import ClassTable
from dataset.loading import BatchLoader
from dataset.transforms import Normalize
from model.weights import Report, write_weights
from utils import build
from utils.checkpoint import CheckpointError, atomic_write, load_state, save_state
from utils.config import Config, ConfigError, Stage
from utils.engine import Losses, Recipe, TrainState, fit
from utils.flags import Options
from utils.inference import label_map, predict
from utils.log import RunLog, say, write_json, write_manifest
from utils.metrics import ConfusionMatrix, format_table
from utils.runtime import peak_memory_mb, pick_device, seed_everything


def run_stage(config: Config, options: Options, section: str) -> dict[str, Any]:
    """Train `[step1]` or `[step2]`; returns the summary of the run, which --json writes, too."""
    stage: Stage = getattr(config, section)
    for note in options.notes:
        say(f"note: {note}")
    _check_folder(stage, options)
    device = pick_device(config.run.device)

    classes = build.class_table(config, options.arguments.num_classes)
    weights = dataclasses.asdict(stage.weights)
    source = build.source_dataset(config, stage, classes)
    needs_target = Recipe.needs_target(weights, stage.statistics)
    target = build.target_dataset(config, stage, classes) if needs_target else None
    validation = build.validation_loader(config, classes)

    seed_everything(config.run.seed)
    network, report = build.network_and_report(config, stage, classes, device)
    normalize = build.normalizer(network)
    recipe = Recipe(weights=weights, statistics=stage.statistics, precision=config.run.precision, normalize=normalize)
    method = build.build_method(network, classes, config, stage, device)
    state = TrainState.fresh(method, stage, device=device, precision=config.run.precision)
    run = TrainingRun(
        config=config,
        section=section,
        name=options.name,
        state=state,
        classes=classes,
        normalize=normalize,
        validation=validation,
        inputs=_inputs(report, source, target),
    )
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
    _say_next(section, options, config)
    return summary


@dataclass(kw_only=True)
class TrainingRun:
    """What a run leaves behind: its folder, logs, validation scores and checkpoints."""

    config: Config
    section: str
    name: str
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
        say(f"source: {self.inputs['source']}\ntarget: {self.inputs['target']}\nrun folder: {self.folder}")
        with atomic_write(self.folder / "config.toml") as temporary:
            temporary.write_bytes(tomli_w.dumps(self.config.to_dict()).encode())

    def resume(self) -> None:
        """Go on from `last.pt`. Raises CheckpointError when it is of another network, class table or bank size."""
        saved = load_state(self.folder / "last.pt")
        try:
            self.state.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{self.folder / 'last.pt'} does not fit this configuration ({first}); continue with the settings in "
                f"{self.folder / 'config.toml'}, or start in another --snapshot-dir"
            ) from None
        self.scores = saved["meta"].get("scores", {})
        for change in _changes(saved["meta"]["config"], self.config.to_dict()):
            say(f"note: differs from the interrupted run: {change}")
        say(f"continuing {self.folder} after {self.state.step} updates")

    def update(self, losses: Losses, rate: float) -> str:
        """Log an update now and then; stop at a loss that is no number."""
        if self.state.step % self.config.run.log_every:
            return ""
        values = {f"loss/{name}": value for name, value in _to_floats(losses).items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"{', '.join(broken)} not finite at update {self.state.step}; see {self.folder}")
        memory = self._memory()
        assert self.log is not None
        self.log.scalars(self.state.step, values | {"learning_rate": rate} | memory)
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
        save_state(self.folder / "last.pt", state.state_dict() | {"meta": self.meta | {"scores": self.scores}})

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
            "seconds": time.monotonic() - self.began,
            "peak_memory_mb": peak_memory_mb(device),
        }
        write_manifest(self.folder / "manifest.json", {"inputs": self.inputs, "result": summary}, device=device)
        if self.scores:
            say(format_table(self.classes.names, _array(self.scores["iou"]), self.classes.subsets))
            say(
                f"target val, last checkpoint: {self.scores['miou']:.2f} mIoU; best, chosen on target labels: "
                f"{state.best:.2f} at update {state.best_step}"
            )
        say(f"{summary['seconds']:.0f} s, peak memory {summary['peak_memory_mb']:.0f} MiB, in {self.folder}")
        return summary

    def _validate(self) -> None:
        assert self.validation is not None
        network = self.state.method.network
        confusion = ConfusionMatrix(self.classes.num_classes)
        for item in predict(network, self.validation, normalize=self.normalize, precision=self.config.run.precision):
            confusion.update(label_map(item.logits, item.label.shape[-2:]).cpu().numpy(), item.label.numpy())
        self.scores = confusion.to_dict(self.classes.names, self.classes.subsets) | {"step": self.state.step}
        if self.scores["miou"] is None:
            raise DataError("the labels of target val hold no labelled pixel; check [target] ids and ignore")
        say(f"update {self.state.step}: {self.scores['miou']:.2f} mIoU on target val")
        assert self.log is not None
        per_class = {f"iou/{name}": value for name, value in self.scores["iou"].items()}
        self.log.scalars(self.state.step, {"miou": self.scores["miou"]} | per_class)

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


def _inputs(report: Report, source: Any, target: Any) -> dict[str, Any]:
    """What went into the run, for log and manifest."""

    def describe(dataset: Any) -> str:
        return f"{len(dataset)} images, first {dataset.samples[0].image}" if dataset else "not used"

    return {"weights": list(report.lines), "source": describe(source), "target": describe(target)}


def _to_floats(losses: Losses) -> dict[str, float]:
    """All losses to the host in one transfer."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in losses.values()])
    return dict(zip(losses, values.tolist(), strict=True))


def _array(iou: dict[str, float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in iou.values()])


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


def _say_next(section: str, options: Options, config: Config) -> None:
    """The command that comes next, with what it cannot guess."""
    script, default = {
        "step1": ("Generate_Pseudo_Label.py", Path("runs") / options.name / "step1"),
        "step2": ("evaluate_cityscapes.py", Path("runs") / options.name / "step2"),
    }[section]
    folder = getattr(config, section).snapshot_dir
    restore = "" if Path(folder) == default else f" --restore-from {folder}"
    say(f"next: python {script} --config {options.config_path}{restore}")
