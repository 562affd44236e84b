"""Files that are complete or not there. Imports nothing heavy: worker processes that write files need no torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOM = 2**20  # bytes: a disk that does not take so many more is full
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.\w+)?")  # a file that is not finished


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has ended without an error.

    Readers see the old file or the new one, never a part: the content is flushed to the disk before the
    rename, and the folder after it. The temporary file keeps the suffix of `path` (Pillow and numpy choose
    a format by it) and is removed on any failure. Missing parent folders are made. An OSError that does not say why, as
    those of rasterio and of Pillow's encoders, becomes that of the full disk where it is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        with errors_naming(path, unfinished=temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def errors_naming(path: Path, *, unfinished: Path | None = None) -> Iterator[None]:
    """An OSError within names the file, as one of a full disk does not by itself.

    unfinished: where it is written, which is asked by `require_room` what is wrong if the error does not say.
    """
    try:
        try:
            yield
        except OSError as error:
            if error.errno is None and unfinished is not None:
                require_room(unfinished)
            raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def require_room(path: Path) -> None:
    """Raise the OSError that an unfinished file runs into as it grows, if it does; its content stays what it is.

    For libraries that cannot write and do not tell why, or do not tell at all.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            write_all(file, memoryview(bytes(ROOM)))
            os.fsync(file.fileno())
        finally:
            file.truncate(size)


def write_all(file: io.RawIOBase, data: memoryview) -> None:
    """Write all bytes to an unbuffered file, which may take a part at a time; raises OSError where it takes no more."""
    rest = data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def names_and_sizes(paths: Iterable[Path]) -> str:
    """The sha256 of files' names and sizes, in their order; what is in them is not looked at."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power failure."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot do this to a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path, *, below: bool = False) -> int:
    """Remove the unfinished files that killed processes left in a folder; how many. Nobody may be writing there.

    below: those in the folders below it, too.
    """
    found = folder.rglob(".*.tmp*") if below else folder.glob(".*.tmp*")
    left = [path for path in found if TEMPORARY.fullmatch(path.name)]
    for path in left:
        path.unlink()
    return len(left)
