"""Large aerial photographs as their archives hold them: which there are, which are for validation, and their windows.

A table (tables/photographs, or a user's own) describes an archive; `python -m dataset.tile` cuts it into tiles.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from dataset.toml import DataError, Table

NO_DATA = ("skip", "ignore")
NO_DATA_REGION = 0.01
"""The least region of the no-data colour that counts as such, as a share of a tile: smaller ones are bright roofs."""

SPLIT_RULES = ("folders", "val_pattern", "val_fraction")
OWN_TILES = {
    "images": "Images",
    "labels": "SegmentationClass",
    "decode": "mask",
    "train_list": "train.txt",
    "val_list": "val.txt",
}
_GDAL = {
    # Bytes of unpacked rows or blocks, by default a share of the machine's memory. Two rows of tiles must fit, with
    # label and margin (25000 pixels of width at 512), else what is packed by rows is unpacked for every tile anew.
    "GDAL_CACHEMAX": 128 * 2**20,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not list a folder of thousands for every file opened
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # else a truncated JPEG ends in grey
}


# ---- the table ----


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The photographs of one corpus as they are downloaded.

    images, labels: folders below the archive's root, which may be one and the same. A photograph and its label have
    the same name once one of `image_suffixes`, `label_suffixes` is taken off, in whatever case. threshold: a label
    above it in any channel is class 1, else class 0. no_data_colour: (R, G, B) of pixels without data, or None;
    no_data: what becomes of tiles with such pixels, "skip" or "ignore". At most one of the rules of the split:
    folders: split -> what `{split}` in images and labels stands for; val_pattern: a regular expression that matches
    the whole name; val_fraction: the share drawn for validation. tiles: the corpus table of the tiles. recipe: the
    configuration of configs/ whose source they are, or "".
    """

    images: str
    labels: str
    image_suffixes: tuple[str, ...]
    label_suffixes: tuple[str, ...]
    threshold: int = 127
    no_data_colour: tuple[int, int, int] | None = None
    no_data: str = "skip"
    folders: Mapping[str, str] = field(default_factory=dict)
    val_pattern: str = ""
    val_fraction: float = 0.0
    tiles: Mapping[str, Any] = field(default_factory=lambda: dict(OWN_TILES))
    recipe: str = ""

    @classmethod
    def from_mapping(cls, entries: Mapping[str, Any], where: str) -> Archive:
        """Read a table of photographs. Raises DataError for an unknown or missing key or a wrong type."""
        table = Table(entries, tuple(cls.__dataclass_fields__), where)
        table.required("images", "labels", "image_suffixes", "label_suffixes")
        if sum(rule in table for rule in SPLIT_RULES) > 1:
            raise DataError(f"{where}: {', '.join(SPLIT_RULES)} exclude each other; keep one")
        archive = cls(
            images=table.text("images", ""),
            labels=table.text("labels", ""),
            image_suffixes=_suffixes(table, "image_suffixes"),
            label_suffixes=_suffixes(table, "label_suffixes"),
            threshold=table.integer("threshold", 127, 0, 254),
            no_data_colour=_colour(table),
            no_data=table.text("no_data", "skip"),
            folders=_folders(table),
            val_pattern=_pattern(table),
            val_fraction=_fraction(table),
            tiles=table.mapping("tiles") or OWN_TILES,
            recipe=table.text("recipe", ""),
        )
        if archive.no_data not in NO_DATA:
            raise table.wrong("no_data", f"one of {', '.join(NO_DATA)}")
        return archive


def _suffixes(table: Table, key: str) -> tuple[str, ...]:
    suffixes = table.texts(key)
    if not suffixes or "" in suffixes:
        raise table.wrong(key, "a list of endings of file names")
    return suffixes


def _colour(table: Table) -> tuple[int, int, int] | None:
    if "no_data_colour" not in table:
        return None
    colour = table.integers("no_data_colour", (), 0, 255)
    if len(colour) != 3:
        raise table.wrong("no_data_colour", "[red, green, blue]")
    return colour[0], colour[1], colour[2]


def _folders(table: Table) -> dict[str, str]:
    folders = dict(table.mapping("folders"))
    if folders and (set(folders) != {"train", "val"} or not all(isinstance(name, str) for name in folders.values())):
        raise table.wrong("folders", "a table of train and val")
    for key in ("images", "labels"):
        if ("{split}" in table.text(key, "")) != bool(folders):
            raise DataError(f"{table.where}: {key} names {{split}} exactly where folders says what it stands for")
    return folders


def _pattern(table: Table) -> str:
    pattern = table.text("val_pattern", "")
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(f"{table.where}: val_pattern {pattern!r} is no regular expression ({error})") from None
    return pattern


def _fraction(table: Table) -> float:
    value = table.entries.get("val_fraction", 0.0)
    if "val_fraction" in table and not (isinstance(value, float) and 0 < value < 1):
        raise table.wrong("val_fraction", "a number between 0 and 1")
    return float(value)


# ---- finding ----


@dataclass(frozen=True)
class Photograph:
    """One photograph and its label. split: that of its official folder, "" where the archive has none."""

    name: str
    image: Path
    label: Path
    split: str


def find(archive: Archive, root: Path) -> tuple[list[Photograph], list[str]]:
    """The archive's photographs sorted by name, and a note for each folder in which something was passed over.

    Raises DataError for a missing folder, a photograph without label or the reverse, or two of one name.
    """
    found: dict[str, Photograph] = {}
    notes: list[str] = []
    for split, name in (archive.folders or {"": ""}).items():
        folders = [root / folder.replace("{split}", name) for folder in (archive.images, archive.labels)]
        images, labels = (
            _by_name(folder, suffixes)
            for folder, suffixes in zip(folders, (archive.image_suffixes, archive.label_suffixes), strict=True)
        )
        _require_pairs(images, labels, folders)
        suffixes = (*archive.image_suffixes, *archive.label_suffixes)
        notes += _passed_over(folders, {*images.values(), *labels.values()}, suffixes)
        for stem, image in images.items():
            if stem in found:
                raise DataError(f"{image} and {found[stem].image} have the same name; rename one, and its label")
            found[stem] = Photograph(stem, image, labels[stem], split)
    return [found[name] for name in sorted(found)], notes


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name without suffix -> file, of the folder's files with one of the suffixes; hidden ones are left out."""
    found: dict[str, Path] = {}
    for path in _entries(folder):
        ending = _ending(path, suffixes)
        if not ending or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.name[: -len(ending)]
        if stem in found:
            raise DataError(f"{path} and {found[stem]} have the same name; remove one")
        found[stem] = path
    if not found:
        raise DataError(f"{folder}: no file ends in {' or '.join(suffixes)}; is --root the folder of the archive?")
    return found


def _ending(path: Path, suffixes: Sequence[str]) -> str:
    """The longest of the suffixes that a file's name has, in whatever case; empty for none."""
    return max((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), key=len, default="")


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --root names the folder of the archive (docs/aerial.md)")
    return sorted(folder.iterdir())


def _require_pairs(images: Mapping[str, Path], labels: Mapping[str, Path], folders: Sequence[Path]) -> None:
    for what, these, other, those, folder in (
        ("photographs have no label", images, "label", labels, folders[1]),
        ("labels have no photograph", labels, "photograph", images, folders[0]),
    ):
        alone = sorted(these.keys() - those.keys())
        if alone:
            raise DataError(
                f"{these[alone[0]]}: no {other} in {folder}; {len(alone)} of {len(these)} {what}: unpack the archive"
                " again, or move them away"
            )


def _passed_over(folders: Sequence[Path], taken: Collection[Path], suffixes: Sequence[str]) -> list[str]:
    """A note per folder on its other files, hidden ones included, and on folders that are named like photographs."""
    notes = []
    for folder in dict.fromkeys(folders):
        others = [
            path for path in _entries(folder) if path not in taken and (path.is_file() or _ending(path, suffixes))
        ]
        if others:
            rest = f" and {len(others) - 1} more" if len(others) > 1 else ""
            notes.append(f"{folder}: neither photograph nor label, passed over: {others[0].name}{rest}")
    return notes


# ---- train and val ----


def official_split(archive: Archive, found: Sequence[Photograph]) -> dict[str, str]:
    """Name -> "train" or "val" by the archive's own folders or pattern; not for one that draws its split."""
    if archive.folders:
        return {photograph.name: photograph.split for photograph in found}
    return _chosen(found, {p.name for p in found if re.fullmatch(archive.val_pattern, p.name)})


def drawn_split(found: Sequence[Photograph], fraction: float, seed: int) -> dict[str, str]:
    """Name -> split, about `fraction` of the photographs and at least one being val.

    The draw orders the names by a hash of seed and name: it needs no library's random numbers to stay as they are.
    """
    order = sorted((p.name for p in found), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    return _chosen(found, set(order[: max(1, round(fraction * len(order)))]))


def listed_split(found: Sequence[Photograph], names: Collection[str]) -> dict[str, str]:
    """Name -> split, the named photographs being val."""
    return _chosen(found, names)


def _chosen(found: Sequence[Photograph], val: Collection[str]) -> dict[str, str]:
    return {photograph.name: "val" if photograph.name in val else "train" for photograph in found}


# ---- windows ----


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster file, of which nothing is read yet. Raises DataError naming one that GDAL cannot open."""
    with rasterio.Env(**_GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixels are all that matters here
        with _named(path):
            dataset = rasterio.open(path)
        with dataset:
            yield dataset


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """What GDAL cannot do is a DataError naming the file."""
    try:
        yield
    except RasterioError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{path}: cannot be read ({cause}); unpack or download it again") from None


def colour_bands(dataset: rasterio.DatasetReader) -> list[int]:
    """The numbers of the bands that are not transparency. Raises DataError unless they are 8-bit."""
    bands = [i for i, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True) if meaning != ColorInterp.alpha]
    if set(dataset.dtypes) != {"uint8"}:
        raise DataError(f"{dataset.name}: 8-bit pixels are expected, these are {dataset.dtypes[0]}; convert the file")
    return bands


def measure(photograph: Photograph, *, least: int) -> tuple[int, int]:
    """(W, H) of a photograph, from its header.

    Raises DataError for a photograph that is not RGB, a label that is not of one or three channels, sizes that
    differ, or a side shorter than `least`.
    """
    with opened(photograph.image) as image, opened(photograph.label) as label:
        for dataset, counts in ((image, (3,)), (label, (1, 3))):
            channels = len(colour_bands(dataset))
            if channels not in counts:
                wanted = " or ".join(map(str, counts))
                raise DataError(f"{dataset.name}: has {channels} channels instead of {wanted}; convert the file")
        width, height = image.width, image.height
        if (label.width, label.height) != (width, height):
            raise DataError(
                f"{photograph.image} is {width}x{height}, its label {photograph.label} {label.width}x{label.height};"
                " download both again"
            )
        if min(width, height) < least:
            raise DataError(f"{photograph.image}: {width}x{height} is smaller than a tile of {least}; give --size less")
        return width, height


def read_window(dataset: rasterio.DatasetReader, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The colours (H,W,channels) uint8 of a window, which is all that is read; a palette is resolved."""
    bands = colour_bands(dataset)
    with _named(dataset.name):
        pixels = np.moveaxis(dataset.read(bands, window=Window(left, top, width, height)), 0, 2)
    if dataset.colorinterp[0] != ColorInterp.palette:
        return pixels
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index, colour in dataset.colormap(1).items():
        palette[index] = colour[:3]
    return palette[pixels[:, :, 0]]


def class_mask(colours: np.ndarray, threshold: int, where: Path) -> np.ndarray:
    """(H,W) uint8: 1 where any channel is above the threshold, else 0. Raises DataError for a label of 0 and 1."""
    if threshold > 0 and colours.max() == 1:
        raise DataError(f"{where}: a label of 0 and 1 has nothing above {threshold}; give a table with threshold = 0")
    return (colours.max(axis=2) > threshold).astype(np.uint8)


# ---- the grid ----


def positions(length: int, size: int, stride: int) -> list[int]:
    """Where tiles begin along a side: 0, stride, 2 stride, ...; the last is moved back to end with the photograph.

    `length` is at least `size`, and `stride` at most, so that the tiles cover the side.
    """
    begins = list(range(0, length - size + 1, stride))
    return begins if begins[-1] == length - size else [*begins, length - size]


def no_data_mask(colours: np.ndarray, colour: Sequence[int], least: float) -> np.ndarray:
    """(H,W) bool: the pixels of exactly this colour that lie in an 8-connected region of at least `least` pixels."""
    same = (colours == np.asarray(colour, dtype=np.uint8)).all(axis=2)
    if not same.any():
        return same
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(same.astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= least
    large[0] = False  # everything else
    return large[regions]


def no_data_window(
    dataset: rasterio.DatasetReader, top: int, left: int, size: int, colour: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """A tile's colours (size,size,3) uint8 and where it has no data (size,size) bool.

    The tile is looked at with an eighth of its side around it, so that a large region of which only a sliver reaches
    into the tile is recognised by its size. That window is all that is read.
    """
    if colour is None:
        return read_window(dataset, top, left, size, size), np.zeros((size, size), dtype=bool)
    margin = size // 8
    first_row, first_column = max(0, top - margin), max(0, left - margin)
    height = min(dataset.height, top + size + margin) - first_row
    width = min(dataset.width, left + size + margin) - first_column
    around = read_window(dataset, first_row, first_column, height, width)
    rows = slice(top - first_row, top - first_row + size)
    columns = slice(left - first_column, left - first_column + size)
    missing = no_data_mask(around, colour, NO_DATA_REGION * size * size)
    return around[rows, columns], missing[rows, columns]
