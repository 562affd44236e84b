"""A trained network looked at: features of regions in both domains, examples, confusions, pseudo labels.

The regions are BAFFT's own, cut from the *truth* wherever there is one, so that two networks are compared on the same
regions; a target without labels is cut by the network's own prediction. No truth that is read here ever gets near a
training: these are diagnostics (utils/diagnostics.py has their arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dataset.corpora import DataError, evenly, with_pseudo_labels
from dataset.labels import IGNORE, ClassTable, train_id_decoding
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Normalize
from model.deeplab import SegmentationNetwork, SegOutput
from model.regions import partition, pool, to_grid
from utils import datasets, networks
from utils.config import Config, Stage
from utils.diagnostics import AT_SNAPSHOTS, Divergence, RegionSet, coverage
from utils.evaluation import labels_and_confidence
from utils.inference import output_of
from utils.metrics import ConfusionMatrix
from utils.runtime import pick_device

Pixels = npt.NDArray[np.uint8]


class Example(NamedTuple):
    """One image at input size (H, W): RGB, its truth (255 throughout where it has none), what the network says of it
    and how confident it is, 0..1."""

    name: str
    image: Pixels
    truth: Pixels
    predicted: Pixels
    confidence: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A trained network with everything that looking through it takes."""

    network: SegmentationNetwork
    normalize: Normalize
    classes: ClassTable
    precision: str
    instances: int

    @classmethod
    def of_run(cls, folder: Path, config: Config, stage: Stage, classes: ClassTable) -> Lens:
        """The last checkpoint of a run. Raises WeightsError where there is none that fits."""
        device = pick_device(config.run.device)
        network, normalize, _, _ = networks.trained_network(str(folder), config, classes, device)
        return cls(
            network=network,
            normalize=normalize,
            classes=classes,
            precision=config.run.precision,
            instances=stage.instances,
        )

    def regions(self, dataset: SegmentationDataset) -> RegionSet:
        """Every region of every image, pooled."""
        return _joined([self._pooled(output, label) for _, output, label, _ in self._outputs(dataset)])

    def examples(self, dataset: SegmentationDataset) -> Iterator[Example]:
        """Every image with truth, prediction and confidence."""
        for image, output, label, name in self._outputs(dataset):
            predicted, confidence = labels_and_confidence(output.logits[0].float(), label.shape)
            rgb = image.permute(1, 2, 0).numpy()
            truth = label.numpy().astype(np.uint8)
            yield Example(name, rgb, truth, predicted.cpu().numpy(), confidence.cpu().numpy())

    @torch.no_grad()
    def _outputs(self, dataset: SegmentationDataset) -> Iterator[tuple[torch.Tensor, SegOutput, torch.Tensor, str]]:
        """Image (3, H, W), network output, label (H, W), name; in eval mode, and the mode it was in afterwards."""
        network = self.network
        device = next(network.parameters()).device
        for index in range(len(dataset)):
            image, label, name = dataset[index]
            training = network.training
            network.eval()
            output = output_of(network, image[None].to(device), normalize=self.normalize, precision=self.precision)
            network.train(training)
            yield image, output, label, name

    def _pooled(self, output: SegOutput, label: torch.Tensor) -> RegionSet:
        """The regions of one image; of one without any truth those of the prediction."""
        grid = to_grid(label[None].to(output.logits.device), output.logits.shape[-2:])
        if bool((grid == IGNORE).all()):
            grid = output.logits.argmax(dim=1)
        classes = self.classes
        regions = partition(grid, stuff=classes.stuff, things=classes.things, limit=self.instances)
        vectors = pool(output.features, regions)
        count = len(vectors)
        return RegionSet(
            vectors=vectors.cpu().numpy(),
            category=regions.category.cpu().numpy(),
            area=regions.area.cpu().numpy(),
            whole=np.arange(count) < regions.instances.stop,
        )


def _joined(parts: list[RegionSet]) -> RegionSet:
    fields = ("vectors", "category", "area", "whole")
    return RegionSet(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


# ---- what is looked at ----


class Domains(NamedTuple):
    """A few images of each domain at input size, not augmented. labelled: whether the target's have truth."""

    source: SegmentationDataset
    target: SegmentationDataset
    labelled: bool


def domains(config: Config, stage: Stage, classes: ClassTable, *, most: int) -> Domains:
    """At most `most` source training and target validation images each, evenly spread; without a validation list,
    target training images, without truth. Raises DataError for data that are not there."""
    labelled = datasets.validates(config, classes)
    split = "val" if labelled else stage.split
    source = _some(config, "source", "train", classes, most=most, labelled=True)
    target = _some(config, "target", split, classes, most=most, labelled=labelled)
    return Domains(source, target, labelled)


def _some(
    config: Config, domain: str, split: str, classes: ClassTable, *, most: int, labelled: bool
) -> SegmentationDataset:
    data = datasets.corpus(config, domain, classes)
    samples = evenly(data.samples(split, labelled=labelled), most)
    size = datasets.input_size(config, domain)
    return SegmentationDataset(samples, decoding=data.decoding if labelled else None, size=size)


def training_images(config: Config, stage: Stage, classes: ClassTable, *, most: int) -> SegmentationDataset:
    """At most `most` target images that the stage trains on, evenly spread, without truth."""
    return _some(config, "target", stage.split, classes, most=most, labelled=False)


def some_of(dataset: SegmentationDataset, most: int) -> SegmentationDataset:
    """At most `most` of the images, evenly spread."""
    samples = evenly(dataset.samples, most)
    return SegmentationDataset(samples, decoding=dataset.decoding, size=dataset.size)


def divergence(lens: Lens, images: Domains) -> tuple[Divergence, RegionSet, RegionSet]:
    """The distances between classes and domains, and the source's and target's regions they come from."""
    source, target = lens.regions(images.source), lens.regions(images.target)
    return Divergence.between(source, target, lens.classes.num_classes), source, target


class PseudoLabels(NamedTuple):
    """Pseudo labels of a few target training images, the same images' truth where it exists, and of all these images
    together how truth and pseudo label agree (None without truth)."""

    given: SegmentationDataset
    truth: SegmentationDataset | None
    confusion: ConfusionMatrix | None


def pseudo_labels(config: Config, stage: Stage, classes: ClassTable, *, most: int) -> PseudoLabels:
    """What a stage was given. Raises DataError where the pseudo labels are not there."""
    plain = training_images(config, stage, classes, most=most)
    samples = with_pseudo_labels(plain.samples, stage.pseudo_labels)
    decoding = train_id_decoding(classes.num_classes)
    given = SegmentationDataset(samples, decoding=decoding, size=plain.size)
    try:
        truth = _some(config, "target", stage.split, classes, most=most, labelled=True)
    except DataError:  # the rule in adaptation: the target's training images have no labels
        return PseudoLabels(given, None, None)
    confusion = ConfusionMatrix(classes.num_classes)
    for index in range(len(given)):
        confusion.update(given[index].label, truth[index].label)
    return PseudoLabels(given, truth, confusion)


# ---- during a training ----


class Diagnosis(NamedTuple):
    """What `[run] diagnostics` measures at every snapshot of a training, through the network in training."""

    lens: Lens
    images: Domains
    pseudo: ConfusionMatrix | None

    @classmethod
    def begin(
        cls, config: Config, stage: Stage, classes: ClassTable, network: SegmentationNetwork, normalize: Normalize
    ) -> Diagnosis:
        """Choose the images. Raises DataError for data that are not there."""
        lens = Lens(
            network=network,
            normalize=normalize,
            classes=classes,
            precision=config.run.precision,
            instances=stage.instances,
        )
        given = datasets.wants_pseudo_labels(stage)
        pseudo = pseudo_labels(config, stage, classes, most=AT_SNAPSHOTS).confusion if given else None
        return cls(lens, domains(config, stage, classes, most=AT_SNAPSHOTS), pseudo)

    def measure(self) -> Divergence:
        """Distances as the network is now; it moves neither weights, statistics nor random numbers."""
        return divergence(self.lens, self.images)[0]

    def pseudo_scalars(self) -> dict[str, Any]:
        """Precision and coverage of the pseudo labels per class (C,), where the truth is known."""
        if self.pseudo is None:
            return {}
        return {"pseudo_precision": self.pseudo.precision(), "pseudo_coverage": coverage(self.pseudo.counts)}
