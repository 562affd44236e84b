"""The predictions of a split as PNGs, as scores, or both: what `evaluate_cityscapes.py` does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dataset.corpora import DataError, Sample
from dataset.labels import ClassTable, to_label_ids
from utils import datasets, quick_check, tables
from utils.background import in_background, write_png
from utils.config import Config, ConfigError
from utils.console import progress, say
from utils.evaluation import Evaluation, labels_and_confidence
from utils.flags import Options, next_command
from utils.inference import Prediction, Views
from utils.json_files import write_json
from utils.outputs import unfinished
from utils.prediction_run import PredictionRun, prediction_run
from utils.run_files import THRESHOLDS


def evaluate(config: Config, options: Options) -> None:
    """Do with the predictions what the `[evaluate]` section and the flags say."""
    settings = config.evaluate
    classes = datasets.class_table(config, options.arguments)
    folders = _folders(config, options, classes)
    in_memory = options.arguments.in_memory
    run = prediction_run(
        config,
        options,
        restore_from=settings.restore_from,
        split=settings.split,
        views=Views(settings.scales, settings.flip),
        outputs=folders.values(),
        labelled=in_memory,
    )
    if "save" in folders:
        _refuse_names_of_colours(run.images.samples)
    evaluation = Evaluation(classes.names, classes.subsets, boundary_ratio=settings.boundary_ratio)

    def finish(item: Prediction) -> Evaluation:
        """Score and write one prediction."""
        part = evaluation.part()
        labels = score(part, item) if in_memory else item.classes()
        for path, image in _images(PurePosixPath(item.name).stem, labels, classes, folders):
            write_png(path, image)
        return part

    with ExitStack() as stack:
        made_by = _made_by(config, classes, run)
        stays = [stack.enter_context(unfinished(folder, made_by)) for folder in folders.values()]
        if all(stays) and not in_memory:  # a score needs every image
            kept = run.leave_out(lambda name: _is_done(name, classes, folders))
            say(f"{kept} of {run.total} predictions are there already, from a process that was interrupted")
        finished = in_background(finish, run.stream)
        for part in progress(finished, total=len(run.images), description="evaluate", unit="image"):
            evaluation.merge(part)

    result: dict[str, Any] = {"restore_from": str(run.weights.path), "sha256": run.weights.sha256, "images": run.total}
    if in_memory:
        quick_check.require_labelled_pixels(evaluation.confusion, f"the labels of target {settings.split}")
        report = evaluation.report()
        tables.publish(report, csv_file=options.arguments.csv, markdown_file=options.arguments.markdown)
        result |= report.to_dict()
    if options.json:
        write_json(options.json, result | {key: str(folder) for key, folder in folders.items()})
    _say_end(config, options, classes, folders, run.total)


def score(evaluation: Evaluation, item: Prediction) -> np.ndarray:
    """The train ids (H, W) of a prediction at its label's size, scored."""
    labels, confidence = labels_and_confidence(item.logits, item.label.shape[-2:])
    predicted = labels.cpu().numpy()
    evaluation.update(predicted, item.label.numpy(), confidence.cpu().numpy())
    return predicted


def _folders(config: Config, options: Options, classes: ClassTable) -> dict[str, Path]:
    """Where PNGs go: `save` for train ids and colours, `label_ids` for official ids. Raises ConfigError for flags that
    cannot be together."""
    settings, arguments = config.evaluate, options.arguments
    if (arguments.csv or arguments.markdown) and not arguments.in_memory:
        raise ConfigError("--csv and --markdown need --in-memory: without it nothing is scored")
    folders = {"save": Path(settings.save)}
    if arguments.in_memory and "evaluate.save" not in options.changes:
        del folders["save"]
    if settings.label_ids:
        if classes.label_ids is None:
            raise ConfigError("[evaluate] label_ids: the class table has no label_ids; add them under [classes]")
        folders["label_ids"] = Path(settings.label_ids)
    if len({os.path.abspath(folder) for folder in folders.values()}) < len(folders):
        raise ConfigError(f"--save and --label-ids both name {settings.save}: their files have the same names")
    for key, folder in folders.items():
        if (folder / THRESHOLDS).exists():  # which would vouch for predictions
            flag = key.replace("_", "-")
            raise ConfigError(f"{folder} holds pseudo labels ({THRESHOLDS}); choose another --{flag}")
    return folders


def _images(
    stem: str, labels: np.ndarray, classes: ClassTable, folders: dict[str, Path]
) -> Iterator[tuple[Path, Image.Image]]:
    """The files of one prediction."""
    if "save" in folders:
        yield folders["save"] / f"{stem}.png", Image.fromarray(labels)
        yield folders["save"] / f"{stem}_color.png", classes.colorize(labels)
    if "label_ids" in folders and classes.label_ids is not None:
        yield folders["label_ids"] / f"{stem}.png", Image.fromarray(to_label_ids(labels, classes.label_ids))


def _refuse_names_of_colours(samples: Sequence[Sample]) -> None:
    """Raise DataError for an image whose prediction would be written where the colours of another go."""
    stems = {PurePosixPath(sample.name).stem for sample in samples}
    for stem in sorted(stems):
        if f"{stem}_color" in stems:
            raise DataError(f"the colours of {stem} and the prediction of {stem}_color share a file; rename an image")


def _is_done(name: str, classes: ClassTable, folders: dict[str, Path]) -> bool:
    """Whether every file of an image is there; each is whole, or it would not be."""
    nothing = np.zeros((1, 1), dtype=np.uint8)
    return all(path.exists() for path, _ in _images(PurePosixPath(name).stem, nothing, classes, folders))


def _made_by(config: Config, classes: ClassTable, run: PredictionRun) -> dict[str, Any]:
    """What decides every pixel that is written."""
    return {
        **run.made_by,
        "target": config.target,
        "evaluate": dataclasses.asdict(config.evaluate),
        "precision": config.run.precision,
        "device": config.run.device,
        "classes": classes.to_mapping(),
    }


def _say_end(config: Config, options: Options, classes: ClassTable, folders: dict[str, Path], total: int) -> None:
    """Where everything is, and the command that comes next; PNGs that were not written cannot be scored."""
    if "label_ids" in folders:
        say(f"{total} predictions of official label ids in {folders['label_ids']}")
    if "save" not in folders:
        return
    say(f"{total} predictions in {folders['save']}")
    data = datasets.corpus(config, "target", classes)
    truth = data.label_folder(config.evaluate.split)
    if not truth.is_dir():
        say(f"there are no labels in {truth} to score them with")
        return
    if not options.arguments.in_memory and quick_check.labels_of_another_size(data, config.evaluate.split):
        say(
            f"next: the same command with --in-memory; labels in {truth} have another size than their images, and so"
            " than these predictions, which compute_iou.py refuses"
        )
        return
    command = ["compute_iou.py", str(truth), str(folders["save"])]
    if not options.config_path:  # the configuration came with the weights alone
        say(f"next: {' '.join(command)}, with --config and the configuration of the training")
        return
    hands = {"evaluate.split": config.evaluate.split}
    say(f"next: {next_command(options, command, flags=(), section='evaluate', hands=hands)}")
