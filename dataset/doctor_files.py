"""What can be wrong with one file of a corpus, found without doing more than is needed.

A PNG image is not inflated: its header and the checksum of every chunk tell whether it is whole. Label files and images
of other kinds are decoded by the same code that reads them in training, whose refusals are final.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from dataset.labels import IGNORE, MAKE_IDS, LabelDecoding, open_image, read_bytes, refuse_unknown_range
from dataset.orientation import PNG_CHUNKS, orientation_of
from dataset.png import is_png, png_chunks
from dataset.toml import DataError

FIRST_CHUNK = b"\x00\x00\x00\rIHDR"
COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}
BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PALETTE = 3  # the colour type
EIGHT_BIT = ("JPEG", "BMP", "GIF", "WEBP")  # formats without deeper pixels
BITS_PER_SAMPLE = 258  # a tag of TIFF, with an entry per band
REFETCH = "fetch the file again"
EXACT = 2**24  # up to here a float32, in which OpenCV counts, holds every whole number


class ImageFacts(NamedTuple):
    """size: (W,H), as stored. form: pixel format in words, empty where 8-bit RGB holds all of it. digest: 64 bits,
    equal for equal files. orientation: of EXIF, 1..8."""

    size: tuple[int, int]
    form: str
    digest: int
    orientation: int


class LabelFacts(NamedTuple):
    """size: (W,H). counts: (256,) int64 pixels per raw id. found: all raw ids that occur, ascending. palette: whether
    it is a palette image."""

    size: tuple[int, int]
    counts: np.ndarray
    found: list[int]
    palette: bool


# ---- images ----


def image_facts(path: Path, *, decode: bool = False) -> tuple[ImageFacts, int]:
    """What an image file holds, and its number of bytes. Raises DataError naming a file that cannot be trained on.

    decode: inflate a PNG, too. That finds pixels that are wrong under right checksums, at several times the cost.
    """
    data = read_bytes(path)
    facts = _png_facts(path, data) if is_png(data) else None
    if facts is None:
        facts = _decoded_facts(path, data)
    elif decode:
        open_image(path, data)
    return facts, len(data)


def _png_facts(path: Path, data: bytes) -> ImageFacts | None:
    """Facts from the header of a PNG whose chunks are whole; None where only decoding can tell."""
    chunks = png_chunks(data)
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
    return ImageFacts((width, height), form, digest, orientation_of(data) if chunks.kinds & PNG_CHUNKS else 1)


def _decoded_facts(path: Path, data: bytes) -> ImageFacts:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow announces damage that it then refuses, or can do without
        image = open_image(path, data)
    refuse_unknown_range(path, image)
    return ImageFacts(image.size, _form(image, data), _digest(data), orientation_of(data))


def _form(image: Image.Image, data: bytes) -> str:
    """In words what 8-bit RGB does not hold of a decoded image; Pillow drops low bytes and further bands silently."""
    if image.mode != "RGB":
        return f"{image.format} {image.mode}"
    if image.format in EIGHT_BIT:
        return ""
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (8, 8, 8))
        return "" if tuple(bits) == (8, 8, 8) else f"TIFF of {len(bits)} bands, {max(bits)}-bit"
    stored = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    return "" if stored is None or stored.dtype == np.uint8 else f"{image.format} 16-bit RGB"


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


# ---- labels ----


def label_facts(path: Path, decoding: LabelDecoding) -> tuple[LabelFacts, int]:
    """What a label file holds, and its number of bytes; its ids are not yet compared with the table.

    Raises DataError for a file that is damaged or of another pixel format than `decoding` reads.
    """
    data = read_bytes(path)
    chunks = png_chunks(data) if is_png(data) else None
    if chunks and chunks.flaw:
        raise DataError(f"{path}: damaged PNG, {chunks.flaw}")
    raw = np.ascontiguousarray(decoding.read(path))
    counts = _counts(raw)
    found = np.flatnonzero(counts).tolist()
    if counts.sum() < raw.size:  # ids above 255, of 16-bit files
        found = np.unique(raw).tolist()
    palette = chunks is not None and chunks.header[9] == PALETTE
    return LabelFacts((raw.shape[1], raw.shape[0]), counts, found, palette), len(data)


def looks_like_train_ids(decoding: LabelDecoding, counts: np.ndarray) -> bool:
    """Whether a label file, all of whose ids the table knows, seems to hold train ids all the same.

    The official ids of Cityscapes include 0..18, so that files of train ids are read without complaint and mostly
    ignored. counts: (256,) pixels per raw id of one file. True where classes have raw ids beyond the train ids, none of
    these occurs among the three or more ids of the file (255 apart), and the table leaves out more than half of its
    pixels or of its ids. One or two ids tell nothing: a wall and a road sign may fill an image.
    """
    number = decoding.num_classes
    beyond = any(raw >= number and train != IGNORE for raw, train in decoding.ids.items())
    found = np.flatnonzero(counts[:IGNORE])
    if decoding.kind in decoding.BINARY or not beyond or len(found) < 3 or found[-1] >= number:
        return False
    left_out = decoding.lookup[found] >= number
    return bool(2 * counts[found][left_out].sum() > counts[found].sum() or 2 * left_out.sum() > len(found))


def label_remedy(path: Path, decoding: LabelDecoding) -> str:
    """What to do about a label file that `label_facts` refused, where neither fetching it again nor what the refusal
    says would help; else empty."""
    try:
        mode = open_image(path, read_bytes(path)).mode
    except DataError:
        return ""
    if decoding.kind == "channel" and mode not in ("L", "P", "1"):
        return (
            "fetch the original 16-bit RGB files (SYNTHIA: GT/LABELS), or convert the classes to an 8-bit grey PNG of"
            ' ids and set decode = "index"'
        )
    if decoding.kind in decoding.BINARY and mode not in ("1", "L", "RGB"):
        return f"convert it to an 8-bit grey PNG of 0 and 255, without transparency, or {MAKE_IDS}"
    return ""


def _counts(raw: np.ndarray) -> np.ndarray:
    """(256,) int64: how often each value 0..255 occurs in an array of unsigned integers."""
    if raw.size > EXACT:
        return np.bincount(raw[raw < 256], minlength=256)
    return cv2.calcHist([raw], [0], None, [256], [0, 256]).ravel().astype(np.int64)
