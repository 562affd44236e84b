"""Corpora: where the images and labels of a data set lie, and which files belong to a split.

A corpus is data, not a class of its own: the tables of known corpora (tables/corpora) and a user's `[source]`
or `[target]` are read by the same code.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from PIL import Image

from dataset.labels import LabelDecoding
from dataset.toml import DataError, Table, is_integer, shipped_table

__all__ = [
    *("Corpus", "DataError", "EntryError", "Sample"),
    *("evenly", "files_below", "flat_names", "number_of", "other_pictures"),
    *("require_finished", "pseudo_label_name", "with_pseudo_labels"),
]

Item = TypeVar("Item")
SPLITS = ("train", "val", "test")
UNFINISHED = "unfinished.json"  # marks a folder of predictions while it is filled
_FOLDER_KEYS = ("root", "images", "labels", "image_suffix", "label_suffix")
_LIST_KEYS = tuple(f"{split}_list" for split in SPLITS)
KEYS = ("corpus", *_FOLDER_KEYS, *LabelDecoding.KEYS, "trust_ids", *_LIST_KEYS, "expected")


class EntryError(DataError):
    """A bad entry of a list file. `kind`: what it has in common with others, in a few words; `where`: file and line."""

    def __init__(self, kind: str, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.kind, self.where = kind, where


@dataclass(frozen=True)
class Sample:
    """One image. `name` is its posix path relative to the image folder; `label` is None for no labels."""

    name: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The folders, lists and label decoding of one data set.

    images, labels: folders below root (or absolute, so that translated images can stand beside the original
    labels); `{split}` in them stands for the split's name. A label's name is the image's name with
    `image_suffix` replaced by `label_suffix`. lists: split -> list file, relative to the working directory,
    else to root. expected: split -> number of images of the published corpus. trust_ids: the labels' ids are raw ids
    although they look like train ids.
    """

    name: str
    root: Path
    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    decoding: LabelDecoding
    lists: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    trust_ids: bool = False

    @classmethod
    def from_mapping(cls, entries: Mapping[str, Any], num_classes: int, where: str = "[source]") -> Corpus:
        """Read a `[source]` or `[target]` table; its other keys override those of the shipped `corpus`.

        Raises DataError for an unknown key, a wrong type, a missing root, or ids beyond `num_classes`.
        """
        table = _with_defaults(Table(entries, KEYS, where))
        table.required("root")
        decoding = LabelDecoding.from_table(table, num_classes)
        image_suffix, label_suffix = _suffix(table, "image_suffix"), _suffix(table, "label_suffix")
        if decoding.ids and "trainid" in label_suffix.lower():
            raise DataError(
                f"{where}: label_suffix {label_suffix!r} names files of train ids, but ids maps raw ids;"
                " set ids = {} and ignore = [255], or use the raw labels"
            )
        return cls(
            name=str(entries.get("corpus", where)),
            root=Path(table.text("root", "")),
            images=table.text("images", "images"),
            labels=table.text("labels", "labels"),
            image_suffix=image_suffix,
            label_suffix=label_suffix,
            decoding=decoding,
            lists={split: path for split in SPLITS if (path := table.text(f"{split}_list", ""))},  # empty: no list
            expected=_expected(table),
            trust_ids=_trust_ids(table),
        )

    def image_folder(self, split: str) -> Path:
        return self.root / self.images.replace("{split}", split)

    def label_folder(self, split: str) -> Path:
        return self.root / self.labels.replace("{split}", split)

    def samples(self, split: str, labelled: bool) -> list[Sample]:
        """The split's images in list order, or sorted by name where no list is given.

        Without a list, hidden files are left out, and a corpus whose folders do not name the split has only
        "train": the whole folder. Raises DataError for a missing folder, an empty split, a bad list entry, a
        missing image or, when `labelled`, a missing label.
        """
        folder = self.image_folder(split)
        names = []
        for name, flaw in self.listing(split):
            if flaw is not None:
                raise flaw
            names.append(name)
        if not labelled:
            return [Sample(name, folder / name) for name in names]
        labels = self.label_folder(split)
        samples = [Sample(name, folder / name, labels / self.label_name(name)) for name in names]
        _require_labels(samples, f"check labels = {self.labels!r} and label_suffix = {self.label_suffix!r}")
        return samples

    def listing(self, split: str) -> Iterator[tuple[str, EntryError | None]]:
        """The names of a split's images in their order, each with what is wrong with its entry in the list, or None.

        For those who want to know of every bad entry; `samples` raises the first. Raises DataError where there is
        nothing to go through: no such folder or list, or an empty one.
        """
        if not re.fullmatch(r"[\w-]+", split):
            raise DataError(f"{self.name}: {split!r} is not the name of a split")
        folder = self.image_folder(split)
        if split in self.lists:
            yield from self._listed(split, folder)
        else:
            for name in self._found(split, folder):
                yield name, None

    def truths(self, split: str, folder: Path) -> list[Path]:
        """The split's label files below another folder, for scoring: those its list names, or all with the suffix.

        Raises DataError for a missing folder, no label file at all, or a listed one that is not there.
        """
        _require_folder(folder, "name the folder of the label files")
        if split in self.lists:
            path = self._list_file(split)
            entries = [_relative_name(entry, folder, f"{path}, line {number}") for number, entry in _entries(path)]
            names = [self.label_name(entry) for entry in entries]
        else:
            names = sorted(name for name in files_below(folder) if name.endswith(self.label_suffix))
        if not names:
            raise DataError(f"{folder}: no label file *{self.label_suffix}; is this the right folder and --config?")
        samples = [Sample(name, folder / name, folder / name) for name in names]
        _require_labels(samples, "a label file is missing")
        return [folder / name for name in names]

    def count_note(self, split: str, count: int) -> str | None:
        """A line to log when a split's number of images is not the published corpus', else None."""
        expected = self.expected.get(split)
        if expected is None or expected == count:
            return None
        return f"{self.name} {split}: {number_of(count, 'image')}, the published corpus has {expected}"

    def left_out_note(self, split: str) -> str | None:
        """A line to log where no list tells which images to use and some lie there with another suffix, else None."""
        if split in self.lists:
            return None
        folder = self.image_folder(split)
        names = sorted(other_pictures(files_below(folder), (self.image_suffix, self.label_suffix)))
        if not names:
            return None
        return (
            f"{folder}: {number_of(len(names), 'image')} left out, first {names[0]}: names must end in"
            f" {self.image_suffix!r}; rename or convert them, or correct image_suffix"
        )

    def label_name(self, name: str) -> str:
        """The name of an image's label, relative to the label folder."""
        return name[: len(name) - len(self.image_suffix)] + self.label_suffix

    def _listed(self, split: str, folder: Path) -> Iterator[tuple[str, EntryError | None]]:
        path = self._list_file(split)
        _require_folder(folder, f"set root or images of {self.name}")
        lines: dict[str, int] = {}
        number = 0
        for number, entry in _entries(path):
            try:
                name = self._checked_entry(entry, folder, lines, f"{path}, line {number}")
            except EntryError as error:
                yield entry, error
            else:
                lines[name] = number
                yield name, None
        if number == 0:
            raise DataError(f"{path}: the list is empty; it holds one image name a line, relative to {folder}")

    def _list_file(self, split: str) -> Path:
        given = Path(self.lists[split])
        candidates = [given, self.root / given]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise DataError(
            f"{given}: no such list file, neither here nor as {candidates[1]}; correct {split}_list (empty: no list)"
        )

    def _checked_entry(self, entry: str, folder: Path, lines: Mapping[str, int], where: str) -> str:
        """The image's name that an entry means; `lines`: where the names before it stood."""
        name = _relative_name(entry, folder, where)
        if name in lines:
            raise EntryError(
                "list entries that occur twice", where, f"{name} is listed already on line {lines[name]}; remove one"
            )
        if not (folder / name).is_file():
            raise self._absent(name, folder, where)
        if not name.endswith(self.image_suffix):
            raise EntryError(
                "list entries with another suffix",
                where,
                f"{name} does not end in {self.image_suffix!r}; correct the list or image_suffix",
            )
        return name

    def _absent(self, name: str, folder: Path, where: str) -> EntryError:
        """What is wrong with an entry that names no file."""
        words = name.split()
        if len(words) > 1 and (folder / words[0]).is_file():
            return EntryError(
                "list entries with a second column",
                where,
                f"{name!r} has a second column; a list holds one image name a line",
            )
        if (folder / f"{name}{self.image_suffix}").is_file():
            return EntryError(
                "list entries without their suffix",
                where,
                f"{name} lacks its suffix; a list holds whole names, here {name}{self.image_suffix}",
            )
        composed, decomposed = unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
        if (folder / composed).is_file() or (folder / decomposed).is_file():
            return EntryError(
                "list entries in another Unicode form",
                where,
                f"{name} is in {folder} in another Unicode form, which looks the same (NFD where macOS named "
                "the file, NFC elsewhere); write the list from the folder's own names, or rename the files",
            )
        return EntryError(
            "list entries without an image", where, f"no image {name} in {folder}; correct the list or root"
        )

    def _found(self, split: str, folder: Path) -> list[str]:
        if split != "train" and "{split}" not in self.images:
            raise DataError(
                f"{self.name}: no {split} list given and images = {self.images!r} does not name the split;"
                f" set {split}_list"
            )
        _require_folder(folder, f"set root or images of {self.name}")
        names = sorted(name for name in files_below(folder) if name.endswith(self.image_suffix))
        if not names:
            raise DataError(f"{folder}: no file ends in {self.image_suffix!r}; correct image_suffix, images or root")
        return names


# ---- pseudo labels ----


def pseudo_label_name(sample_name: str) -> str:
    """The file name of an image's pseudo label in its flat folder: `aachen/x.jpg` -> `x.png`."""
    return PurePosixPath(sample_name).stem + ".png"


def flat_names(samples: Sequence[Sample]) -> list[str]:
    """The PNG of each sample in a flat folder of predictions. Raises DataError when two samples share one."""
    owners: dict[str, str] = {}
    for sample in samples:
        name = pseudo_label_name(sample.name)
        if name in owners:
            raise DataError(f"{owners[name]} and {sample.name} share the prediction {name}; rename one of the images")
        owners[name] = sample.name
    return list(owners)


def with_pseudo_labels(samples: Sequence[Sample], folder: Path | str) -> list[Sample]:
    """The same samples with the pseudo labels of a flat folder as labels (decode with `train_id_decoding`).

    Raises DataError when two images share a file name, a pseudo label is missing, or the folder is unfinished.
    """
    folder = Path(folder)
    require_finished(folder, "Generate_Pseudo_Label.py")
    names = flat_names(samples)
    labelled = [Sample(sample.name, sample.image, folder / name) for sample, name in zip(samples, names, strict=True)]
    _require_labels(labelled, f"run Generate_Pseudo_Label.py, which fills {folder}", "pseudo labels")
    return labelled


def require_finished(folder: Path, script: str) -> None:
    """Raise DataError where the script that fills a folder was interrupted: some of its files may be older ones."""
    if (folder / UNFINISHED).exists():
        raise DataError(f"{folder}: unfinished, {script} was interrupted while it wrote there; run it again")


def number_of(count: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# ---- reading ----


def _with_defaults(table: Table) -> Table:
    """The table over the shipped one that its `corpus` names; a shipped table may rest on another in turn."""
    if "corpus" not in table:
        return table
    shipped = dict(shipped_table("corpora", table.text("corpus", ""), table.where))
    base = _with_defaults(Table(shipped, KEYS, table.where))
    return Table({**base.entries, **table.entries}, KEYS, table.where)


def _suffix(table: Table, key: str) -> str:
    """The end of file names, `.png` unless the table says otherwise."""
    suffix = table.text(key, ".png")
    if suffix and "." not in suffix:
        raise DataError(f"{table.where}: {key} {suffix!r} has no dot; it is the end of a file name, such as '.png'")
    return suffix


def _trust_ids(table: Table) -> bool:
    value = table.entries.get("trust_ids", False)
    if not isinstance(value, bool):
        raise table.wrong("trust_ids", "true or false")
    return value


def _expected(table: Table) -> dict[str, int]:
    expected = dict(table.mapping("expected"))
    if not all(is_integer(count, 0, 2**31) for count in expected.values()):
        raise table.wrong("expected", "a table of numbers of images")
    return expected


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, entry) of a list file, without blank lines, carriage returns and byte-order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: the list is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the list ({error})") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _relative_name(entry: str, folder: Path, where: str) -> str:
    """The entry as a posix path relative to the image folder, lexically: links are not resolved."""
    path = PurePosixPath(entry)
    if path.is_absolute():
        path = PurePosixPath(os.path.relpath(path, os.path.abspath(folder)))
    if ".." in path.parts or not path.parts:
        raise EntryError(
            "list entries outside the image folder",
            where,
            f"{entry} is not inside {folder}; names are relative to that folder",
        )
    return str(path)


def files_below(folder: Path) -> Iterator[str]:
    """Posix names of all files below the folder; linked folders are entered, hidden names left out.

    Raises DataError naming a folder that cannot be read, or that is linked in a circle.
    """
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        _refuse_cycles(folder, Path(current), folders)
        for name in files:
            if not name.startswith("."):
                yield Path(current, name).relative_to(folder).as_posix()


def other_pictures(names: Iterable[str], suffixes: Sequence[str]) -> Iterator[str]:
    """Those of the names that are images, of any kind that is known, but end in none of the suffixes, as x.JPG beside
    .jpg."""
    known, wanted = tuple(Image.registered_extensions()), tuple(suffixes)
    return (name for name in names if name.lower().endswith(known) and not name.endswith(wanted))


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: the folder cannot be read ({error.strerror}); make it readable, or move it away"
    )


def _refuse_cycles(top: Path, current: Path, folders: list[str]) -> None:
    """Raise DataError for a linked folder that is one of the folders on the way from `top` to it."""
    links = [current / name for name in folders if (current / name).is_symlink()]
    if links:
        way = {os.path.realpath(folder) for folder in (current, *current.parents) if top in (folder, *folder.parents)}
        for link in links:
            if os.path.realpath(link) in way:
                raise DataError(f"{link}: the link leads back to a folder above it; remove it")


def _require_folder(folder: Path, remedy: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {remedy}")


def _require_labels(samples: Sequence[Sample], remedy: str, what: str = "labels") -> None:
    missing = [sample for sample in samples if sample.label is not None and not sample.label.is_file()]
    if missing:
        raise DataError(
            f"{missing[0].label}: {len(missing)} of {len(samples)} {what} are missing, first that of"
            f" {missing[0].name}; {remedy}"
        )


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spread from the first to the last."""
    count = min(most, len(items))
    return [items[round(index * (len(items) - 1) / max(count - 1, 1))] for index in range(count)]
