"""Class tables (names, palette, stuff and things) and the decoding of label files to train ids."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dataset.png import is_png, lacks_pixels, plain_png, png_chunks
from dataset.toml import DataError, Table, is_integers, shipped_table

IGNORE = 255
UNLABELLED = 0  # the official id of a pixel without an answer
MAX_CLASSES = 254  # 255 is the ignore label, 254 marks a raw id that no table mentions
_UNKNOWN = 254
MAKE_IDS = "make ids of it as docs/configuration.md shows (Labels as colours, or of 16 bits)"


# ---- class tables ----


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of an experiment, indexed by train id 0..C-1.

    names: C names. palette: C (R, G, B) triples, 0..255. stuff, things: disjoint train ids that cover all
    classes. subsets: protocol name -> the train ids that enter its mean. label_ids: the C official ids of the
    benchmark's server, or None where there are none.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    stuff: tuple[int, ...]
    things: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]]
    label_ids: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @classmethod
    def from_mapping(cls, entries: Mapping[str, Any], where: str = "[classes]") -> ClassTable:
        """Read a `[classes]` table: names, stuff, things, and optionally palette, subsets, label_ids.

        Raises DataError for an unknown key, a wrong type, or ids that do not fit the names.
        """
        table = Table(entries, ("names", "palette", "stuff", "things", "subsets", "label_ids"), where)
        table.required("names", "stuff", "things")
        names = _class_names(table)
        last = len(names) - 1
        stuff = table.integers("stuff", (), 0, last)
        things = table.integers("things", (), 0, last)
        if sorted(stuff + things) != list(range(len(names))):
            raise DataError(
                f"{where}: stuff {list(stuff)} and things {list(things)} must hold each class 0..{last} once"
            )
        return cls(
            names=names,
            palette=_palette(table, len(names)),
            stuff=stuff,
            things=things,
            subsets=_subsets(table, len(names)),
            label_ids=_label_ids(table, len(names)),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The table as `from_mapping` reads it, in plain lists."""
        table: dict[str, Any] = {
            "names": list(self.names),
            "palette": [list(colour) for colour in self.palette],
            "stuff": list(self.stuff),
            "things": list(self.things),
            "subsets": {name: list(ids) for name, ids in self.subsets.items()},
        }
        return table if self.label_ids is None else table | {"label_ids": list(self.label_ids)}

    @property
    def colours(self) -> np.ndarray:
        """(256, 3) uint8: a colour for every value of a label map, black for 255 and ids without a class."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: self.num_classes] = self.palette
        return colours

    def colorize(self, labels: np.ndarray) -> Image.Image:
        """A palette image ("P") of a train-id map (H,W); ignored pixels and ids without a class are black."""
        image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        image.putpalette(self.colours.tobytes())
        return image


def to_label_ids(labels: np.ndarray, label_ids: Sequence[int]) -> np.ndarray:
    """Train ids (H, W) as official label ids, uint8; 255 becomes 0, unlabelled."""
    lookup = np.full(256, UNLABELLED, dtype=np.uint8)
    lookup[: len(label_ids)] = label_ids
    return lookup[labels]


def load_class_table(name_or_mapping: str | Mapping[str, Any], where: str = "[classes]") -> ClassTable:
    """The class table of a shipped name ("cityscapes") or of a mapping read from TOML."""
    if isinstance(name_or_mapping, str):
        return ClassTable.from_mapping(shipped_table("classes", name_or_mapping, where), where)
    return ClassTable.from_mapping(name_or_mapping, where)


def _class_names(table: Table) -> tuple[str, ...]:
    names = table.texts("names")
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        raise DataError(f"{table.where}: names must hold 1 to {MAX_CLASSES} different names, found {list(names)}")
    return names


def _palette(table: Table, num_classes: int) -> tuple[tuple[int, int, int], ...]:
    if "palette" not in table:
        # Entry 0 of the generated colours is black, which stands for ignored pixels.
        return tuple(_generated_colour(index + 1) for index in range(num_classes))
    rows = table.entries["palette"]
    if not isinstance(rows, (list, tuple)) or not all(is_integers(row, 0, 255) and len(row) == 3 for row in rows):
        raise table.wrong("palette", "a list of [red, green, blue] within 0..255")
    if len(rows) != num_classes:
        raise DataError(f"{table.where}: palette has {len(rows)} colours for {num_classes} classes")
    return tuple((red, green, blue) for red, green, blue in rows)


def _generated_colour(index: int) -> tuple[int, int, int]:
    """Colour `index` of the Pascal VOC colour map: the bits of the index spread over the three channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> channel) & 1) << (7 - bit)
        index >>= 3
    return channels[0], channels[1], channels[2]


def _subsets(table: Table, num_classes: int) -> dict[str, tuple[int, ...]]:
    if "subsets" not in table:
        return {str(num_classes): tuple(range(num_classes))}
    subsets: dict[str, tuple[int, ...]] = {}
    for name, ids in table.mapping("subsets").items():
        if not ids or not is_integers(ids, 0, num_classes - 1) or len(set(ids)) != len(ids):
            raise DataError(
                f"{table.where}: subsets.{name} must list different classes within 0..{num_classes - 1}, found {ids!r}"
            )
        subsets[name] = tuple(ids)
    return subsets


def _label_ids(table: Table, num_classes: int) -> tuple[int, ...] | None:
    if "label_ids" not in table:
        return None
    ids = table.integers("label_ids", (), 0, 255)
    if len(ids) != num_classes or len(set(ids)) != len(ids):
        raise DataError(f"{table.where}: label_ids must hold {num_classes} different ids, found {list(ids)}")
    return ids


# ---- label decoding ----


class UnknownIdsError(DataError):
    """A label file holds ids that no class has. found: what it holds; the remedy follows in the message."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found, remedy)  # both, for what goes from process to process
        self.found, self.remedy = found, remedy

    def __str__(self) -> str:
        return f"{self.found}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class LabelDecoding:
    """How one corpus' label files become train ids.

    kind "index": 8-bit grey or palette image, the stored value is the raw id.
    kind "channel": 16-bit RGB PNG, the first (red) channel is the raw id.
    kind "threshold": grey mask, a value above `threshold` is class 1, the rest class 0.
    kind "mask": a mask of two values. Grey: 0 is class 0, and either 1 or 255 is class 1. Palette: train ids.

    ids: raw id -> train id; empty means that the raw id is the train id. ignore: raw ids that become 255. A
    file with any other raw id is refused: ids are mapped by this table and never guessed. Both are idle in
    masks, as is `threshold` in the other kinds.
    """

    kind: str
    num_classes: int
    ids: Mapping[int, int] = field(default_factory=dict)
    ignore: tuple[int, ...] = (IGNORE,)
    threshold: int = 127

    KEYS = ("decode", "ids", "ignore", "threshold")
    KINDS = ("index", "channel", "threshold", "mask")
    BINARY = ("threshold", "mask")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise DataError(f"decode must be one of {', '.join(self.KINDS)}, found {self.kind!r}")
        least = 2 if self.kind in self.BINARY else 1
        if not least <= self.num_classes <= MAX_CLASSES:
            raise DataError(f"decode = {self.kind!r} gives {least} to {MAX_CLASSES} classes, not {self.num_classes}")
        if self.kind not in self.BINARY:
            self._check_table()

    def _check_table(self) -> None:
        wrong = sorted(v for v in set(self.ids.values()) if not 0 <= v < self.num_classes and v != IGNORE)
        if wrong:
            raise DataError(f"ids maps to {_few(wrong)}, the classes are 0..{self.num_classes - 1}")
        both = sorted(set(self.ignore) & set(self.mapping))
        if both:
            raise DataError(f"raw ids {_few(both)} are classes and listed in ignore; keep one of the two")

    @classmethod
    def from_table(cls, table: Table, num_classes: int) -> LabelDecoding:
        """Read the keys `decode`, `ids`, `ignore`, `threshold` of a corpus table."""
        kind = table.text("decode", "index")
        ids = _id_map(table)
        ignore = table.integers("ignore", (IGNORE,), 0, 255)
        threshold = table.integer("threshold", 127, 0, 254)
        try:
            return cls(kind=kind, num_classes=num_classes, ids=ids, ignore=ignore, threshold=threshold)
        except DataError as error:
            raise DataError(f"{table.where}: {error}") from None

    @property
    def mapping(self) -> Mapping[int, int]:
        """raw id -> train id, written out. In a mask the raw ids are train ids, whatever `ids` says."""
        if self.kind == "mask":
            return {0: 0, 1: 1}
        if self.kind == "threshold":
            return {value: int(value > self.threshold) for value in range(256)}
        return self.ids or {index: index for index in range(self.num_classes)}

    @cached_property
    def lookup(self) -> np.ndarray:
        """(256,) uint8: raw id -> train id, 255 for ignored ids, 254 for ids that no entry mentions."""
        table = np.full(256, _UNKNOWN, dtype=np.uint8)
        table[[IGNORE] if self.kind == "mask" else list(self.ignore)] = IGNORE
        for raw, train in self.mapping.items():
            table[raw] = train
        return table

    @cached_property
    def _unchanged(self) -> int:
        """How many of the raw ids from 0 on are their own train ids."""
        changed = np.flatnonzero(self.lookup != np.arange(256))
        return int(changed[0]) if changed.size else 256

    def read(self, path: Path | str) -> np.ndarray:
        """The raw ids (H,W) of a label file, uint8, or uint16 from a 16-bit one; not yet checked against the table.

        Raises DataError for a missing or damaged file or an unexpected pixel format.
        """
        path = Path(path)
        data = read_bytes(path)
        if self.kind == "threshold":
            return _read_grey(path, data, self.threshold)
        reader = {"index": _read_index, "channel": _read_channel, "mask": _read_mask}[self.kind]
        return reader(path, data)

    def decode(self, path: Path | str) -> np.ndarray:
        """The train ids (H,W) uint8 of a label file, 255 where ignored.

        Raises DataError for a missing or damaged file, an unexpected pixel format, or unknown raw ids.
        """
        raw = self.read(path)
        if raw.dtype != np.uint8:
            if raw.max(initial=0) > 255:
                self.check_ids(path, np.unique(raw).tolist())
            raw = raw.astype(np.uint8)
        if raw.max(initial=0) < self._unchanged:
            return raw
        labels = cv2.LUT(raw, self.lookup)  # seven times faster than numpy's indexing
        if (labels == _UNKNOWN).any():
            self.check_ids(path, np.unique(raw).tolist())
        return labels

    def knows(self, counts: np.ndarray) -> bool:
        """Whether pixels (256,) per raw id are of any class at all."""
        return bool(counts[self.lookup < self.num_classes].any())

    def check_ids(self, path: Path | str, found: Sequence[int]) -> None:
        """Raise UnknownIdsError with a remedy when a file's raw ids, in ascending order, are not all in the table."""
        unknown = [value for value in found if value > 255 or self.lookup[value] == _UNKNOWN]
        if not unknown:
            return
        if self.ids and all(value < self.num_classes or value == IGNORE for value in found):
            remedy = "these look like train ids: use the raw labels, or set ids = {} and ignore = [255]"
        elif self.ids:
            remedy = "is this another corpus' label file? Map such ids in ids or list them in ignore"
        else:
            remedy = f"the classes are 0..{self.num_classes - 1}; map raw ids in ids or list them in ignore"
        raise UnknownIdsError(f"{path}: unknown label ids {_few(unknown)} (found {_few(found)})", remedy)


def train_id_decoding(num_classes: int) -> LabelDecoding:
    """The decoding of files that hold train ids, such as pseudo labels: identity, 255 ignored."""
    return LabelDecoding(kind="index", num_classes=num_classes)


def _id_map(table: Table) -> dict[int, int]:
    ids: dict[int, int] = {}
    for raw, train in table.mapping("ids").items():
        if not str(raw).isdecimal() or not is_integers([int(raw), train], 0, 255):
            raise DataError(
                f"{table.where}: ids must map raw ids to train ids within 0..255, found {raw!r} = {train!r}"
            )
        ids[int(raw)] = train
    return ids


def _few(values: Iterable[int], limit: int = 12) -> str:
    listed = list(values)
    rest = f", ... ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(map(str, listed[:limit])) + rest


# ---- label readers ----


def same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether either (W,H) can be the other one resized, with its sides rounded to whole pixels: a label of its image's
    shape can stand for it at any size."""
    (width, height), (small_width, small_height) = sorted((first, second), reverse=True)
    # Rounding moves a small side by half a pixel at most; the products move with the sides of the large one.
    return abs(width * small_height - height * small_width) <= (width + height) / 2


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises DataError naming it when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def _png_header(data: bytes) -> tuple[int, int] | None:
    """(bit depth, colour type) of a PNG, None for any other file."""
    if len(data) < 26 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        return None
    return data[24], data[25]


def _refuse_damaged_png(path: Path, data: bytes) -> None:
    """Raise DataError for a PNG that is cut short, or changed: decoders give its pixels all the same, some wrong."""
    flaw = png_chunks(data).flaw if is_png(data) else None
    if flaw:
        raise DataError(f"{path}: not a readable image (damaged PNG, {flaw}); copy or download it again")


def _refuse_short_png(path: Path, data: bytes, image: Image.Image) -> None:
    """Raise DataError for a PNG, decoded and whole by its checksums, that was written without its last rows.

    Pillow makes them 0 and says nothing. Inflating every file a second time would take long: only one whose last row is
    0, or that is interlaced, can lack anything.
    """
    if _png_header(data) is None:
        return
    width, height = image.size
    last = np.asarray(image.crop((0, height - 1, width, height)))
    if (data[28] or not last.any()) and lacks_pixels(data):
        raise DataError(
            f"{path}: not a readable image (damaged PNG, it holds fewer pixels than it announces); copy or download it"
            " again, or write it anew"
        )


def open_image(path: Path, data: bytes, *, as_stored: bool = True) -> Image.Image:
    """The decoded image of a file's bytes, in the mode it is stored in; the first one of several.

    as_stored: its pixels are where they are stored, whatever its orientation says; else a TIFF comes turned by it, as
    Pillow alone of all formats loads one.

    Raises DataError naming the file when it is damaged, of an unknown kind, or above Pillow's size limit.
    """
    if not data:
        raise DataError(f"{path}: not an image file, it is empty")
    try:
        image = Image.open(io.BytesIO(data))
        _refuse_damaged_png(path, data)
        orientation = image.getexif().get(ExifTags.Base.Orientation) if image.format == "TIFF" else None
        image.load()
        _refuse_short_png(path, data, image)
    except DataError:  # a ValueError, too, but it names the file already
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image file of a known kind") from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: not a readable image ({error}); save it smaller, in parts, or as a TIFF, which dataset.tile and"
            " predict.py read by windows"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None
    if as_stored and orientation in _TURNED_BACK:
        stored = image.transpose(_TURNED_BACK[orientation])
        stored.format = image.format
        return stored
    return image


_TURNED_BACK = {  # orientation of a TIFF -> what undoes the turning
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def refuse_unknown_range(path: Path, image: Image.Image) -> None:
    """Raise DataError for 32-bit pixels, of which nobody knows what is black and white; "I" of a PNG or a PGM is
    16-bit grey."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise DataError(f"{path}: 32-bit pixels (mode {image.mode}) have no known range; convert the file to 8 bits")


def _read_index(path: Path, data: bytes) -> np.ndarray:
    """(H,W) uint8 stored values of an 8-bit (or narrower) grey or palette image."""
    plain = plain_png(data, "mono")
    if plain is not None:
        return plain[:, :, 0]
    image = open_image(path, data)
    if image.mode not in ("L", "P", "1") or image.format == "JPEG":
        raise DataError(
            f"{path}: a label must be a lossless 8-bit grey or palette image of ids, this is {image.format}"
            f" {image.mode} (a colour or instance file?); check label_suffix and decode, or {MAKE_IDS}"
        )
    raw = np.asarray(image).astype(np.uint8)
    # Pillow stretches 2- and 4-bit grey to 0..255, but the id is the stored value.
    return raw // {(2, 0): 85, (4, 0): 17}.get(_png_header(data) or (8, 0), 1)


def _read_channel(path: Path, data: bytes) -> np.ndarray:
    """(H,W) uint16 first channel of a 16-bit RGB PNG.

    Pillow cuts such files to their high bytes, which makes every id 0, so OpenCV reads them: it keeps all 16
    bits, decodes in C and has wheels for every supported Python. Its channel order is BGR.
    """
    header = _png_header(data)
    if header != (16, 2):
        found = "not a PNG" if header is None else f"bit depth {header[0]}, colour type {header[1]}"
        raise DataError(
            f"{path}: expected a 16-bit RGB PNG (bit depth 16, colour type 2) with the class in the first"
            f' channel, found {found}; use the original file, or decode = "index" for a converted one'
        )
    _refuse_damaged_png(path, data)
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3:
        raise DataError(f"{path}: not a readable label image (damaged PNG)")
    return image[:, :, 2]


def _read_grey(path: Path, data: bytes, threshold: int) -> np.ndarray:
    """(H,W) uint8 grey values of a mask that will be cut at the threshold."""
    image, grey = _grey_values(path, data)
    if threshold > 0 and image.format != "JPEG" and grey.max(initial=0) == 1:
        raise DataError(
            f'{path}: a mask of 0 and 1 has nothing above {threshold}; set threshold = 0 or decode = "mask"'
        )
    return grey


def _read_mask(path: Path, data: bytes) -> np.ndarray:
    """(H,W) uint8 train ids: those of a palette image, or 0 and 1 of a grey one whose values are 0/1 or 0/255."""
    header = _png_header(data)
    if header is not None and header[1] == 3:
        ids = _read_index(path, data)
        _refuse_black_and_white(path, data, ids)
        return ids
    image, grey = _grey_values(path, data)
    if image.format == "JPEG":
        raise DataError(f'{path}: JPEG blurs the edges of a mask; use the original, or decode = "threshold"')
    found = set(np.unique(grey).tolist())
    if not (found <= {0, 1} or found <= {0, IGNORE}):
        raise DataError(
            f'{path}: a mask holds 0 and 1 or 0 and 255, this one {_few(sorted(found))}; decode = "index" with ids'
            ' and ignore maps other values, decode = "threshold" cuts grey ones'
        )
    return (grey > 0).astype(np.uint8)


def _refuse_black_and_white(path: Path, data: bytes, ids: np.ndarray) -> None:
    """Raise DataError for a palette mask of 0 and 255 that is shown black and white, as converted grey ones are: by the
    rule for palettes its 255, likely the foreground, would be ignored."""
    if set(np.unique(ids).tolist()) == {0, IGNORE}:
        palette = open_image(path, data).getpalette() or []
        if palette[3 * IGNORE :] == [255, 255, 255]:
            raise DataError(
                f"{path}: a palette mask of 0 and 255, black and white: 255 is the ignored id there, not class 1; say "
                'which with decode = "index" and ids = { "0" = 0, "255" = 1 }, ignore = [], or ignore = [255] alone'
            )


def _grey_values(path: Path, data: bytes) -> tuple[Image.Image, np.ndarray]:
    """The image, and its values (H,W) uint8; 1-bit files have 0 and 255. A colour file must be grey throughout."""
    image = open_image(path, data)
    if image.mode not in ("1", "L", "RGB"):
        raise DataError(f"{path}: a mask must be an 8-bit grey image, this is {image.format} {image.mode}")
    if image.mode == "RGB" and (np.ptp(np.asarray(image), axis=2) > 0).any():
        raise DataError(f"{path}: a mask must be grey, this one has colours; check labels and decode, or {MAKE_IDS}")
    return image, np.asarray(image.getchannel("R") if image.mode == "RGB" else image.convert("L"))
