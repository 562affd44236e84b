"""Work in other threads, in order and in bounded memory; and the images that are written there.

Threads, since what is worth it here lets go of Python's lock: image codecs, OpenCV, numpy on large arrays, files,
waiting for a GPU.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from utils.files import atomic_write

Item = TypeVar("Item")
Result = TypeVar("Result")

WRITERS = min(4, os.cpu_count() or 1)
"""Threads that write images while the network goes on."""
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
_TIFF = {"format": "TIFF", "compression": "tiff_adobe_deflate"}
ENCODINGS: Mapping[str, Mapping[str, Any]] = {  # how images are written, by suffix
    ".png": {"format": "PNG", "compress_level": 3},  # a fifth larger than by default (6), written three times faster
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}


def in_background(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = WRITERS
) -> Iterator[Result]:
    """`map(function, items)` by so many threads; 0: by none, one after the other.

    Results come in the order of the items, so nothing depends on `workers`. `items` is read in the caller's thread, and
    no more than 2 * workers of them are underway. The first error, in the order of the items, is raised here; what has
    not begun by then, or when the caller stops, is dropped, and what has is waited for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    underway: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="background")
    try:
        for item in items:
            if len(underway) == 2 * workers:
                yield underway.popleft().result()
            underway.append(pool.submit(function, item))
        while underway:
            yield underway.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def write_image(path: Path, image: Image.Image, encodings: Mapping[str, Mapping[str, Any]] = ENCODINGS) -> None:
    """Write an image as its suffix, one of `encodings`, says, whole or not at all. An OSError names the file."""
    buffer = io.BytesIO()  # Pillow's own encoders do not notice that a full disk took a part of what they wrote
    image.save(buffer, **encodings[path.suffix.lower()])
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except OSError as error:
        error.filename = str(path)  # a full disk alone does not say of which file
        raise


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG, as `write_image` does; for what must never be anything else, such as labels."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: not the name of a PNG")
    write_image(path, image)
