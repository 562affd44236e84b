"""PNGs: whether a file is whole, which no decoder looks at in full; plain ones decoded in Rust at two to three times
Pillow's speed, to the same values."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:  # no wheel for this platform, or an older layout: Pillow then reads everything
    decode_image_png_u8 = None

FAST_PNG = decode_image_png_u8 is not None  # whether it is there

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_FORMS = {  # bit depth, colour type, the one compression, the one filter method, not interlaced
    "mono": bytes((8, 0, 0, 0, 0)),
    "rgb": bytes((8, 2, 0, 0, 0)),
}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = (  # of an interlaced file: its first column and row, and how far the next ones are
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def plain_png(data: bytes, mode: str) -> np.ndarray | None:
    """The values of an 8-bit PNG: mode "mono" gives (H,W,1) uint8 of a grey one, "rgb" (H,W,3) of a colour one.

    None for any other file, and for one with a flaw or above Pillow's size limit, which are Pillow's to judge.
    """
    if decode_image_png_u8 is None or data[:16] != _START or data[24:29] != _FORMS[mode]:
        return None
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        return None
    if png_chunks(data).flaw:
        return None
    try:
        return decode_image_png_u8(data, (height, width), mode)
    except Exception:  # the library raises nothing more precise, whatever it is that is wrong
        return None


class Chunks(NamedTuple):
    """header: the content of IHDR. checksums: those of all chunks. kinds: of the chunks. flaw: what is wrong, or
    None."""

    header: bytes
    checksums: bytes
    kinds: set[bytes]
    flaw: str | None


def png_chunks(data: bytes) -> Chunks:
    """Walk the chunks of a PNG file up to its end or its first flaw; lengths and checksums are looked at, no pixel."""
    view, position, checksums = memoryview(data), len(SIGNATURE), bytearray()
    kinds: set[bytes] = set()
    header = bytes(view[16:29])
    while b"IEND" not in kinds:
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if position + 12 > len(data) or end > len(data):
            return Chunks(header, bytes(checksums), kinds, f"the file is cut short after {len(data)} bytes")
        kind, checksum = bytes(view[position + 4 : position + 8]), view[end - 4 : end]
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(checksum, "big"):
            return Chunks(header, bytes(checksums), kinds, f"wrong checksum at byte {position}, in chunk {kind!r}")
        kinds.add(kind)
        checksums += checksum
        position = end
    missing = sorted({b"IHDR", b"IDAT"} - kinds)
    return Chunks(header, bytes(checksums), kinds, f"it has no chunk {missing[0]!r}" if missing else None)


def lacks_pixels(data: bytes) -> bool:
    """Whether a PNG whose chunks are whole inflates to less than its header announces; Pillow makes the rest 0."""
    expected, found, inflate = 0, 0, zlib.decompressobj()
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    bits = data[24] * _CHANNELS[data[25]]
    for left, top, right, down in _PASSES if data[28] else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        expected += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    try:
        for piece in _idat(data):
            found += len(inflate.decompress(piece, expected - found))
            if found == expected:
                return False
    except zlib.error:  # what there is cannot be inflated, as if it were not there
        pass
    return True


def _idat(data: bytes) -> Iterator[memoryview]:
    """The contents of the chunks that hold the pixels."""
    view, position = memoryview(data), len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        kind = bytes(view[position + 4 : position + 8])
        if kind == b"IDAT":
            yield view[position + 8 : end - 4]
        position = end


def is_png(data: bytes) -> bool:
    """Whether a file's bytes begin as those of a PNG."""
    return data[: len(SIGNATURE)] == SIGNATURE
