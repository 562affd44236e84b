"""What is to be predicted: the files that a command line means, and a name for each that no other one has."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset.corpora import DataError, files_below, number_of

IMAGES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    )
)
VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
"""What is looked for in folders, by the endings of names; a file that is named itself may be called anything."""


@dataclass(frozen=True)
class Input:
    """A file to predict. name: its place among the results, a posix path without suffix, unlike any other's."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_inputs(given: Sequence[str], *, without: Path) -> tuple[list[Input], list[str]]:
    """The files that `given` means, in its order, and notes on what was passed over.

    An entry is a file, a folder with everything below it (by IMAGES and VIDEOS, sorted; hidden files left out), or a
    glob pattern, in which `**` stands for any folders. A file that is meant twice counts once. without: the folder of
    results, of which nothing is taken. Raises DataError for an entry that means nothing.
    """
    found: dict[str, tuple[Path, PurePosixPath]] = {}
    notes: list[str] = []
    twice = 0
    for entry in given:
        for path, relative in _files_of(entry, without, notes):
            twice += (key := os.path.realpath(path)) in found
            found.setdefault(key, (path, relative))
    if twice:
        notes.append(f"{number_of(twice, 'file')} given more than once, predicted once")
    paths, relatives = zip(*found.values(), strict=True)
    return [Input(path, name) for path, name in zip(paths, _names(paths, relatives), strict=True)], notes


def _files_of(entry: str, without: Path, notes: list[str]) -> list[tuple[Path, PurePosixPath]]:
    """The files of one entry, each with its path below the folder of the entry."""
    path = Path(entry)
    if not entry:
        raise DataError("an input is empty; '.' is this folder")
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # of a name that is too long
        raise DataError(f"{entry}: {error.strerror}") from None
    if is_folder:
        files = [(path / name, PurePosixPath(name)) for name in sorted(files_below(path))]
        return _taken(files, entry, without, notes)
    if exists:
        return [(path, PurePosixPath(path.name))]
    if not glob.has_magic(entry):
        raise DataError(f"{entry}: no such file or folder")
    matches = [Path(match) for match in sorted(glob.glob(entry, recursive=True))]
    _require_readable(Path(entry))
    fixed = Path(*_before_magic(Path(entry)))
    files = [(match, PurePosixPath(match.relative_to(fixed).as_posix())) for match in matches if match.is_file()]
    if not files:
        raise DataError(f"{entry}: the pattern matches no file")
    return _taken(files, entry, without, notes)


def _require_readable(pattern: Path) -> None:
    """Raise DataError for a folder that a pattern leads into and that cannot be read, which glob passes over."""
    for path in (pattern, *pattern.parents[:-1]):
        if path.parent.name == "**":  # which comes next, with all that it leads into
            continue
        wanted = os.R_OK | os.X_OK if glob.has_magic(path.name) else os.X_OK  # to be listed, or passed through
        for folder in glob.iglob(str(path if path.name == "**" else path.parent), recursive=True):
            if os.path.isdir(folder) and not os.access(folder, wanted):
                raise DataError(
                    f"{folder}: the folder cannot be read; make it readable, or leave it out of the pattern"
                )


def _taken(
    files: Sequence[tuple[Path, PurePosixPath]], entry: str, without: Path, notes: list[str]
) -> list[tuple[Path, PurePosixPath]]:
    """Those of an entry's files that are images or videos by their suffix, and no results."""
    known = [file for file in files if _is_known(file[0])]
    others = [path for path, _ in files if not _is_known(path)]
    if others:
        notes.append(f"{entry}: {number_of(len(others), 'file')} of other kinds passed over, first {others[0].name}")
    results = os.path.realpath(without)
    taken = [file for file in known if os.path.commonpath([results, os.path.realpath(file[0])]) != results]
    if len(taken) < len(known):
        notes.append(
            f"{entry}: {number_of(len(known) - len(taken), 'file')} in {without}, where results go, passed over"
        )
    if not taken:
        remedy = f" but in {without}, where results go; name another --save" if known else ""
        raise DataError(f"{entry}: no image or video in it{remedy}")
    return taken


def _is_known(path: Path) -> bool:
    """Whether a file found is an image or a video by its suffix. A link that leads nowhere is, since it should be one;
    a pipe, which nobody may ever write to, is not."""
    return path.suffix.lower() in IMAGES | VIDEOS and (path.is_file() or not path.exists())


def _before_magic(pattern: Path) -> Iterator[str]:
    """The parts of a pattern up to the first that is one."""
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _names(paths: Sequence[Path], relatives: Sequence[PurePosixPath]) -> list[str]:
    """A name per file: its relative path without suffix, with it where that is taken twice, then with the folder of the
    entry before it, then with a number. Names that differ only in case are the same on some disks, and so here."""
    names = [str(relative.with_suffix("")) for relative in relatives]
    full = [str(relative) for relative in relatives]
    folders = [str(PurePosixPath(_entry_folder(*pair), pair[1])) for pair in zip(paths, relatives, strict=True)]
    for longer in (full, folders):
        counts = Counter(name.casefold() for name in names)
        names = [b if counts[a.casefold()] > 1 else a for a, b in zip(names, longer, strict=True)]
    return _numbered(names)


def _entry_folder(path: Path, relative: PurePosixPath) -> str:
    """The name of the folder that `relative` starts from."""
    return path.absolute().parents[len(relative.parts) - 1].name


def _numbered(names: Sequence[str]) -> list[str]:
    used: set[str] = set()
    result = []
    for name in names:
        number, unique = 1, name
        while unique.casefold() in used:
            number += 1
            unique = f"{name}-{number}"
        used.add(unique.casefold())
        result.append(unique)
    return result
