"""Cut large aerial photographs into tiles: images, labels, lists and a manifest in the layout of a corpus.

    python -m dataset.tile inria --root AerialImageDataset --output data/Inria
    python -m dataset.tile deepglobe --root DeepGlobe --output data/DeepGlobe --val-fraction 0.1 --seed 0
    python -m dataset.tile --table own.toml --root PHOTOGRAPHS --output data/own --size 512 --stride 256

Photographs are read window by window, so that memory depends on neither their size nor their number, and a photograph
is of train or of val with all its tiles. A run that was stopped goes on where it was. docs/aerial.md says where the
archives come from and how they must lie.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import rasterio
from PIL import Image

from dataset.corpora import Corpus, number_of
from dataset.doctor_files import LabelFacts, image_facts, label_facts
from dataset.labels import IGNORE
from dataset.photographs import (
    NO_DATA,
    NO_DATA_REGION,
    Archive,
    Photograph,
    class_mask,
    drawn_split,
    find,
    listed_split,
    measure,
    no_data_window,
    official_split,
    opened,
    positions,
    read_window,
)
from dataset.pool import Mapper, processes
from dataset.toml import DataError, shipped_table
from utils.background import write_image
from utils.config import ConfigError, Parser, nearest, read_config
from utils.console import progress, say
from utils.files import atomic_write, remove_temporaries
from utils.json_files import write_json

# What else this script composes is imported where it is used: every worker process imports this module again, and has
# no need of torch.
SPLITS = ("train", "val")
CUTTER = 1
"""Version of the tiles; raise it whenever the same photograph and parameters would give others."""

LEAST_SIZE = 32
ENCODINGS: Mapping[str, Mapping[str, Any]] = {  # lossless; in TIFF, tag 317 = 2 stores differences between neighbours
    ".png": {"format": "PNG"},
    ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}},
}
AGAIN = "start again, what is cut is kept"
DARK, BRIGHT = 64, 192  # a label's values are taken to mean 0 below and 255 from here on; between, it is unclear
PALETTE = {0: (0, 0, 0), 1: (255, 255, 255), IGNORE: (255, 0, 0)}
_PALETTE_BYTES = bytes(value for index in range(256) for value in PALETTE.get(index, (0, 0, 0)))


def main(argv: Sequence[str] | None = None) -> None:
    """Cut what the command line names; with --json write the summary, too."""
    arguments = _parser().parse_args(argv)

    began = time.monotonic()
    archive = _archive(arguments)
    job = _job(arguments, archive)
    found, notes = find(archive, arguments.root)
    splits = _splits(arguments, archive, found)
    for note in notes:
        say(f"note: {note}")
    grid = f"tiles of {job.size}x{job.size} every {job.stride} pixels"
    say(f"{number_of(len(found), 'photograph')}, {_counts(splits)}; {grid}")
    with processes(min(arguments.workers, len(found)), remedy=f"{AGAIN}, or with fewer --workers") as each:
        looks = progress(each(partial(measure, least=job.size), found), total=len(found), description="look")
        plan = [
            {"name": photograph.name, "split": splits[photograph.name], "size": list(size)}
            for photograph, size in zip(found, looks, strict=True)
        ]
        begun = _claim(job, plan)
        outcomes = _cut_all(each, job, found, plan)
    for line in _notes(job, found, outcomes):
        say(line)
    manifest = _finish(job, begun, outcomes)
    for split, numbers in manifest["splits"].items():
        say(_line(split, numbers))
    if arguments.json:
        summary = {key: manifest[key] for key in ("parameters", "splits", "versions")}
        kept = sum(outcome.kept for outcome in outcomes)
        seconds = time.monotonic() - began
        write_json(arguments.json, {**summary, "output": job.tiles.root, "kept": kept, "seconds": seconds})
    if archive.recipe:
        say(f"next: {_next_command(archive.recipe, arguments.output)}")


# ---- the command line ----


def _parser() -> Parser:
    from utils.flags import output_file

    workers = "default: one per processor; 0: none"
    parser = Parser(description=__doc__)
    parser.add_argument("corpus", nargs="?", help="a shipped table of photographs, e.g. inria")
    parser.add_argument("--table", type=Path, metavar="FILE", help="TOML table of photographs of one's own instead")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the archive")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the tiles")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="edge of a tile (default: 512)")
    parser.add_argument("--stride", type=int, metavar="N", help="pixels from tile to tile (default: the size)")
    parser.add_argument(
        "--no-data", choices=NO_DATA, help="skip tiles with no-data, or ignore (255) it in their labels"
    )
    parser.add_argument(
        "--max-no-data", type=float, metavar="SHARE", help="skip tiles above this share (default: skip 0, ignore 1)"
    )
    parser.add_argument("--val", type=Path, metavar="FILE", help="list of the photographs for validation, one a line")
    parser.add_argument("--val-fraction", type=float, metavar="SHARE", help="share of photographs drawn for validation")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of that draw (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help=f"processes ({workers})")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the summary as JSON, too")
    return parser


def _archive(arguments: argparse.Namespace) -> Archive:
    if (arguments.corpus is None) == (arguments.table is None):
        raise ConfigError("name either a shipped CORPUS or a --table FILE; --help shows both")
    if arguments.table is not None:
        return Archive.from_mapping(read_config(arguments.table), str(arguments.table))
    return Archive.from_mapping(shipped_table("photographs", arguments.corpus, "CORPUS"), arguments.corpus)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every photograph is cut by. tiles: where the tiles go; max_no_data: the share above which one is skipped."""

    tiles: Corpus
    size: int
    stride: int
    threshold: int
    no_data_colour: tuple[int, int, int] | None
    max_no_data: float

    def parameters(self) -> dict[str, Any]:
        """What decides the tiles of a photograph, in JSON's types."""
        return {
            "cutter": CUTTER,
            "size": self.size,
            "stride": self.stride,
            "threshold": self.threshold,
            "no_data_colour": list(self.no_data_colour) if self.no_data_colour else None,
            "no_data_region": NO_DATA_REGION,
            "max_no_data": self.max_no_data,
        }


def _job(arguments: argparse.Namespace, archive: Archive) -> Job:
    """The flags over the table, checked."""
    stride = arguments.size if arguments.stride is None else arguments.stride
    _require(arguments.size >= LEAST_SIZE, f"--size {arguments.size}: a tile has at least {LEAST_SIZE} pixels a side")
    _require(1 <= stride <= arguments.size, f"--stride {stride}: choose 1 to {arguments.size}, more would leave gaps")
    _require(arguments.workers >= 0, f"--workers {arguments.workers}: give a number of processes, 0 for none")
    share = arguments.max_no_data
    _require(share is None or 0 <= share <= 1, f"--max-no-data {share}: a share lies in 0..1")
    asked = share is not None or arguments.no_data is not None
    _require(
        archive.no_data_colour is not None or not asked,
        "--no-data and --max-no-data have no effect: these photographs have no no_data_colour; leave them out",
    )
    if share is None:
        share = {"skip": 0.0, "ignore": 1.0}[arguments.no_data or archive.no_data]
    tiles = Corpus.from_mapping({**archive.tiles, "root": arguments.output}, 2, "tiles")
    _check_layout(tiles)
    return Job(
        tiles=tiles,
        size=arguments.size,
        stride=stride,
        threshold=archive.threshold,
        no_data_colour=archive.no_data_colour,
        max_no_data=share,
    )


def _check_layout(tiles: Corpus) -> None:
    lossless = tiles.image_suffix in ENCODINGS and tiles.label_suffix == ".png"
    _require(lossless, "tiles: image_suffix must be .png or .tif, and label_suffix .png")
    listed = set(SPLITS) <= set(tiles.lists) and "{split}" not in tiles.images + tiles.labels
    _require(listed, "tiles: one folder holds both splits; name train_list and val_list, and no {split}")
    written = sorted(PALETTE)
    readable = tiles.decoding.kind in ("index", "mask") and tiles.decoding.lookup[written].tolist() == written
    _require(
        readable, 'tiles: palette PNGs of train ids 0, 1 and 255 are written, as decode = "mask" reads them; set it'
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _splits(arguments: argparse.Namespace, archive: Archive, found: Sequence[Photograph]) -> dict[str, str]:
    """Name -> split, by the flags where they say, else by the table. Raises DataError for an empty split."""
    _require(arguments.val is None or arguments.val_fraction is None, "--val and --val-fraction exclude each other")
    official = arguments.val_fraction is None and bool(archive.folders or archive.val_pattern)
    _require(
        arguments.seed is None or not (arguments.val or official),
        "--seed has no effect: the split is not drawn; leave it out, or give --val-fraction, too",
    )
    if arguments.val is not None:
        splits = listed_split(found, _listed(arguments.val, found))
    elif official:
        splits = official_split(archive, found)
    else:
        splits = drawn_split(found, _fraction(arguments, archive), arguments.seed or 0)
    for split in SPLITS:
        if split not in splits.values():
            raise DataError(f"{arguments.root}: no photograph is of {split}; give --val or --val-fraction")
    return splits


def _fraction(arguments: argparse.Namespace, archive: Archive) -> float:
    fraction = archive.val_fraction if arguments.val_fraction is None else arguments.val_fraction
    _require(fraction != 0 or arguments.val_fraction is not None, "no rule of the split: give --val or --val-fraction")
    _require(0 < fraction < 1, f"--val-fraction {fraction}: a share lies between 0 and 1")
    return fraction


def _listed(path: Path, found: Sequence[Photograph]) -> set[str]:
    """The photographs that a list names, with or without a suffix."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the list of --val ({error})") from None
    known = {photograph.name: photograph.name for photograph in found}
    known |= {photograph.image.name: photograph.name for photograph in found}
    chosen = set()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and line not in known:
            close = nearest(line, list(known)) or f"; names are like {found[0].name}"
            raise DataError(f"{path}, line {number}: {line!r} is no photograph of the archive{close}")
        chosen |= {known[line]} if line else set()
    return chosen


def _counts(splits: Mapping[str, str]) -> str:
    return ", ".join(f"{sum(of == split for of in splits.values())} {split}" for split in SPLITS)


def _line(split: str, numbers: Mapping[str, Any]) -> str:
    counts = f"{number_of(numbers['photographs'], 'photograph')}, {number_of(numbers['tiles'], 'tile')}"
    percent = f"{numbers['class_percent']:.2f}% of the labelled pixels are class 1"
    return f"{split}: {counts}, {numbers['skipped']} skipped as no-data; {percent}"


def _next_command(recipe: str, output: Path) -> str:
    """The check of the shipped recipe whose source these are; as a target they are --data-dir-target of another."""
    return f"python -m dataset.check --config configs/{recipe}.toml --data-dir {shlex.quote(str(output))}"


# ---- cutting ----


@dataclass
class Outcome:
    """What became of one photograph: its tiles, those skipped, and pixel counts over the tiles.

    kept, damaged: tiles that were there already, and those that were and had to be cut anew. highest: the highest
    value of its label, -1 where nothing had to be read; unclear, bright: how many pixels of it lie from DARK on below
    BRIGHT, and how many above.
    """

    tiles: list[str] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    damaged: list[str] = field(default_factory=list)
    pixels: int = 0
    labelled: int = 0
    hits: int = 0
    highest: int = -1
    unclear: int = 0
    bright: int = 0

    def add(self, name: str, counts: np.ndarray) -> None:
        """Count a tile by its (256,) pixels per train id."""
        self.tiles.append(name)
        self.pixels += int(counts.sum())
        self.labelled += int(counts[:IGNORE].sum())
        self.hits += int(counts[1])

    def look(self, label: np.ndarray) -> None:
        """Take note of a label's values (H,W,channels), of which the highest channel counts."""
        values = label.max(axis=2)
        self.highest = max(self.highest, int(values.max()))
        self.bright += int((values >= BRIGHT).sum())
        self.unclear += int(((values >= DARK) & (values < BRIGHT)).sum())


def cut(job: Job, photograph: Photograph) -> Outcome:
    """Write the tiles of a photograph that are not there yet, or damaged, row by row, so that GDAL unpacks each strip
    once."""
    outcome = Outcome()
    with opened(photograph.image) as image, opened(photograph.label) as label:
        for top in positions(image.height, job.size, job.stride):
            for left in positions(image.width, job.size, job.stride):
                _cut_tile(job, f"{photograph.name}_y{top:05d}_x{left:05d}", (image, label), (top, left), outcome)
    return outcome


def _cut_tile(
    job: Job, name: str, pair: Sequence[rasterio.DatasetReader], corner: tuple[int, int], outcome: Outcome
) -> None:
    image_path = job.tiles.image_folder("") / f"{name}{job.tiles.image_suffix}"
    label_path = job.tiles.label_folder("") / f"{name}{job.tiles.label_suffix}"
    there = _sound(job, name, image_path, label_path, outcome)
    if there is not None:
        outcome.kept += 1
        outcome.add(name, there.counts)
        return
    colours, missing = no_data_window(pair[0], *corner, job.size, job.no_data_colour)
    share = float(missing.mean())
    if share > job.max_no_data or share == 1:
        outcome.skipped.append({"tile": name, "no_data_percent": 100 * share})
        return
    classes = read_window(pair[1], *corner, job.size, job.size)
    outcome.look(classes)
    train_ids = class_mask(classes, job.threshold, Path(pair[1].name))
    train_ids[missing] = IGNORE
    _write(image_path, Image.fromarray(colours))
    _write(label_path, _palette_image(train_ids))
    outcome.add(name, np.bincount(train_ids.ravel(), minlength=256))


def _sound(job: Job, name: str, image_path: Path, label_path: Path, outcome: Outcome) -> LabelFacts | None:
    """The label of a tile that an earlier run wrote; None where there is none, or none that training could read."""
    if not (image_path.exists() and label_path.exists()):
        return None
    try:
        image, _ = image_facts(image_path)
        label, _ = label_facts(label_path, job.tiles.decoding)
    except DataError:
        outcome.damaged.append(name)
        return None
    if image.size == label.size == (job.size, job.size) and set(label.found) <= set(PALETTE):
        return label
    outcome.damaged.append(name)
    return None


def _palette_image(train_ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(train_ids)
    image.putpalette(_PALETTE_BYTES)
    return image


def _write(path: Path, image: Image.Image) -> None:
    try:
        write_image(path, image, ENCODINGS)
    except OSError as error:  # a full disk, for one
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason}); mend that and {AGAIN}") from None


def _cut_all(each: Mapper, job: Job, found: Sequence[Photograph], plan: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    totals = [_number_of_tiles(job, *entry["size"]) for entry in plan]
    outcomes = []
    with progress(total=sum(totals), description="cut", unit="tile") as bar:
        for total, outcome in zip(totals, each(partial(cut, job), found), strict=True):
            outcomes.append(outcome)
            bar.update(total)
    return outcomes


def _notes(job: Job, found: Sequence[Photograph], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What the user should know of the tiles that were there, and of labels whose values leave their class open."""
    kept = sum(outcome.kept for outcome in outcomes)
    if kept:
        yield f"{number_of(kept, 'tile')} of an earlier run kept"
    damaged = [name for outcome in outcomes for name in outcome.damaged]
    if damaged:
        yield f"note: {number_of(len(damaged), 'damaged tile')} of an earlier run cut anew, first {damaged[0]}"
    pairs = zip(found, outcomes, strict=True)
    unclear = [photograph.label for photograph, outcome in pairs if job.threshold and outcome.unclear > outcome.bright]
    if unclear:
        yield (
            f"note: {number_of(len(unclear), 'label')} with more values of {DARK} to {BRIGHT - 1} than above, first"
            f" {unclear[0]}: class 1 is what lies above threshold = {job.threshold}; is that meant?"
        )


def _number_of_tiles(job: Job, width: int, height: int) -> int:
    return len(positions(width, job.size, job.stride)) * len(positions(height, job.size, job.stride))


# ---- the output's manifest ----


def _claim(job: Job, plan: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of an unfinished run, written where none is there: an earlier one stays what it is, complete or not.

    Unfinished files of a run that was killed are removed. Raises DataError when the folder holds tiles cut otherwise or
    something else.
    """
    path = job.tiles.root / "manifest.json"
    manifest = {
        "state": "in progress",
        "parameters": job.parameters(),
        "versions": {"rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__, "pillow": PIL.__version__},
        "photographs": plan,
    }
    folders = [job.tiles.image_folder(""), job.tiles.label_folder("")]
    if path.exists():
        _require_same(path, manifest)
        removed = sum(map(remove_temporaries, (path.parent, *folders)))
        if removed:
            say(f"{number_of(removed, 'unfinished file')} of a run that was killed removed")
    else:
        taken = [found for found in (*folders, *_lists(job).values()) if found.exists()]
        if taken:
            raise DataError(f"{taken[0]}: exists and was not written by dataset.tile; choose another --output")
        write_json(path, manifest)
    return manifest


def _require_same(path: Path, manifest: Mapping[str, Any]) -> None:
    remedy = "choose another --output or remove that folder"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        there, photographs = dict(found["parameters"]), found["photographs"]
        known = {entry["name"]: (entry["split"], entry["size"]) for entry in photographs}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest of dataset.tile ({error!r}); {remedy}") from None
    asked = manifest["parameters"]
    differing = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
    if differing:
        what = ", ".join(f"{key} = {there.get(key)}, not {asked.get(key)}" for key in differing)
        raise DataError(f"{path.parent}: was cut with {what}; {remedy}")
    new = {entry["name"]: (entry["split"], entry["size"]) for entry in manifest["photographs"]}
    changed = sorted(name for name in {**known, **new} if known.get(name) != new.get(name))
    if changed:
        raise DataError(
            f"{path.parent}: was cut from other photographs or with another split, {len(changed)} differ, first"
            f" {changed[0]}; {remedy}"
        )


def _lists(job: Job) -> dict[str, Path]:
    return {split: job.tiles.root / job.tiles.lists[split] for split in SPLITS}


def _finish(job: Job, begun: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write the lists and the complete manifest, and return it.

    Raises DataError for a split without a tile, and for a train without class 1.
    """
    entries = begun["photographs"]
    photographs = [
        {**entry, **_percentages([outcome]), "tiles": outcome.tiles, "skipped": outcome.skipped}
        for entry, outcome in zip(entries, outcomes, strict=True)
    ]
    own = {
        split: [outcome for entry, outcome in zip(entries, outcomes, strict=True) if entry["split"] == split]
        for split in SPLITS
    }
    for split in SPLITS:
        if not any(outcome.tiles for outcome in own[split]):
            raise DataError(f"{job.tiles.root}: no tile of {split} is left, all have no-data; raise --max-no-data")
    _require_class(job, own["train"])
    splits = {}
    for split, path in _lists(job).items():
        names = sorted(f"{name}{job.tiles.image_suffix}" for outcome in own[split] for name in outcome.tiles)
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        skipped = sum(len(outcome.skipped) for outcome in own[split])
        counts = {"photographs": len(own[split]), "tiles": len(names), "skipped": skipped}
        splits[split] = {**counts, **_percentages(own[split])}
    manifest = {**begun, "state": "complete", "splits": splits, "photographs": photographs}
    write_json(job.tiles.root / "manifest.json", manifest)
    return manifest


def _require_class(job: Job, train: Sequence[Outcome]) -> None:
    """Raise DataError where no pixel of train is of class 1: the labels are not what the table takes them for."""
    if any(outcome.hits for outcome in train):
        return
    highest = max(outcome.highest for outcome in train)
    seen = f"the highest value is {highest}" if highest >= 0 else "the tiles of an earlier run have none"
    raise DataError(
        f"{job.tiles.root}: no label pixel of train is above threshold = {job.threshold} ({seen}), so class 1 never"
        " occurs; give a --table with a lower threshold, and another --output"
    )


def _percentages(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Class 1 among the labelled pixels, and no-data among all pixels of the tiles that were written."""
    pixels, labelled, hits = (sum(getattr(o, key) for o in outcomes) for key in ("pixels", "labelled", "hits"))
    return {
        "class_percent": 100 * hits / labelled if labelled else None,
        "no_data_percent": 100 * (pixels - labelled) / pixels if pixels else None,
    }


if __name__ == "__main__":
    from utils.launch import launch

    launch(main)
