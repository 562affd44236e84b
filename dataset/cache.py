"""Resized images kept on disk: an image that was seen before is neither decoded nor resized again.

An entry is named by what it was made from, the bytes of the image file and the size wanted, so nothing has to be
declared stale. Entries are written to a temporary file and renamed, so any number of processes and runs may share a
folder. When they outgrow the limit, those that nobody has used for the longest time are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from dataset.toml import DataError

_VERSION = 1  # of the way from file to pixels: another number makes every entry anew
_MAGIC = b"resized\x01"
_HEADER = struct.Struct("<8s32s4I")  # magic, key, width and height, those of the image file; then:
_CHECKSUM = struct.Struct("<I")  # of the header and the pixels, which follow
_ENTRY, _TEMPORARY = ".resized", ".part"
_ABANDONED_S = 3600.0  # a temporary file this old belongs to a process that was killed


class Resized(NamedTuple):
    """pixels: (H,W,3) uint8 RGB. native: (W,H) of the image before it was resized."""

    pixels: np.ndarray
    native: tuple[int, int]


class ImageCache:
    """A folder of resized images.

    folder: made where it is missing. limit: bytes that the entries may take; looked at whenever a process has written
    another hundredth of it, so every process that writes can exceed it by as much for a while.
    Raises DataError naming a folder that cannot be written to.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._unchecked = limit  # bytes written since the last look; the first entry of a process leads to one
        with self._failing_clearly():
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "no permission")

    @staticmethod
    def key(data: bytes, size: tuple[int, int]) -> bytes:
        """(32,) what an entry is found by. data: the bytes of the image file; size: (W,H) wanted."""
        # JPEG decoders differ by a grey level; Pillow's version stands for the one it brings.
        made_by = f"{_VERSION} Pillow {PIL.__version__} bicubic {size[0]}x{size[1]}"
        return hashlib.sha256(hashlib.sha256(data).digest() + made_by.encode()).digest()

    def load(self, key: bytes) -> Resized | None:
        """The entry of a key, None where there is none or the file is not one that was written for it, or damaged."""
        path = self._path(key)
        with self._failing_clearly():
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
            resized = _decoded(data, key)
            if resized is not None:
                with contextlib.suppress(FileNotFoundError):  # another process has just evicted it
                    os.utime(path)
        return resized

    def store(self, key: bytes, resized: Resized) -> None:
        """Keep an entry. Raises DataError when it cannot be written."""
        path = self._path(key)
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}{_TEMPORARY}")
        height, width, _ = resized.pixels.shape
        pixels = np.ascontiguousarray(resized.pixels).data
        header = _HEADER.pack(_MAGIC, key, width, height, *resized.native)
        header += _CHECKSUM.pack(zlib.crc32(pixels, zlib.crc32(header)))
        with self._failing_clearly():
            try:
                with open(temporary, "wb") as file:
                    file.write(header)
                    file.write(pixels)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            self._unchecked += len(header) + pixels.nbytes
            if self._unchecked >= self.limit / 100:
                self._evict()
                self._unchecked = 0

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}{_ENTRY}"

    def _evict(self) -> None:
        """Delete the entries that were not used for longest until the others keep the limit. Nothing else is touched.

        Processes that do this at once choose the same entries: the second finds them gone and counts them as deleted.
        """
        entries, now = [], time.time()
        with os.scandir(self.folder) as found:
            for file in found:
                if not file.name.endswith((_ENTRY, _TEMPORARY)):
                    continue
                with contextlib.suppress(FileNotFoundError):  # evicted, or renamed, since it was listed
                    facts = file.stat()
                    if file.name.endswith(_ENTRY) or facts.st_mtime < now - _ABANDONED_S:
                        entries.append((facts.st_mtime_ns, facts.st_size, file.path))
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess -= size

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: the cache of resized images cannot be used ({error.strerror or error}); name another"
                " folder, or none, as [run] cache"
            ) from None


def _decoded(data: bytes, key: bytes) -> Resized | None:
    """An entry from the bytes of its file; None unless they are whole and were written for this key."""
    start = _HEADER.size + _CHECKSUM.size
    if len(data) < start:
        return None
    magic, written_for, width, height, *native = _HEADER.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    pixels = memoryview(data)[start:]
    expected = (_MAGIC, key, 3 * width * height)
    if (magic, written_for, len(pixels)) != expected or checksum != zlib.crc32(
        pixels, zlib.crc32(data[: _HEADER.size])
    ):
        return None
    return Resized(np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3), (native[0], native[1]))
