"""What both prediction scripts begin with: a trained network at work on a split of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dataset.labels import ClassTable
from dataset.segmentation import SegmentationDataset
from model.weights import Weights
from utils import datasets, networks, quick_check
from utils.config import Config
from utils.console import say
from utils.flags import Options
from utils.inference import Prediction, Views, predict
from utils.notes import say_notes
from utils.runtime import pick_device, tune_kernels


class PredictionRun(NamedTuple):
    """A trained network at work on a split of the target: `stream` yields a `Prediction` per image, `total` in all.

    made_by: weights, architecture and input statistics, as far as they decide what is predicted.
    """

    classes: ClassTable
    weights: Weights
    made_by: Mapping[str, Any]
    total: int
    stream: Iterator[Prediction]
    images: SegmentationDataset

    def leave_out(self, done: Callable[[str], bool]) -> int:
        """Predict no image of whose name `done` is true; how many there are. Before the stream is read from."""
        samples = self.images.samples
        left = [sample for sample in samples if not done(sample.name)]
        left_out, samples[:] = len(samples) - len(left), left
        return left_out


def prediction_run(
    config: Config,
    options: Options,
    *,
    restore_from: str,
    split: str,
    views: Views,
    outputs: Iterable[Path],
    labelled: bool = False,
) -> PredictionRun:
    """What both prediction scripts begin with: data, then weights, then the stream; says what is used.

    outputs: folders that PNGs will be written to. Raises ConfigError where one of them holds the data itself.
    """
    say_notes(config, options)
    classes = datasets.class_table(config, options.arguments)
    folders = list(outputs)
    loader = datasets.prediction_loader(config, split, classes, labelled=labelled, flat=bool(folders))
    datasets.keep_out_of_data(config, classes, folders, split=split, samples=loader.images.samples)
    if labelled:
        labels = [sample.label for sample in loader.images.samples if sample.label is not None]
        quick_check.refuse_train_ids(datasets.corpus(config, "target", classes), labels)
    quick_check.say_orientation(f"target {split}", loader.images.samples)
    device = pick_device(config.run.device)
    tune_kernels(device)
    network, normalize, weights, report = networks.trained_network(restore_from, config, classes, device)
    for line in report.lines:
        say(line)
    stream = predict(
        network,
        loader,
        normalize=normalize,
        precision=config.run.precision,
        views=views,
    )
    made_by = {"weights": weights.sha256, "architecture": network.architecture(), "input": normalize.to_dict()}
    return PredictionRun(classes, weights, made_by, loader.num_images, stream, loader.images)
