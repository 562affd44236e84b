"""The pseudo labels of a split, from predictions to PNGs: what `Generate_Pseudo_Label.py` does."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.corpora import UNFINISHED, pseudo_label_name
from utils.background import in_background, write_png
from utils.config import Config, ConfigError, PseudoLabels
from utils.console import progress, say
from utils.flags import TRAINING, Options, next_command
from utils.inference import Views
from utils.json_files import write_json
from utils.outputs import unfinished
from utils.prediction_run import PredictionRun, prediction_run
from utils.pseudo_label import PseudoLabeler, ThresholdReport
from utils.run_files import THRESHOLDS


def generate(config: Config, options: Options) -> None:
    """Write the pseudo labels that the `[pseudo_label]` section describes."""
    settings, folder = config.pseudo_label, Path(config.pseudo_label.save)
    run = prediction_run(
        config,
        options,
        restore_from=settings.restore_from,
        split=settings.split,
        views=Views(settings.scales, settings.flip),
        outputs=[folder],
    )
    _refuse_other_files(folder)
    source = {"restore_from": str(run.weights.path), "sha256": run.weights.sha256}
    # Whoever was interrupted begins again: the thresholds need every prediction.
    with unfinished(folder, source):
        thresholds = predict_and_write(run, folder, settings)
        say(thresholds.format_table(run.classes.names))
        result = {**source, **thresholds.to_dict(run.classes.names)}
        for path in [str(folder / THRESHOLDS), *([options.json] if options.json else [])]:
            write_json(path, result)
    say(f"{run.total} pseudo labels in {folder}")
    hands = {
        "step2.restore_from": settings.restore_from,
        "step2.pseudo_labels": settings.save,
        "step2.split": settings.split,
    }
    say(f"next: {next_command(options, ['train_step2.py'], flags=TRAINING, section='step2', hands=hands)}")


def _refuse_other_files(folder: Path) -> None:
    """Raise ConfigError for a folder of PNGs that this script did not write: its thresholds would vouch for them."""
    ours = any((folder / name).exists() for name in (THRESHOLDS, UNFINISHED))
    if not ours and any(folder.glob("*.png")):
        raise ConfigError(f"{folder} holds PNGs that are no pseudo labels of this script; choose another --save")


def predict_and_write(run: PredictionRun, folder: Path, settings: PseudoLabels) -> ThresholdReport:
    """Every prediction, then the thresholds, then the PNGs; returns the thresholds."""
    width, height = settings.size
    with PseudoLabeler(
        run.classes.num_classes, cache_folder=folder, cap=settings.cap, proportion=settings.proportion
    ) as labeler:
        for item in progress(run.stream, total=run.total, description="predict", unit="image"):
            labeler.add(item.name, item.logits.softmax(dim=0), (height, width))
        thresholds = labeler.report()
        written = in_background(partial(write, folder), labeler.labels())
        for _ in progress(written, total=run.total, description="write", unit="image"):
            pass
    return thresholds


def write(folder: Path, named: tuple[str, np.ndarray]) -> None:
    """Write one image's (name, pseudo label)."""
    name, label = named
    write_png(folder / pseudo_label_name(name), Image.fromarray(label))
