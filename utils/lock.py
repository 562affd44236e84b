"""One process at a time in a folder.

A lock belongs to its process and ends with it, however it ends: there are no stale locks to remove by hand. It is a
POSIX record lock, which NFS knows, too, and which the processes that load images do not inherit: those of a killed
training outlive it by seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.config import ConfigError
from utils.console import say
from utils.files import remove_temporaries

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NOT_KNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # file systems without locks


class FolderInUseError(ConfigError):
    """Another process writes to the folder; one line that names it."""


@contextlib.contextmanager
def only_one(folder: str | os.PathLike[str], remedy: str, *, parts: Sequence[str] = ()) -> Iterator[None]:
    """Within, no other process is in `folder`, which is made where it is missing; what killed ones left unfinished in
    it is removed.

    remedy: what a user can do who is refused. parts: folders in it that are filled, too, with whatever is below them.
    Raises FolderInUseError naming the process that is there. Where the file system knows no locks a note says so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _take(folder / LOCK, remedy)
    try:
        removed = remove_temporaries(folder)
        removed += sum(remove_temporaries(folder / part, below=True) for part in parts)
        if removed:
            say(f"note: {folder}: {removed} unfinished files of a process that was killed are removed")
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is still ours
        os.close(descriptor)


def _take(path: Path, remedy: str) -> int:
    """A descriptor of the lock file, which is locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, remedy)
            if _is_there(descriptor, path):
                os.truncate(descriptor, 0)
                os.write(descriptor, _self().encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has left, and taken the file away, since it was opened


def _lock(descriptor: int, path: Path, remedy: str) -> None:
    if fcntl is None:
        say(f"note: {path.parent} is not locked, this system has no record locks; keep other processes out of it")
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise FolderInUseError(f"{path.parent} is in use by {owner}; {remedy}") from None
        if error.errno not in _NOT_KNOWN:
            raise
        say(f"note: {path.parent} is not locked ({error.strerror}); keep other processes out of it")


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _self() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
