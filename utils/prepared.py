"""What a training makes of its data once, before the first update, and keeps in the run's folder: the styles that
source images are translated to, and the classes of source labels, which say whose images come more often."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.corpora import DataError, Sample
from dataset.labels import ClassTable
from dataset.loading import eval_loader
from dataset.rare import RareFirst, class_pixels
from dataset.segmentation import SegmentationDataset
from dataset.translation import Method as StyleMethod
from dataset.translation import Translator, drawn_images, method_named
from utils import datasets
from utils.config import Config, ConfigError, Stage
from utils.console import progress, say
from utils.files import atomic_write, names_and_sizes
from utils.run_files import CONFIG


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
    method = method_named(settings.method, beta=settings.beta, size=datasets.input_size(config, "source"))
    samples = datasets.corpus(config, "target", classes).samples(stage.split, labelled=False)
    drawn = [samples[index] for index in drawn_images(len(samples), settings.styles, seed=config.run.seed)]
    files, (width, height) = names_and_sizes(sample.image for sample in drawn), datasets.input_size(config, "target")
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
    return RareFirst(pixels, stage.rare_classes, seed=config.run.seed, stream=datasets.SOURCE_STREAM)


def source_pixels(config: Config, source: SegmentationDataset, classes: ClassTable) -> np.ndarray:
    """(n, C) int64: pixels of each class in each source label."""
    assert source.decoding is not None
    workers = datasets.worker_count(config)
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
        size=datasets.input_size(config, "target"),
        cache=datasets.image_cache(config),
    )
    batches = eval_loader(images, num_workers=datasets.worker_count(config), skip=config.run.bad_files == "skip")
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
            f"{origin}; continue with the settings in {path.with_name(CONFIG)}, or start in another "
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
