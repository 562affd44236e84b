"""Predictions of any pictures, whatever kind of file: what `predict.py` does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.corpora import number_of
from dataset.inputs import Input, find_inputs
from dataset.labels import ClassTable, to_label_ids
from dataset.pictures import Picture, WholePicture, open_picture
from dataset.toml import DataError
from utils import datasets, networks
from utils.background import in_background
from utils.config import Config, ConfigError, nearest
from utils.console import progress, say
from utils.flags import Options
from utils.inference import LEAST_SIDE, Views, scores
from utils.json_files import write_json
from utils.lock import only_one
from utils.prediction import Predictor, Sight, TooLargeError, predict_film
from utils.products import KINDS, Look, Products
from utils.runtime import pick_device, tune_kernels
from utils.tiling import Zoom
from utils.video import VideoError

REMEDY = "other kinds of files: save them as PNG, JPEG or MP4; damaged ones: fetch them again"
SHRUNK = 8  # times shorter than a picture's side: worth a note
AHEAD = 2  # threads that read pictures, and as many that write: each holds a few in memory
UNPREDICTED = (DataError, VideoError, TooLargeError)
"""What is wrong with one input, and no reason to leave out the others."""


@dataclass(frozen=True)
class Wanted:
    """What is to be written. frames: every frame of a video, too."""

    folder: Path
    kinds: tuple[str, ...]
    look: Look
    frames: bool


class Made(NamedTuple):
    """What is made of an input: products that are not written yet, or kind -> file. turned: whether they lie on pixels
    that were turned upright."""

    item: Input
    files: Products | dict[str, str]
    turned: bool = False


def predict_pictures(config: Config, options: Options) -> None:
    """Predict every input; SystemExit of 1 where one could not be."""
    classes = datasets.class_table(config, options.arguments)
    wanted, sight = _wanted(config, options, classes), _sight(config, options)
    inputs, notes = find_inputs(options.arguments.inputs, without=wanted.folder)
    for note in (*options.notes, *notes):
        say(f"note: {note}")
    datasets.keep_out_of_data(config, classes, [wanted.folder / kind for kind in wanted.kinds])
    _check_films(inputs, wanted)
    _make_folder(wanted.folder)

    device = pick_device(config.run.device)
    tune_kernels(device)
    network, normalize, weights, report = networks.trained_network(
        config.evaluate.restore_from, config, classes, device
    )
    for line in report.lines:
        say(line)
    show = partial(
        scores,
        network,
        normalize=normalize,
        precision=config.run.precision,
        views=Views(config.evaluate.scales, config.evaluate.flip),
    )
    with only_one(wanted.folder, "wait for its end, or choose another --save", parts=KINDS):
        done, failed = predict_all(inputs, wanted, Predictor(show, device, sight))
    turned = sum(entry["turned"] for entry in done)
    if turned:
        say(
            f"note: {number_of(turned, 'picture')} turned upright, as EXIF says; training and evaluation read pixels as"
            " stored: labels that lie on those do not lie on these results"
        )
    if options.json:
        origin = {"restore_from": str(weights.path), "sha256": weights.sha256, "classes": classes.names}
        write_json(options.json, origin | {"predicted": done, "failed": failed})
    say(f"{number_of(len(done), 'prediction')} in {wanted.folder}: {', '.join(wanted.kinds)}")
    if failed:
        print(
            f"error: {len(failed)} of {number_of(len(inputs), 'input')} could not be predicted ({REMEDY}):",
            file=sys.stderr,
        )
        for entry in failed:
            print(f"  {entry['reason']}", file=sys.stderr)
        raise SystemExit(1)


def predict_all(
    inputs: Sequence[Input], wanted: Wanted, predictor: Predictor
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Predict and write; returns what was done, with the files of each, and what could not be, and why."""
    failed: list[dict[str, str]] = []
    bar = progress(total=len(inputs), description="predict", unit="file")

    def made() -> Iterator[Made]:
        for item, found in in_background(_opened, inputs, workers=AHEAD):
            try:
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    yield Made(item, _film(item, wanted, predictor))
                else:
                    yield Made(item, _products(item, found, wanted, predictor), found.turned)
            except UNPREDICTED as error:
                failed.append({"input": str(item.path), "reason": str(error)})
            bar.update()

    with bar:
        done = list(in_background(_written, made(), workers=AHEAD))
    return done, failed


def _opened(item: Input) -> tuple[Input, Picture | DataError | None]:
    """An input with its picture, or what is wrong with it; None for a video."""
    try:
        return item, None if item.is_video else open_picture(item.path)
    except DataError as error:
        return item, error


def _products(item: Input, picture: Picture, wanted: Wanted, predictor: Predictor) -> Products:
    """What is made of a picture, complete but perhaps not written."""
    for note in (*picture.notes, *_note_of_size(item, picture, predictor.sight.zoom)):
        say(f"note: {note}")
    with picture:
        products = Products(wanted.folder, item.name, picture.size, wanted.kinds, wanted.look, picture.georeference)
        return predictor.fill(products, picture, str(item.path))


def _note_of_size(item: Input, picture: Picture, zoom: Zoom) -> Iterator[str]:
    """A note where nobody chose the size and most of the picture is lost on the network."""
    (width, height), seen = picture.size, zoom(picture.size)
    if zoom.chosen or max(width / seen[0], height / seen[1]) <= SHRUNK:
        return
    yield f"{item.path}: {width}x{height} is shown to the network as {seen[0]}x{seen[1]}; --scale 1 shows every pixel"


def _film(item: Input, wanted: Wanted, predictor: Predictor) -> dict[str, str]:
    """Predict a video; returns kind -> file."""
    files, missing = predict_film(
        item.path,
        predictor,
        folder=wanted.folder,
        name=item.name,
        kinds=wanted.kinds,
        look=wanted.look,
        frames=wanted.frames,
        picture_of=lambda frame: WholePicture(Image.fromarray(frame)),
    )
    if missing:
        say(f"note: {missing}")
    return files


def _written(made: Made) -> dict[str, Any]:
    files = made.files.close() if isinstance(made.files, Products) else made.files
    return {"input": str(made.item.path), "files": files, "turned": made.turned}


# ---- what is wanted ----


def _wanted(config: Config, options: Options, classes: ClassTable) -> Wanted:
    """What the flags say about the results. Raises ConfigError for what cannot be."""
    arguments = options.arguments
    if "evaluate.save" not in options.changes:
        raise ConfigError("--save DIR is missing: the folder for what is predicted")
    _within("--opacity", arguments.opacity, 0, 1)
    ids = None if classes.label_ids is None else to_label_ids(np.arange(256), classes.label_ids)
    look = Look(classes.colours, ids, arguments.opacity)
    return Wanted(Path(config.evaluate.save), _kinds(arguments.write, classes), look, arguments.frames)


def _kinds(wanted: str | None, classes: ClassTable) -> tuple[str, ...]:
    there_are = tuple(kind for kind in KINDS if kind != "label_ids" or classes.label_ids is not None)
    kinds = there_are if wanted is None else tuple(dict.fromkeys(wanted.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"--write {kind}: choose among {', '.join(KINDS)}{nearest(kind, KINDS)}")
        if kind not in there_are:
            raise ConfigError("--write label_ids: the class table has no label_ids; add them under [classes]")
    return kinds


def _sight(config: Config, options: Options) -> Sight:
    """What the flags say about sizes. Raises ConfigError for what cannot be."""
    arguments = options.arguments
    if arguments.size and arguments.scale is not None:
        raise ConfigError("--size and --scale exclude each other; give one")
    if arguments.scale is not None:
        _within("--scale", arguments.scale, 0.01, 100)
    _within("--overlap", arguments.overlap, 0, 0.5)
    for flag, size in (("--size", arguments.size), ("--tile", arguments.tile)):
        if size and min(size) < LEAST_SIDE:
            raise ConfigError(f"{flag} {size[0]},{size[1]}: no side may be shorter than {LEAST_SIDE}")
    zoom = Zoom(datasets.input_size(config, "target"), arguments.size and tuple(arguments.size), arguments.scale)
    return Sight(zoom, arguments.tile and tuple(arguments.tile), arguments.overlap)


def _within(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{flag} must lie within {low}..{high}, not {value}")


def _make_folder(folder: Path) -> None:
    """Make the folder of results before the work begins; raise ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save {folder}: no folder can be there ({error.strerror})") from None


def _check_films(inputs: Sequence[Input], wanted: Wanted) -> None:
    films = [item for item in inputs if item.is_video]
    if films and not wanted.frames and "overlay" not in wanted.kinds:
        raise ConfigError(f"{films[0].path}: a video becomes an overlay; add overlay to --write, or --frames")
