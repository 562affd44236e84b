"""From a configuration to its data: class table, corpora, data sets, and the loaders that a run reads from."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dataset.cache import ImageCache
from dataset.corpora import Corpus, DataError, Sample, flat_names, with_pseudo_labels
from dataset.labels import IGNORE, ClassTable, LabelDecoding, load_class_table, train_id_decoding
from dataset.loading import BatchLoader, eval_loader, train_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Augment
from utils.config import Config, ConfigError, Stage
from utils.console import say
from utils.engine import Pair, needs_target
from utils.runtime import pick_device

SOURCE_STREAM, TARGET_STREAM = 0, 1


def class_table(config: Config, arguments: argparse.Namespace | None = None) -> ClassTable:
    """The configuration's class table, checked against the flags `--num-classes` and `--devkit_dir` where given."""
    classes = load_class_table(config.classes)
    if arguments is None:
        return classes
    if arguments.num_classes not in (None, classes.num_classes):
        raise ConfigError(
            f"--num-classes {arguments.num_classes}: the class table has {classes.num_classes} classes; describe "
            "yours under [classes] in a configuration"
        )
    if arguments.devkit_dir is not None:
        _check_devkit(Path(arguments.devkit_dir) / "info.json", corpus(config, "target", classes).decoding)
    return classes


def _check_devkit(path: Path, decoding: LabelDecoding) -> None:
    """Raise ConfigError unless the historical `info.json` maps raw ids as `[target]` does (255: ignored)."""
    try:
        train_ids = {int(raw): int(train) for raw, train in json.loads(path.read_bytes())["label2train"]}
    except OSError as error:
        raise ConfigError(f"--devkit_dir: {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"--devkit_dir: {path} is not JSON with a list label2train of [raw id, train id]") from None
    ours = {raw: int(train) if train < decoding.num_classes else IGNORE for raw, train in enumerate(decoding.lookup)}
    for raw, train in train_ids.items():
        if ours.get(raw, IGNORE) != train:
            raise ConfigError(
                f"--devkit_dir: {path} makes id {raw} class {train}, the configuration {ours.get(raw, IGNORE)}; "
                "set ids and ignore under [target]"
            )


def corpus(config: Config, domain: str, classes: ClassTable) -> Corpus:
    """The corpus of `[source]` or `[target]`."""
    table = {key: value for key, value in getattr(config, domain).items() if key != "size"}
    return Corpus.from_mapping(table, classes.num_classes, f"[{domain}]")


def keep_out_of_data(
    config: Config, classes: ClassTable, outputs: Iterable[Path], *, split: str = "val", samples: Sequence[Sample] = ()
) -> None:
    """Raise ConfigError where an output folder is one of the data: files there may have the names of ours, and ours
    would be read as theirs.

    The data are images and labels of the source's training, the target's training and validation, and of one more
    split of the target, where `samples` say how deep they lie in its folders.
    """
    target, source = corpus(config, "target", classes), corpus(config, "source", classes)
    sets = ((source, "train"), *((target, part) for part in ("train", "val", split)))
    images = {*(data.image_folder(part) for data, part in sets), *(sample.image.parent for sample in samples)}
    labels = {data.label_folder(part) for data, part in sets}
    labels |= {(target.label_folder(split) / target.label_name(sample.name)).parent for sample in samples}
    for what, folders in (("images", images), ("labels", labels)):
        known = {folder.resolve() for folder in folders}
        for folder in outputs:
            if folder.resolve() in known:
                raise ConfigError(f"{folder}: {what} of the data are there; choose another folder to write to")


def input_size(config: Config, domain: str) -> tuple[int, int]:
    """(W, H) that a domain's images are resized to."""
    width, height = getattr(config, domain)["size"]
    return width, height


def image_cache(config: Config) -> ImageCache | None:
    """Where resized images are kept between epochs and runs, None without `[run] cache`."""
    return ImageCache(Path(config.run.cache), limit=round(config.run.cache_gb * 1e9)) if config.run.cache else None


def samples_of(data: Corpus, split: str, *, labelled: bool) -> list[Sample]:
    """A corpus's samples; says so where their number is not the known corpus's, or images are left out."""
    samples = data.samples(split, labelled=labelled)
    for note in filter(None, (data.count_note(split, len(samples)), data.left_out_note(split))):
        say(f"note: {note}")
    return samples


def source_dataset(config: Config, stage: Stage, classes: ClassTable) -> SegmentationDataset:
    """Labelled source images at input size, augmented."""
    data = corpus(config, "source", classes)
    return SegmentationDataset(
        samples_of(data, "train", labelled=True),
        decoding=data.decoding,
        size=input_size(config, "source"),
        augment=_augment(stage),
        seed=config.run.seed,
        stream=SOURCE_STREAM,
        cache=image_cache(config),
    )


def target_dataset(config: Config, stage: Stage, classes: ClassTable) -> SegmentationDataset:
    """Target images at input size, augmented; their labels are pseudo labels or nothing, never the truth."""
    samples = samples_of(corpus(config, "target", classes), stage.split, labelled=False)
    decoding: LabelDecoding | None = None
    if wants_pseudo_labels(stage):
        if not stage.pseudo_labels:
            raise ConfigError("the loss `pseudo` and the label map `merged` need pseudo labels: --ssl-target-dir")
        samples, decoding = with_pseudo_labels(samples, stage.pseudo_labels), train_id_decoding(classes.num_classes)
    return SegmentationDataset(
        samples,
        decoding=decoding,
        size=input_size(config, "target"),
        augment=_augment(stage),
        seed=config.run.seed,
        stream=TARGET_STREAM,
        cache=image_cache(config),
    )


def training_sets(
    config: Config, stage: Stage, classes: ClassTable
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The two data sets of a training; no target for a stage that never looks at it."""
    source = source_dataset(config, stage, classes)
    return source, target_dataset(config, stage, classes) if needs_target(stage) else None


def pseudo_label_folders(config: Config) -> dict[str, list[Path]]:
    """Splits of the target that are trained on, each with the folders of pseudo labels that a stage reads for it."""
    folders: dict[str, list[Path]] = {config.pseudo_label.split: []}
    for stage in (config.step1, config.step2):
        known = folders.setdefault(stage.split, [])
        if wants_pseudo_labels(stage) and stage.pseudo_labels and Path(stage.pseudo_labels) not in known:
            known.append(Path(stage.pseudo_labels))
    return folders


def wants_pseudo_labels(stage: Stage) -> bool:
    """Whether anything in the stage reads pseudo labels."""
    return stage.weights.pseudo != 0 or stage.label_map == "merged"


def prediction_loader(
    config: Config, split: str, classes: ClassTable, *, labelled: bool, flat: bool = False
) -> BatchLoader:
    """Target images of a split at input size with their labels at native size, in order. flat: file names are unique,
    since all predictions go to one folder."""
    data = corpus(config, "target", classes)
    samples = samples_of(data, split, labelled=labelled)
    if flat:
        flat_names(samples)
    dataset = SegmentationDataset(
        samples,
        decoding=data.decoding if labelled else None,
        size=input_size(config, "target"),
        native_labels=True,
        cache=image_cache(config),
    )
    return eval_loader(
        dataset,
        batch_size=config.evaluate.batch_size,
        num_workers=worker_count(config),
        pin_memory=_pins(config),
    )


def validates(config: Config, classes: ClassTable) -> bool:
    """Whether target validation is looked at during a training: it is wanted, and the corpus tells which images."""
    target = corpus(config, "target", classes)
    return config.run.validate and ("val" in target.lists or "{split}" in target.images)


def validation_loader(config: Config, classes: ClassTable) -> BatchLoader | None:
    """Labelled target validation images; None, said aloud, where there are to be none."""
    if not validates(config, classes):
        reason = "[target] names no val_list" if config.run.validate else "[run] validate = false"
        say(f"note: {reason}, so there is no validation and no best checkpoint")
        return None
    try:
        return prediction_loader(config, "val", classes, labelled=True)
    except DataError as error:
        raise DataError(f"{error}; to train without validation: --override run.validate=false") from None


def training_pairs(
    config: Config, stage: Stage, source: SegmentationDataset, target: SegmentationDataset | None, *, start: int
) -> Iterator[Sequence[Pair]]:
    """The batches of every update from number `start` on: `iter_size` pairs of a source and a target batch."""
    images = stage.iter_size * stage.batch_size  # per update and domain
    workers = worker_count(config)

    def stream(dataset: SegmentationDataset, number: int) -> BatchLoader:
        return train_loader(
            dataset,
            batch_size=stage.batch_size,
            seed=config.run.seed,
            stream=number,
            start=start * images,
            stop=stage.last_step * images,
            num_workers=workers,
            pin_memory=_pins(config),
            skip=config.run.bad_files == "skip",
        )

    sources = stream(source, SOURCE_STREAM)
    targets = itertools.repeat(None) if target is None else stream(target, TARGET_STREAM)
    pairs = zip(sources, targets, strict=False)  # `repeat` has no end
    while update := tuple(itertools.islice(pairs, stage.iter_size)):
        yield update


def worker_count(config: Config) -> int:
    """Loading processes per data set: never more than processors, where they would wait for each other."""
    return min(config.run.num_workers, multiprocessing.cpu_count())


def _pins(config: Config) -> bool:
    """Whether loaded batches wait in pinned memory: for CUDA alone, pinning takes time and a driver."""
    return pick_device(config.run.device).type == "cuda"


def _augment(stage: Stage) -> Augment:
    return Augment(mirror=stage.random_mirror, scale=stage.random_scale, turn=stage.random_turn)
