"""From a configuration to the objects of a run: class table, corpora, loaders, network, method."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dataset.cache import ImageCache
from dataset.corpora import Corpus, DataError, Sample, flat_names, with_pseudo_labels
from dataset.doctor import PROBLEM, PSEUDO_LABEL, Finding, Findings, Method, examine, listed_pair
from dataset.doctor import Pair as FilePair
from dataset.doctor_sets import shared, train_id_suspicion
from dataset.labels import IGNORE, ClassTable, LabelDecoding, load_class_table, train_id_decoding
from dataset.loading import BatchLoader, eval_loader, train_loader
from dataset.png import FAST_PNG
from dataset.rare import RareFirst, class_pixels
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Augment, Normalize
from dataset.translation import Method as StyleMethod
from dataset.translation import Translator, drawn_images, method_named
from model.activations import checkpoint_blocks, use_inplace_norms
from model.bafft import ALIGNMENT_LOSSES, BAFFT, Alignment
from model.deeplab import NetworkError, SegmentationNetwork, build_network, input_statistics
from model.discriminator import Discriminator
from model.weights import (
    Report,
    Weights,
    WeightsError,
    infer_architecture,
    initial_weights,
    load_network,
    read_record,
    read_weights,
)
from utils.checkpoint import CheckpointError
from utils.config import Config, ConfigError, Stage
from utils.engine import Pair
from utils.files import atomic_write, names_and_sizes
from utils.flags import TRAINING, Options, next_command
from utils.inference import Prediction, Views, predict
from utils.log import LogError, progress, say
from utils.metrics import ConfusionMatrix
from utils.runtime import pick_device, tune_kernels

MISTAKES = (
    *(ConfigError, DataError, WeightsError, NetworkError, CheckpointError, LogError),
    *(FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),  # output where it cannot be
)
"""What a user can get wrong: one clear line and exit code 2."""

Item = TypeVar("Item")
NOTHING_LABELLED = "labels without a labelled pixel, all of them"
TOLERATED = 0.25  # share of a few labels that may look like train ids: one of eight may be chance
HUBS = ("random", "torchvision", "timm")  # where initial weights come from, other than files
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


def input_size(config: Config, domain: str) -> tuple[int, int]:
    """(W, H) that a domain's images are resized to."""
    width, height = getattr(config, domain)["size"]
    return width, height


def image_cache(config: Config) -> ImageCache | None:
    """Where resized images are kept between epochs and runs, None without `[run] cache`."""
    return ImageCache(Path(config.run.cache), limit=round(config.run.cache_gb * 1e9)) if config.run.cache else None


def samples_of(data: Corpus, split: str, *, labelled: bool) -> list[Sample]:
    """A corpus's samples; says so where their number is not the known corpus's."""
    samples = data.samples(split, labelled=labelled)
    note = data.count_note(split, len(samples))
    if note:
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


def prepare_source(
    config: Config, stage: Stage, source: SegmentationDataset, classes: ClassTable, *, resumed: bool
) -> None:
    """How and when a training shows its source images: translated, rare classes first, where the settings say so."""
    source.translate = translator(config, stage, classes, resumed=resumed)
    source.shows = rare_first(config, stage, source, classes, resumed=resumed)


def translator(config: Config, stage: Stage, classes: ClassTable, *, resumed: bool) -> Translator | None:
    """How source images are translated while they are loaded, None for as stored.

    The styles come from target training images that the seed draws, and from images alone. They are kept in the run's
    folder, `styles.npz`, with what they were made from. Raises ConfigError where a run that goes on asks for others.
    """
    settings = config.translation
    if settings.method == "none":
        return None
    method = method_named(settings.method, beta=settings.beta, size=input_size(config, "source"))
    samples = corpus(config, "target", classes).samples(stage.split, labelled=False)
    drawn = [samples[index] for index in drawn_images(len(samples), settings.styles, seed=config.run.seed)]
    files, (width, height) = names_and_sizes(sample.image for sample in drawn), input_size(config, "target")
    origin = f"{method} of {len(drawn)} target images at {width}x{height}, sha256 of names and sizes {files}"
    path = Path(stage.snapshot_dir) / "styles.npz"
    styles = _kept(path, origin, lambda: target_styles(config, method, drawn), resumed=resumed)
    return Translator(method, styles, probability=settings.probability)


def rare_first(
    config: Config, stage: Stage, source: SegmentationDataset, classes: ClassTable, *, resumed: bool
) -> RareFirst | None:
    """Which source image comes when, by rare-class sampling; None for each once per epoch.

    The source's labels are counted once and kept in the run's folder, `class_pixels.npz`. Raises DataError for one that
    cannot be read, unless such files are skipped: then its image is never drawn. ConfigError as of `translator`.
    """
    if not stage.rare_classes:
        return None
    labels = [sample.label for sample in source.samples if sample.label is not None]
    origin = f"{source.decoding} of {len(labels)} labels, sha256 of names and sizes {names_and_sizes(labels)}"
    path = Path(stage.snapshot_dir) / "class_pixels.npz"
    pixels = _kept(path, origin, lambda: source_pixels(config, source, classes), resumed=resumed)
    if not pixels.any():
        raise DataError("[source] has no labelled pixel; check ids and ignore")
    return RareFirst(pixels, stage.rare_classes, seed=config.run.seed, stream=SOURCE_STREAM)


def source_pixels(config: Config, source: SegmentationDataset, classes: ClassTable) -> np.ndarray:
    """(n, C) int64: pixels of each class in each source label."""
    assert source.decoding is not None
    workers = worker_count(config)
    found = class_pixels(source.samples, source.decoding, workers=workers)
    rows = []
    for row in progress(found, total=len(source), description="classes of the source", unit="label"):
        if isinstance(row, DataError):
            if config.run.bad_files != "skip":
                raise row
            say(f"note: {row}; its image is never drawn")
            row = np.zeros(classes.num_classes, dtype=np.int64)
        rows.append(row)
    return np.stack(rows)


def target_styles(config: Config, method: StyleMethod, samples: Sequence[Sample]) -> np.ndarray:
    """(n, ...) float32: the styles of target images at input size; their labels are not looked at. Where files that
    cannot be read are skipped, the next image stands for one."""
    images = SegmentationDataset(
        [Sample(sample.name, sample.image) for sample in samples],
        decoding=None,
        size=input_size(config, "target"),
        cache=image_cache(config),
    )
    batches = eval_loader(images, num_workers=worker_count(config), skip=config.run.bad_files == "skip")
    styles = []
    for batch in progress(batches, total=len(samples), description="styles of the target", unit="image"):
        for reason in batch.skipped:
            say(f"note: {reason}; the style of the next image stands for its own")
        styles.append(method.describe(batch.images[0].permute(1, 2, 0).numpy()))
    return np.stack(styles)


def _kept(path: Path, origin: str, make: Callable[[], np.ndarray], *, resumed: bool) -> np.ndarray:
    """An array that is made once and kept in a run's folder, with what it was made from. Raises ConfigError where a run
    that goes on asks for another."""
    made_from, array = _kept_array(path)
    if resumed and made_from not in (origin, None):
        raise ConfigError(
            f"{path} holds the {_spoken(path)} of the interrupted run: {made_from}; this configuration asks for "
            f"{origin}; continue with the settings in {path.with_name('config.toml')}, or start in another "
            "--snapshot-dir"
        )
    if made_from != origin:
        array = make()
        arrays: dict[str, Any] = {"origin": origin, path.stem: array}
        with atomic_write(path) as temporary:
            np.savez(temporary, **arrays)
    return array


def _kept_array(path: Path) -> tuple[str | None, np.ndarray]:
    """What the array of a file was made from, and it; None and nothing where there is no file."""
    if not path.is_file():
        return None, np.empty(0)
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return str(arrays["origin"]), arrays[path.stem]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise DataError(f"{path} is damaged; remove it, and the same {_spoken(path)} are made again") from None


def _spoken(path: Path) -> str:
    """What a file is called among words."""
    return path.stem.replace("_", " ")


def check_data(
    config: Config,
    stage: Stage,
    *,
    source: SegmentationDataset,
    target: SegmentationDataset | None,
    validation: SegmentationDataset | None,
) -> None:
    """The quick form of `python -m dataset.check`, before a training: a few files of each set, evenly spread.

    Raises DataError with the first problem, and says whatever else is wrong with them, and which target validation
    images are also trained on.
    """
    findings = Findings()
    findings.update(_probe(_labelled_method(config, "source train", "source", source.decoding), source))
    title = f"target {stage.split}"
    if target is not None:
        findings.update(_probe(target_method(config, title, target.decoding), target))
    if validation is not None:
        findings.update(_probe(_labelled_method(config, "target val", "target", validation.decoding), validation))
        for name, dataset in (("source train", source), (title, target)):
            findings.update(_listed_twice(validation, name, dataset))
    # One file that cannot be read is what `skip` is for; a second of the few looked at is not.
    tolerated = {"source train", title} if config.run.bad_files == "skip" else set()
    problems = findings.of(PROBLEM)
    grave = (p for p in problems if p.title not in tolerated or p.count > 1 or p.kind == NOTHING_LABELLED)
    first = next(grave, None)
    for finding in findings:
        if finding is not first:
            say(f"{finding.severity}: {finding}")
    if first is not None:
        raise DataError(str(first))


def _labelled_method(config: Config, title: str, domain: str, decoding: LabelDecoding | None) -> Method:
    """How images with their own labels are examined."""
    trusted = getattr(config, domain).get("trust_ids", False)
    return Method(title=title, table=f"[{domain}]", decoding=decoding, trust_ids=trusted)


def _probe(method: Method, dataset: SegmentationDataset, *, most: int = 8) -> Iterator[Finding]:
    """What is wrong with at most `most` of the samples, evenly spread from the first to the last."""
    tally = examine(method, list(map(listed_pair, evenly(dataset.samples, most))))
    # All are read only where the few know no class.
    known = method.decoding is None or method.what == PSEUDO_LABEL or method.decoding.knows(tally.counts)
    if tally.labels and not known and not any(_knows(method, sample) for sample in dataset.samples):
        remedy, count = f"correct ids and ignore of {method.table}", len(dataset.samples)
        yield Finding(PROBLEM, method.title, NOTHING_LABELLED, remedy, str(dataset.samples[0].label), count=count)
    yield from tally.findings
    yield from train_id_suspicion(tally, tolerated=TOLERATED)


def _knows(method: Method, sample: Sample) -> bool:
    """Whether a sample's label holds a pixel of any class."""
    return method.decoding is not None and method.decoding.knows(examine(method, [listed_pair(sample)]).counts)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spread from the first to the last."""
    count = min(most, len(items))
    return [items[round(index * (len(items) - 1) / max(count - 1, 1))] for index in range(count)]


def refuse_train_ids(data: Corpus, labels: Sequence[Path], *, most: int = 8) -> None:
    """Raise DataError where more than a quarter of a few label files, evenly spread, look like train ids under a table
    of raw ids, most of which it would silently leave out."""
    method = Method(title="target", table="[target]", decoding=data.decoding, trust_ids=data.trust_ids)
    tally = examine(method, [FilePair("", str(path)) for path in evenly(labels, most)])
    for finding in train_id_suspicion(tally, tolerated=TOLERATED):
        if finding.severity == PROBLEM:
            counted = f"{finding.count} of {tally.labels} labels looked at"
            raise DataError(f"{finding.first}: {counted} seem to hold train ids; {finding.remedy}")


def _listed_twice(
    validation: SegmentationDataset, train: str, dataset: SegmentationDataset | None
) -> Iterator[Finding]:
    """The problem of validation images that are also training images, by their paths."""
    held_out = {sample.image for sample in validation.samples}
    names = [sample.name for sample in dataset.samples if sample.image in held_out] if dataset else []
    if names:
        yield shared("target val", train, names=names, twin=names[0], table="[target]")


@contextlib.contextmanager
def full_report_named(options: Options, section: str) -> Iterator[None]:
    """A mistake about data names the command that reports all of them."""
    try:
        yield
    except DataError as error:
        own = (f"{section}.split", f"{section}.pseudo_labels")
        hands = {path: options.changes[path] for path in own if path in options.changes}
        script = ["-m", "dataset.check"]
        command = next_command(options, script, flags=TRAINING, section=section, hands=hands)
        raise DataError(f"{error}; everything that is wrong: {command}") from None


def target_method(config: Config, title: str, decoding: LabelDecoding | None, *, decode: bool = False) -> Method:
    """How target training images are examined, and their pseudo labels where there is a decoding."""
    size = config.pseudo_label.size
    return Method(title=title, table="[target]", decoding=decoding, what="pseudo label", stretched=size, decode=decode)


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


def network_and_report(
    config: Config, restore_from: str, classes: ClassTable, device: torch.device
) -> tuple[SegmentationNetwork, Report]:
    """The network of `[model]` with its initial weights, and where they came from."""
    settings = config.model
    network = build_network(
        settings.name,
        num_classes=classes.num_classes,
        branches=settings.branches,
        width=settings.width,
        output_stride=settings.output_stride,
        train_norm_affine=settings.train_norm_affine,
        invertible_norms=settings.inplace_abn,
        feature_strides=settings.feature_strides,
    )
    start = str(last_checkpoint(restore_from))
    report = initial_weights(network, start, download=settings.download)
    other = _other_class(read_record(start), classes) if start not in HUBS else ""
    if other:
        say(f"note: {start}: {other}; a head of the same size is taken over all the same")
    if settings.freeze_backbone:
        network.freeze_backbone()
    if settings.inplace_abn:
        use_inplace_norms(network)
    if settings.checkpointing:
        checkpoint_blocks(network)
    return _place(network, device), report


def trained_network(
    restore_from: str, config: Config, classes: ClassTable, device: torch.device
) -> tuple[SegmentationNetwork, Weights, Report]:
    """The network that a weight file holds, whatever `[model]` says: a known format is recognised."""
    weights = read_weights(last_checkpoint(restore_from))
    if weights.layout == "discriminator":
        raise WeightsError(f"{weights.path} holds a discriminator; the network is in the file without _D")
    network = build_network(**_architecture(weights, config, classes))
    if network.num_classes != classes.num_classes:
        raise WeightsError(
            f"{weights.path} predicts {network.num_classes} classes, the class table has {classes.num_classes}; "
            "name the configuration that it was trained with: --config"
        )
    other = _other_class(weights.meta, classes)
    if other:
        raise WeightsError(f"{weights.path}: {other}; name the configuration that it was trained with: --config")
    report = load_network(network, weights, purpose="full")
    return _place(network, device).eval(), weights, report


def _other_class(meta: Mapping[str, Any], classes: ClassTable) -> str:
    """What the first class is called that weights know under another name; "" where there is none, or no record."""
    table = meta.get("classes")
    recorded = table.get("names", ()) if isinstance(table, Mapping) else ()  # of other origin it may be anything
    for number, (theirs, ours) in enumerate(zip(recorded, classes.names, strict=False)):
        if theirs != ours:
            return f"its class {number} is {theirs!r}, that of the class table {ours!r}"
    return ""


def worker_count(config: Config) -> int:
    """Loading processes per data set: never more than processors, where they would wait for each other."""
    return min(config.run.num_workers, multiprocessing.cpu_count())


def _pins(config: Config) -> bool:
    """Whether loaded batches wait in pinned memory: for CUDA alone, pinning takes time and a driver."""
    return pick_device(config.run.device).type == "cuda"


def say_notes(config: Config, options: Options) -> None:
    """What the user should know before anything starts: flags without effect, slower decoding, fewer workers."""
    for note in options.notes:
        say(f"note: {note}")
    if not FAST_PNG:
        say("note: kornia-rs 0.2 or newer is not installed; decoding a PNG image takes three times as long")
    workers = worker_count(config)
    if workers < config.run.num_workers:
        say(f"note: num_workers = {config.run.num_workers}, but there are {workers} processors; {workers} are used")


def say_frozen_notes(config: Config, stage: Stage) -> None:
    """What does not go together with what is kept or frozen."""
    kept = stage.statistics == "kept"
    if kept and stage.restore_from == "random":
        say("note: [step*] statistics = kept is for trained weights; a random start has means 0 and variances 1")
    if config.model.freeze_backbone and not kept:
        say(f"note: [model] freeze_backbone freezes weights; norms still follow statistics = {stage.statistics}")
    if config.model.freeze_backbone and config.model.train_norm_affine:
        say("note: [model] train_norm_affine has no effect on a frozen backbone")
    aligned = [name for name in ALIGNMENT_LOSSES if getattr(stage.weights, name)]
    if config.model.freeze_backbone and not config.model.feature_strides and aligned:
        say(f"note: {', '.join(aligned)}: no effect on a frozen backbone (feature_strides adds a layer that learns)")


class PredictionRun(NamedTuple):
    """A trained network at work on a split of the target: `stream` yields a `Prediction` per image, `total` in all."""

    classes: ClassTable
    weights: Weights
    total: int
    stream: Iterator[Prediction]
    images: SegmentationDataset

    def leave_out(self, done: Callable[[str], bool]) -> int:
        """Predict no image of whose name `done` is true; how many there are. Before the stream is read from."""
        samples = self.images.samples
        left = [sample for sample in samples if not done(sample.name)]
        left_out, samples[:] = len(samples) - len(left), left
        return left_out


def require_labelled_pixels(confusion: ConfusionMatrix, labels: str) -> None:
    """Raise DataError where nothing was scored; `labels` names the truth."""
    if not confusion.counts.any():
        raise DataError(f"{labels} hold no labelled pixel; check [target] ids and ignore")


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
    classes = class_table(config, options.arguments)
    folders = list(outputs)
    loader = prediction_loader(config, split, classes, labelled=labelled, flat=bool(folders))
    _keep_out_of_data(config, classes, split, loader.images.samples, folders)
    if labelled:
        labels = [sample.label for sample in loader.images.samples if sample.label is not None]
        refuse_train_ids(corpus(config, "target", classes), labels)
    device = pick_device(config.run.device)
    tune_kernels(device)
    network, weights, report = trained_network(restore_from, config, classes, device)
    for line in report.lines:
        say(line)
    stream = predict(
        network,
        loader,
        normalize=normalizer(network, config, weights),
        precision=config.run.precision,
        views=views,
    )
    return PredictionRun(classes, weights, loader.num_images, stream, loader.images)


def _keep_out_of_data(
    config: Config, classes: ClassTable, split: str, samples: Sequence[Sample], outputs: Iterable[Path]
) -> None:
    """Raise ConfigError where an output folder is one of the data: files of a flat corpus have the names of ours."""
    target, source = corpus(config, "target", classes), corpus(config, "source", classes)
    images = {source.image_folder("train"), target.image_folder(split), *(sample.image.parent for sample in samples)}
    truths = target.label_folder(split)
    labels = {source.label_folder("train"), truths, *((truths / target.label_name(s.name)).parent for s in samples)}
    for what, folders in (("images", images), ("labels", labels)):
        known = {folder.resolve() for folder in folders}
        for folder in outputs:
            if folder.resolve() in known:
                raise ConfigError(
                    f"{folder}: {what} of the data are there and would be overwritten; choose another folder"
                )


def recorded_settings(restore_from: str) -> tuple[str, dict[str, Any]] | None:
    """The configuration that travels with our weights (for `parse`), after a file beside them that holds it, or "".

    Its `[run]` is left out, which concerns the machine that trained. None for weights of other origin, or none at all.
    """
    folder = Path(restore_from)
    path = folder / "last.pt" if folder.is_dir() else folder
    meta = read_record(path) if path.is_file() else {}
    if not isinstance(meta.get("config"), Mapping):
        return None
    settings = {name: value for name, value in meta["config"].items() if name != "run"}
    if "subsets" in meta.get("classes", {}):  # the whole table, whatever becomes of the one that is shipped
        settings["classes"] = meta["classes"]
    beside = path.with_name("config.toml")
    return str(beside) if beside.is_file() else "", settings


def _architecture(weights: Weights, config: Config, classes: ClassTable) -> Mapping[str, Any]:
    """What the file says of its network; of what tensors alone do not tell, what `[model]` says, and that aloud."""
    if weights.architecture is not None:
        return infer_architecture(weights)
    settings = config.model
    assumed: dict[str, Any] = {"branches": settings.branches}
    if weights.layout != "vgg16":
        assumed["output_stride"] = settings.output_stride
    if settings.feature_strides:
        assumed["feature_strides"] = list(settings.feature_strides)
    spelled = ", ".join(f"{key} = {value}" for key, value in assumed.items())
    say(f"note: {weights.path} has no record of its architecture; {spelled} are taken from [model]")
    if weights.layout == "timm-network" and settings.name.startswith("timm:"):
        return {"name": settings.name, "num_classes": classes.num_classes} | assumed
    return assumed | infer_architecture(weights)


def last_checkpoint(restore_from: str) -> Path | str:
    """A run folder means its last checkpoint, never the one selected on target labels."""
    path = Path(restore_from)
    if restore_from in HUBS or path.is_file():
        return restore_from
    if not (path / "last.pt").is_file():
        raise WeightsError(
            f"{restore_from}: neither a weights file nor the folder of a run (no last.pt in it); {_remedy(path)}, "
            f"or name a file, or one of {', '.join(HUBS)} where training starts"
        )
    return path / "last.pt"


def _remedy(run: Path) -> str:
    """How a run comes to be that is not there; where stage 1 is, its run may be what was meant."""
    recipe = Path("configs") / f"{run.parent.name}.toml"
    script = "train_step2.py" if run.name == "step2" else "train_step1.py"
    first = f"first run python {script} --config {recipe}" if recipe.is_file() else "first run the script before it"
    stage1 = run.with_name("step1")
    if script == "train_step2.py" and (stage1 / "last.pt").is_file():
        return f"{first}, or take stage 1: --restore-from {stage1}"
    return first


def normalizer(network: SegmentationNetwork, config: Config, weights: Weights | None = None) -> Normalize:
    """The normalisation of the network's images: as recorded with its weights, else `[model] input_mean` over the
    network's own."""
    recorded = weights.meta.get("input") if weights else None
    statistics = recorded or input_statistics(network.name)
    if config.model.input_mean and not recorded:
        statistics = {**statistics, "mean": config.model.input_mean}
    return Normalize(order=statistics["order"], mean=tuple(statistics["mean"]), std=tuple(statistics["std"]))


def build_method(
    network: SegmentationNetwork, classes: ClassTable, config: Config, stage: Stage, device: torch.device
) -> BAFFT:
    """The method around a network. Raises ConfigError for alignment settings that do not exist."""
    network.keeps_statistics = stage.statistics == "kept"
    alignment = Alignment(
        aim=stage.aim,
        aim_weights=stage.aim_weights,
        isia=stage.isia,
        label_map=stage.label_map,
        instances=stage.instances,
        slots_stuff=stage.num_prototype,
        slots_thing=10 * stage.num_prototype,
    )
    try:
        method = BAFFT(
            network=network,
            discriminator=Discriminator(classes.num_classes, width=config.model.discriminator_width),
            stuff=classes.stuff,
            things=classes.things,
            alignment=alignment,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return method.to(device)


def _place(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    """On the device, convolutions in channels_last: the fast layout on CUDA and CPU alike."""
    network.to(device)
    network.to(memory_format=torch.channels_last)
    return network


def _augment(stage: Stage) -> Augment:
    return Augment(mirror=stage.random_mirror, scale=stage.random_scale, turn=stage.random_turn)
