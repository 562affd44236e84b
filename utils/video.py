"""Videos, frame by frame."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.files import ROOM, atomic_write, require_room

Frame = npt.NDArray[np.uint8]

FPS = 25.0  # of a video that does not say
# What is wrong with a file is said once, and by us.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a frame that cannot be written is a warning


class VideoError(ValueError):
    """A video that cannot be read or written; the message is one line for the user."""


@dataclass(frozen=True)
class Film:
    """A video that is being read. size: (W, H); count: frames it announces, 0 where it does not; frames: (H, W, 3)
    uint8 RGB, upright."""

    size: tuple[int, int]
    fps: float
    count: int
    frames: Iterator[Frame]


@contextmanager
def opened_film(path: Path) -> Iterator[Film]:
    """A video file. Raises VideoError naming one that cannot be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        found, first = capture.read()
        if not found:
            raise VideoError(f"{path}: not a readable video; convert it to MP4")
        frame = np.asarray(first, dtype=np.uint8)
        fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        usable = math.isfinite(fps) and 0 < fps <= 1000
        height, width = frame.shape[:2]
        yield Film((width, height), fps if usable else FPS, max(0, int(count)), _frames(capture, frame))
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, first: Frame) -> Iterator[Frame]:
    found, frame = True, first
    while found:
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        found, following = capture.read()
        frame = np.asarray(following, dtype=np.uint8) if found else frame


class FilmWriter:
    """An MP4 that is being written (MPEG-4, which any player shows) to an unfinished file, `temporary`, for `path`; an
    odd side loses its last pixel. OpenCV does not tell of a full disk: the file is looked at."""

    def __init__(self, path: Path, temporary: Path, size: tuple[int, int], fps: float) -> None:
        self._path, self._temporary, self._count = path, temporary, 0
        self._even = size[0] // 2 * 2, size[1] // 2 * 2
        if 0 in self._even:
            raise VideoError(f"{path}: a video has sides of two pixels at least, not {size[0]}x{size[1]}")
        self._writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._even)
        if not self._writer.isOpened():
            require_room(temporary)
            raise VideoError(f"{path}: OpenCV cannot write an MP4 here; write frames, --frames --write labels")

    def add(self, frame: Frame) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB. Raises OSError where the disk is full."""
        if shutil.disk_usage(self._temporary.parent).free < ROOM:
            require_room(self._temporary)  # here, and not after hours of prediction
        width, height = self._even
        self._writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()

    def require_whole(self) -> None:
        """Raise OSError for a finished file that lacks frames because the disk is full, VideoError for any other."""
        capture = cv2.VideoCapture(str(self._temporary))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found < self._count:
            require_room(self._temporary)
            raise VideoError(f"{self._path}: OpenCV wrote {found} of {self._count} frames; write frames, --frames")


@contextmanager
def written_film(path: Path, size: tuple[int, int], fps: float) -> Iterator[FilmWriter]:
    """An MP4 at `path`, (W, H), which is there, whole, once the block has ended without an error. Raises OSError naming
    it where the disk is full."""
    with atomic_write(path) as temporary:
        writer = FilmWriter(path, temporary, size, fps)
        try:
            yield writer
        finally:
            writer.close()
        writer.require_whole()
