"""Videos, frame by frame."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.files import atomic_write

Frame = npt.NDArray[np.uint8]

FPS = 25.0  # of a video that does not say
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong with a file is said once, and by us


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
    """An MP4 that is being written (MPEG-4, which any player shows); an odd side loses its last pixel."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._even = size[0] // 2 * 2, size[1] // 2 * 2
        if 0 in self._even:
            raise VideoError(f"{path}: a video has sides of two pixels at least, not {size[0]}x{size[1]}")
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._even)
        if not self._writer.isOpened():
            raise VideoError(f"{path}: OpenCV cannot write an MP4 here; write frames, --frames --write labels")

    def add(self, frame: Frame) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        width, height = self._even
        self._writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()


@contextmanager
def written_film(path: Path, size: tuple[int, int], fps: float) -> Iterator[FilmWriter]:
    """An MP4 at `path`, (W, H), which is there once the block has ended without an error."""
    with atomic_write(path) as temporary:
        writer = FilmWriter(temporary, size, fps)
        try:
            yield writer
        finally:
            writer.close()
