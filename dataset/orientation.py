"""The EXIF orientation of images: how their pixels are to be turned before they are looked at.

Training and evaluation read pixels as they are stored, since labels lie on those; predict.py turns pictures upright.
"""

from __future__ import annotations

import io
import struct
import warnings

from PIL import ExifTags, Image

PNG_CHUNKS = frozenset((b"eXIf", b"iTXt", b"zTXt"))
"""Where a PNG may hold its orientation: EXIF, XMP, and EXIF as text."""

TURN_FILES = "turn the image files (docs/doctor.md)"  # what to do about labels on turned pixels


def orientation(image: Image.Image) -> int:
    """1, as stored, or 2..8, as EXIF numbers the turns and mirrors."""
    value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


def orientation_of(data: bytes) -> int:
    """The `orientation` of an image file's bytes; 1 where they cannot be decoded, which is for others to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flaws in EXIF
        try:
            return orientation(Image.open(io.BytesIO(data)))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
            return 1


def seen_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(W,H) of an image of stored `size` once it is turned."""
    return size[::-1] if orientation >= 5 else size
