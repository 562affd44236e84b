"""What can be wrong with one file of a corpus, found without doing more than is needed.

A PNG image is not inflated: its header and the checksum of every chunk tell whether it is whole. Label files and images
of other kinds are decoded by the same code that reads them in training, whose refusals are final.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dataset.labels import LabelDecoding, open_image, read_bytes
from dataset.toml import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIRST_CHUNK = b"\x00\x00\x00\rIHDR"
COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}
BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
EXACT = 2**24  # up to here a float32, in which OpenCV counts, holds every whole number


class ImageFacts(NamedTuple):
    """size: (W,H). form: pixel format in words, empty for 8-bit RGB. digest: 64 bits, equal for equal files."""

    size: tuple[int, int]
    form: str
    digest: int


class LabelFacts(NamedTuple):
    """size: (W,H). counts: (256,) int64 pixels per raw id. found: all raw ids that occur, ascending."""

    size: tuple[int, int]
    counts: np.ndarray
    found: list[int]


# ---- PNG ----


class _Chunks(NamedTuple):
    """header: the content of IHDR. checksums: those of all chunks. flaw: what is wrong, or None."""

    header: bytes
    checksums: bytes
    flaw: str | None


def png_flaw(data: bytes) -> str | None:
    """What is wrong with the chunks of a PNG file, or None: every length and checksum is looked at, no pixel."""
    return _png_chunks(data).flaw


def _png_chunks(data: bytes) -> _Chunks:
    """Walk the chunks of a PNG file up to its end or its first flaw."""
    view, position, checksums, kinds = memoryview(data), len(SIGNATURE), bytearray(), set()
    header = bytes(view[16:29])
    while b"IEND" not in kinds:
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if position + 12 > len(data) or end > len(data):
            return _Chunks(header, bytes(checksums), f"the file is cut short after {len(data)} bytes")
        kind, checksum = bytes(view[position + 4 : position + 8]), view[end - 4 : end]
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(checksum, "big"):
            return _Chunks(header, bytes(checksums), f"wrong checksum at byte {position}, in chunk {kind!r}")
        kinds.add(kind)
        checksums += checksum
        position = end
    missing = sorted({b"IHDR", b"IDAT"} - kinds)
    return _Chunks(header, bytes(checksums), f"it has no chunk {missing[0]!r}" if missing else None)


def _is_png(data: bytes) -> bool:
    return data[: len(SIGNATURE)] == SIGNATURE


# ---- images ----


def image_facts(path: Path, *, decode: bool = False) -> tuple[ImageFacts, int]:
    """What an image file holds, and its number of bytes. Raises DataError naming a file that cannot be trained on.

    decode: inflate a PNG, too. That finds pixels that are wrong under right checksums, at several times the cost.
    """
    data = read_bytes(path)
    facts = _png_facts(path, data) if _is_png(data) else None
    if facts is None or decode:
        facts = _decoded_facts(path, data)
    return facts, len(data)


def _png_facts(path: Path, data: bytes) -> ImageFacts | None:
    """Facts from the header of a PNG whose chunks are whole; None where only decoding can tell."""
    chunks = _png_chunks(data)
    if chunks.flaw:
        raise DataError(f"{path}: damaged PNG, {chunks.flaw}")
    width, height = (int.from_bytes(chunks.header[start : start + 4], "big") for start in (0, 4))
    depth, colour = chunks.header[8], chunks.header[9]
    limit = Image.MAX_IMAGE_PIXELS
    usual = data[8:16] == FIRST_CHUNK and depth in BIT_DEPTHS.get(colour, ()) and width * height > 0
    if not usual or (limit and width * height > limit):
        return None
    # The checksums, just verified, stand for the bytes.
    digest = _digest(len(data).to_bytes(8, "big") + chunks.header + chunks.checksums)
    form = "" if (depth, colour) == (8, 2) else f"PNG {depth}-bit {COLOUR_TYPES[colour]}"
    return ImageFacts((width, height), form, digest)


def _decoded_facts(path: Path, data: bytes) -> ImageFacts:
    image = open_image(path, data)
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise DataError(f"{path}: 32-bit pixels (mode {image.mode}) have no known range; convert the file to 8 bits")
    form = "" if image.mode == "RGB" else f"{image.format} {image.mode}"
    return ImageFacts(image.size, form, _digest(data))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


# ---- labels ----


def label_facts(path: Path, decoding: LabelDecoding) -> tuple[LabelFacts, int]:
    """What a label file holds, and its number of bytes; its ids are not yet compared with the table.

    Raises DataError for a file that is damaged or of another pixel format than `decoding` reads.
    """
    data = read_bytes(path)
    flaw = png_flaw(data) if _is_png(data) else None
    if flaw:
        raise DataError(f"{path}: damaged PNG, {flaw}")
    raw = np.ascontiguousarray(decoding.read(path))
    counts = _counts(raw)
    found = np.flatnonzero(counts).tolist()
    if counts.sum() < raw.size:  # ids above 255, of 16-bit files
        found = np.unique(raw).tolist()
    return LabelFacts((raw.shape[1], raw.shape[0]), counts, found), len(data)


def _counts(raw: np.ndarray) -> np.ndarray:
    """(256,) int64: how often each value 0..255 occurs in an array of unsigned integers."""
    if raw.size > EXACT:
        return np.bincount(raw[raw < 256], minlength=256)
    return cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel().astype(np.int64)
