"""One training run from configuration to checkpoints: what `train_step1.py` and `train_step2.py` both do.

A stage is data: the two differ in weights, modes and where the target's labels come from, not in code.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch

from dataset.labels import ClassTable
from dataset.loading import BatchLoader
from dataset.segmentation import SegmentationDataset
from utils import datasets, networks, quick_check
from utils.config import Config, ConfigError, Stage
from utils.console import say
from utils.engine import TrainState, UpdateRule, fit, update
from utils.files import atomic_write
from utils.flags import PREDICTION, Options, next_command
from utils.guard import Guard
from utils.inspection import Diagnosis
from utils.interrupts import postponed
from utils.json_files import write_json
from utils.lock import only_one
from utils.log import RunLog
from utils.notes import say_frozen_notes, say_idle_notes, say_notes
from utils.prepared import prepare_source
from utils.report.write import report_at_end
from utils.resume import AFTERWARDS, Progress, has_state, resumed
from utils.run_files import CONFIG, LAST
from utils.run_folder import last_confusion
from utils.runtime import compile_network, pick_device, seed_everything, tune_kernels
from utils.snapshots import disk_use
from utils.training import Training, describe_inputs, input_lines
from utils.training_run import TrainingRun

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
    options = replace(options, continue_train=_goes_on(stage, options))
    _say_before(config, options, section)
    device = pick_device(config.run.device)
    data = _data(config, options, section, classes)
    training = _training(config, options, section, classes, data, device)
    network, normalize = training.state.method.network, training.normalize
    diagnosis = Diagnosis.begin(config, stage, classes, network, normalize) if config.run.diagnostics else None
    if config.run.compile:
        compile_network(network, device)
    progress = Progress()
    if options.continue_train:
        training, progress = resumed(training)
    else:
        _announce(training)
    _write_config(training)

    batches_from = partial(datasets.training_pairs, stage=stage, source=data.source, target=data.target)
    guard = Guard(
        config=config,
        folder=training.folder,
        state=training.state,
        batches_from=batches_from,
        counts=progress.counts,
        saved_step=training.state.step,
    )
    with _log(training, progress, goes_on=options.continue_train) as log:
        run = TrainingRun(
            training=training,
            progress=progress,
            log=log,
            guard=guard,
            validation=data.validation,
            diagnosis=diagnosis,
            before=last_confusion(stage.restore_from, classes.names),
        )
        with postponed() as run.request:
            if run.snapshot_is_due:
                run.snapshot()
            batches = batches_from(config, start=run.step)
            learn = partial(update, training.state, UpdateRule.of(config, stage, normalize), stage)
            with run.kept_after_bad_files():
                fit(training.state, stage, batches, learn, on_update=run.update, on_snapshot=run.snapshot)
    summary = run.finish()
    if options.json:
        write_json(options.json, summary)
    if config.run.report:  # last: whatever becomes of it, the run is complete
        report_at_end(training.folder)
    say(f"next: {_next(section, options, stage)}")
    return summary


class Data(NamedTuple):
    """What a stage reads; target: None where it never looks there, validation: None where there is no list."""

    source: SegmentationDataset
    target: SegmentationDataset | None
    validation: BatchLoader | None


def _data(config: Config, options: Options, section: str, classes: ClassTable) -> Data:
    """Everything that is read, looked at before anything long begins."""
    stage: Stage = getattr(config, section)
    with quick_check.full_report_named(options, section):
        source, target = datasets.training_sets(config, stage, classes)
        validation = datasets.validation_loader(config, classes)
        images = validation.images if validation else None
        quick_check.check_data(config, stage, source=source, target=target, validation=images)
        # Only now: the target images that it reads take their time, and what is wrong with the data is said first.
        prepare_source(config, stage, source, classes, resumed=options.continue_train)
    return Data(source, target, validation)


def _training(
    config: Config, options: Options, section: str, classes: ClassTable, data: Data, device: torch.device
) -> Training:
    """The networks and their state, as they are before the first update."""
    stage: Stage = getattr(config, section)
    seed_everything(config.run.seed)
    tune_kernels(device, deterministic=config.run.deterministic)
    if options.continue_train:
        network, normalize, report = networks.resumed_network(stage.snapshot_dir, config, classes, device)
    else:
        network, normalize, report = networks.initial_network(stage.restore_from, config, classes, device)
    method = networks.build_method(network, classes, config, stage, device)
    return Training(
        config=config,
        section=section,
        state=TrainState.fresh(method, stage, device=device, precision=config.run.precision),
        classes=classes,
        normalize=normalize,
        inputs=describe_inputs(config, stage, report, data.source, data.target),
    )


def _log(training: Training, progress: Progress, *, goes_on: bool) -> RunLog:
    run = training.config.run
    return RunLog(
        training.folder,
        names=training.classes.names,
        tensorboard=run.tensorboard,
        resume_step=training.state.step if goes_on else None,
        resume_lines=progress.lines,
        board_folder=run.log_dir or None,
    )


def _announce(training: Training) -> None:
    """Say what starts."""
    for line in input_lines(training):
        say(line)
    method = training.state.method
    disk = disk_use(training.folder, training.stage, method.network, method.discriminator, method)
    say(f"run folder: {training.folder}; {disk}")


def _write_config(training: Training) -> None:
    """Everything resolved, in a form that --config takes."""
    with atomic_write(training.folder / CONFIG) as temporary:
        temporary.write_bytes(tomli_w.dumps(training.config.to_dict()).encode())


def _say_before(config: Config, options: Options, section: str) -> None:
    """Everything that a user should know and that is no mistake."""
    stage: Stage = getattr(config, section)
    say_notes(config, options)
    if not options.continue_train:
        say_frozen_notes(config, stage)
        say_idle_notes(config, options, section)


def _goes_on(stage: Stage, options: Options) -> bool:
    """Whether the run goes on from a state. Raises ConfigError where it would overwrite another one silently, or resume
    or start from one that is not there."""
    folder = Path(stage.snapshot_dir)
    if not options.continue_train:
        _refuse_what_is_there(folder, options)
    elif has_state(folder):
        return True
    networks.last_checkpoint(stage.restore_from)
    return False


def _refuse_what_is_there(folder: Path, options: Options) -> None:
    """Raise ConfigError for a folder in which a new run would overwrite something."""
    another = "choose another --snapshot-dir, or remove the folder"
    if (folder / LAST).exists():
        raise ConfigError(f"{folder} already holds a run: add --continue-train to go on with it, {another}")
    if any((folder / name).exists() for name in AFTERWARDS):
        raise ConfigError(f"{folder} holds what a run left, without the {LAST} to go on from: {another}")
    if options.config_path and Path(options.config_path).resolve() == (folder / CONFIG).resolve():
        raise ConfigError(
            f"--config {options.config_path} would be overwritten by this run's own; choose another --snapshot-dir"
        )


def _next(section: str, options: Options, stage: Stage) -> str:
    """The command that comes after a stage, with what it cannot guess."""
    script, following = NEXT[section]
    hands = {f"{following}.restore_from": stage.snapshot_dir}
    if following == "pseudo_label":
        hands["pseudo_label.split"] = stage.split
    return next_command(options, [script], flags=PREDICTION, section=following, hands=hands)
