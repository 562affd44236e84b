"""What a training is: its settings, its state, and what went into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.corpora import number_of
from dataset.labels import ClassTable
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Normalize
from model.weights import LoadReport
from utils import datasets
from utils.config import Config, Stage
from utils.engine import TrainState
from utils.files import names_and_sizes
from utils.json_files import read_json
from utils.run_files import THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class Training:
    """Section `section` of a configuration, being trained. inputs: what `describe_inputs` gives."""

    config: Config
    section: str
    state: TrainState
    classes: ClassTable
    normalize: Normalize
    inputs: dict[str, Any]

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


def describe_inputs(
    config: Config, stage: Stage, report: LoadReport, source: SegmentationDataset, target: SegmentationDataset | None
) -> dict[str, Any]:
    """What goes into a run, in JSON's types, for its log, its manifest and whoever goes on with it."""
    domains = {"source": source, "target": target}
    described = {name: _describe(dataset) if dataset else "not used" for name, dataset in domains.items()}
    return {
        "weights": list(report.lines),
        **described,
        "translation": _translation(config, stage, source),
        "pseudo_labels": _pseudo_labels(stage),
    }


def input_lines(training: Training) -> Iterator[str]:
    """The same for people, with a note where the pseudo labels are not of the network that the stage starts from."""
    inputs, folder = training.inputs, training.stage.pseudo_labels
    yield from inputs["weights"]
    yield f"source: {_summary(inputs['source'])}, {inputs['translation']}"
    yield f"target: {_summary(inputs['target'])}"
    made_with = inputs["pseudo_labels"]
    if made_with is None:
        return
    if not made_with:
        yield f"note: {folder} has no {THRESHOLDS}, so what made these pseudo labels is not known"
        return
    digest = made_with["sha256"][:12]
    yield f"pseudo labels: {folder}, of {made_with['restore_from']}, sha256 {digest}"
    if not any(digest in line for line in inputs["weights"]):
        yield "note: these pseudo labels are of other weights than the stage starts from"


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


def _pseudo_labels(stage: Stage) -> dict[str, Any] | None:
    """What the pseudo labels were made with, None where none are read; empty where their folder does not say."""
    if not datasets.wants_pseudo_labels(stage):
        return None
    record = read_json(Path(stage.pseudo_labels) / THRESHOLDS)
    return {key: record[key] for key in ("restore_from", "sha256")} if "sha256" in record else {}
