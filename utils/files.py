"""Files that are complete or not there. Imports nothing heavy: worker processes that write files need no torch."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has ended without an error.

    Readers see the old file or the new one, never a part: the content is flushed to the disk before the
    rename, and the folder after it. The temporary file keeps the suffix of `path` (Pillow and numpy choose
    a format by it) and is removed on any failure. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power failure."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot do this to a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
