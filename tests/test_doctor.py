"""The doctor for data: single files, merged counts, every kind of finding with its remedy, the quick form."""

from __future__ import annotations

import io
import json
import os
import runpy
import shlex
import shutil
import sys
import zlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import check, doctor_files
from dataset.corpora import Corpus, DataError
from dataset.doctor import (
    CHUNK,
    MOST_PLACES,
    NOTE,
    PROBLEM,
    Chart,
    DataSet,
    Finding,
    Findings,
    Method,
    Pair,
    Tally,
    examine,
    listed,
    refused,
    scan,
)
from dataset.doctor_files import image_facts, label_facts, looks_like_train_ids, png_chunks
from dataset.doctor_sets import frequencies, train_id_suspicion
from dataset.images import read_image
from dataset.labels import LabelDecoding
from dataset.pool import AHEAD
from tests.conftest import Script
from tests.worlds import NAMES, own_settings, save_png, write_official, write_own, write_settings
from utils import datasets, quick_check
from utils.config import ConfigError
from utils.flags import TRAINING, parse

ROOT = Path(__file__).resolve().parents[1]
SIZE = (24, 16)


def pixels(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """(H,W) or (H,W,channels) of noise over the whole range of a type."""
    shape = (SIZE[1], SIZE[0]) if channels == 1 else (SIZE[1], SIZE[0], channels)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(pixels(3))
GREY = Image.fromarray(pixels(1))
PNG = encode(RGB)


def four_bands() -> bytes:
    """A TIFF of RGB and a fourth band that is not transparency, such as infrared."""
    with rasterio.MemoryFile() as file:
        shape = {"count": 4, "width": SIZE[0], "height": SIZE[1], "dtype": "uint8"}
        place = rasterio.Affine(1, 0, 10, 0, -1, 10)
        with file.open(driver="GTiff", photometric="RGB", alpha="NO", transform=place, **shape) as dataset:
            dataset.write(np.moveaxis(pixels(4), 2, 0))
        return bytes(file.read())


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its right checksum."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def header(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG's IHDR chunk."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return chunk(b"IHDR", sides + bytes([depth, colour, 0, 0, 0]))


def with_header(ihdr: bytes) -> bytes:
    """The PNG with another header."""
    return PNG[:8] + ihdr + PNG[33:]


# ---- single images ----

WHOLE = ("rgb", "jpeg", "progressive jpeg", "tiff", "ppm", "bmp")  # 8-bit RGB holds all of these
IMAGES = {  # id: the file's bytes
    "rgb": PNG,
    "grey": encode(GREY),
    "16-bit grey": encode(Image.fromarray(pixels(1, np.uint16))),
    "16-bit rgb": cv2.imencode(".png", pixels(3, np.uint16))[1].tobytes(),
    "rgba": encode(Image.fromarray(pixels(4))),
    "grey with alpha": encode(GREY.convert("LA")),
    "palette": encode(RGB.quantize(8)),
    "palette with transparency": encode(RGB.quantize(8), transparency=3),
    "1 bit": encode(GREY.convert("1")),
    "jpeg": encode(RGB, "JPEG"),
    "progressive jpeg": encode(RGB, "JPEG", progressive=True),
    "grey jpeg": encode(GREY, "JPEG"),
    "cmyk jpeg": encode(RGB.convert("CMYK"), "JPEG"),
    "tiff": encode(RGB, "TIFF"),
    "16-bit tiff": encode(Image.fromarray(pixels(1, np.uint16)), "TIFF"),
    "32-bit tiff": encode(Image.fromarray(pixels(1).astype(np.int32)), "TIFF"),
    "float tiff": encode(Image.fromarray(pixels(1).astype(np.float32)), "TIFF"),
    "16-bit rgb tiff": cv2.imencode(".tif", pixels(3, np.uint16))[1].tobytes(),
    "4-band tiff": four_bands(),
    "16-bit ppm": b"P6 24 16 65535\n" + pixels(3, np.uint16).tobytes(),
    "ppm": encode(RGB, "PPM"),
    "bmp": encode(RGB, "BMP"),
    "empty": b"",
    "one byte": b"\x89",
    "text": b"this is no image",
    "signature alone": PNG[:8],
    "cut in the header": PNG[:20],
    "cut in half": PNG[: len(PNG) // 2],
    "jpeg cut in half": encode(RGB, "JPEG")[:300],
    "tiff cut in half": encode(RGB, "TIFF")[:300],
    "no pixels": PNG[:33] + PNG[-12:],
    "no header": PNG[:8] + PNG[33:],
    "bit depth 3": with_header(header(*SIZE, 3, 2)),
    "colour type 5": with_header(header(*SIZE, 8, 5)),
    "no width": with_header(header(0, 16, 8, 2)),
    "more pixels than Pillow takes": with_header(header(2**20, 2**20, 8, 2)),
    "header of another length": PNG[:8] + chunk(b"IHDR", b"\0" * 5) + PNG[33:],
    "zeros": b"\0" * 500,
}


def accepted(read: Callable[[Path], Any], path: Path) -> Any:
    """What a reader gives for a file, None where it refuses it by name."""
    try:
        return read(path)
    except DataError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return None


@pytest.mark.parametrize("name", IMAGES)
def test_a_quick_look_accepts_what_training_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.png"  # whatever it is
    path.write_bytes(IMAGES[name])
    image = accepted(read_image, path)
    for decode in (False, True):
        facts = accepted(partial(image_facts, decode=decode), path)
        assert (facts is None) == (image is None), name
        if image is not None:
            assert facts[0].size == image.size
            assert facts[1] == len(IMAGES[name])
            assert (facts[0].form == "") == (name in WHOLE), facts[0].form


def test_an_orientation_in_the_texts_of_a_png(tmp_path: Path) -> None:
    """XMP counts as EXIF does; a text that Pillow refuses, where training does without Pillow, is passed over."""
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<tiff:Orientation>6</tiff:Orientation>")
    much = chunk(b"zTXt", b"much\0\0" + zlib.compress(bytes(2**21)))
    for texts, orientation in ((xmp, 6), (much, 1)):
        (tmp_path / "x.png").write_bytes(PNG[:33] + texts + PNG[33:])
        assert image_facts(tmp_path / "x.png")[0].orientation == orientation


def test_what_is_no_file_is_refused_by_both(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "vanished.png"):
        assert accepted(image_facts, path) is None
        assert accepted(read_image, path) is None


@given(st.integers(0, len(PNG) - 1))
@settings(max_examples=60, deadline=None)
def test_every_truncation_of_a_png_is_seen(length: int) -> None:
    assert length < 8 or png_chunks(PNG[:length]).flaw


@given(st.integers(8, len(PNG) - 1), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_every_changed_byte_of_a_png_is_seen(position: int, change: int) -> None:
    damaged = bytearray(PNG)
    damaged[position] ^= change
    assert png_chunks(bytes(damaged)).flaw
    assert png_chunks(PNG + b"rubbish after the end").flaw is None


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def written_png(rows: np.ndarray, colour: int, *, interlaced: bool, missing: int) -> bytes:
    """A PNG of 8-bit values (H,W,channels), whole by its checksums, whose last bytes before packing are missing."""
    height, width, _ = rows.shape
    parts = [rows[top::down, left::right] for top, left, down, right in PASSES] if interlaced else [rows]
    lines = b"".join(b"\0" + line.tobytes() for part in parts if part.shape[1] for line in part)
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    packed = zlib.compress(lines[: len(lines) - missing])
    middle = len(packed) // 2
    pieces = [chunk(b"IHDR", sides + bytes([8, colour, 0, 0, interlaced])), chunk(b"PLTE", bytes(768))]
    pieces += [chunk(b"IDAT", packed[:middle]), chunk(b"IDAT", packed[middle:]), chunk(b"IEND", b"")]
    return PNG[:8] + b"".join(piece for piece in pieces if colour == 3 or b"PLTE" not in piece[:8]) + b"more"


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
@pytest.mark.parametrize("size", [(24, 16), (9, 7), (1, 1), (5, 1), (3, 33)])
def test_missing_pixels_under_right_checksums_are_seen_by_decoding(
    tmp_path: Path, size: tuple[int, int], colour: int, channels: int, interlaced: bool
) -> None:
    """Pillow makes them 0 and says nothing. Zeros that are there are no flaw."""
    path = tmp_path / "x.png"
    values = np.random.default_rng(0).integers(1, 256, (size[1], size[0], channels), dtype=np.uint8)
    for rows in (values, np.zeros_like(values)):
        path.write_bytes(written_png(rows, colour, interlaced=interlaced, missing=0))
        assert read_image(path).size == image_facts(path, decode=True)[0].size == size
        for missing in {1, channels * size[0] // 2 + 1, rows.size}:
            path.write_bytes(written_png(rows, colour, interlaced=interlaced, missing=missing))
            assert image_facts(path)[0].size == size
            for read in (read_image, partial(image_facts, decode=True)):
                with pytest.raises(DataError, match=r"x\.png: not a readable image"):
                    read(path)


def test_a_label_without_its_last_rows_is_refused(tmp_path: Path) -> None:
    for colour in (0, 3):
        path = tmp_path / f"{colour}.png"
        path.write_bytes(written_png(np.eye(24, dtype=np.uint8)[:16, :, None], colour, interlaced=False, missing=30))
        with pytest.raises(DataError, match="not a readable image"):
            label_facts(path, LabelDecoding(kind="index", num_classes=2))


@pytest.mark.parametrize("name", ["rgb", "jpeg", "tiff"])
def test_a_digest_tells_files_apart(tmp_path: Path, name: str) -> None:
    kind = {"rgb": "PNG", "jpeg": "JPEG", "tiff": "TIFF"}[name]
    turned = encode(RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT), kind)
    digests = []
    for index, content in enumerate([IMAGES[name], IMAGES[name], turned]):
        (tmp_path / f"{index}.png").write_bytes(content)
        digests.append(image_facts(tmp_path / f"{index}.png")[0].digest)
    assert digests[0] == digests[1] != digests[2]


# ---- single labels ----

INDEX = LabelDecoding(kind="index", num_classes=4)
CHANNEL = LabelDecoding(kind="channel", num_classes=4, ids={3: 0, 7: 1}, ignore=(0,))
LABELS: dict[str, tuple[LabelDecoding, np.ndarray]] = {
    "index": (INDEX, pixels(1) % 4),
    "index with unknown ids": (INDEX, pixels(1)),
    "channel": (CHANNEL, np.stack([pixels(1, np.uint16)] * 2 + [(pixels(1) % 2 * 4 + 3).astype(np.uint16)], axis=2)),
    "channel with large ids": (CHANNEL, pixels(3, np.uint16)),
    "threshold": (LabelDecoding(kind="threshold", num_classes=2), pixels(1)),
    "mask": (LabelDecoding(kind="mask", num_classes=2), pixels(1) % 2 * 255),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_counts_of_a_label_are_those_of_its_raw_ids(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, array = LABELS[name]
    path = tmp_path / "label.png"
    assert cv2.imwrite(str(path), array)
    raw = decoding.read(path)
    expected = [int((raw == value).sum()) for value in range(256)]
    for exact in (doctor_files.EXACT, 1):  # both ways of counting
        monkeypatch.setattr(doctor_files, "EXACT", exact)
        facts, size = label_facts(path, decoding)
        assert facts.counts.tolist() == expected
        assert facts.found == sorted(set(raw.ravel().tolist()))
        assert (facts.size, size) == (SIZE, path.stat().st_size)


def test_a_label_whose_checksum_is_wrong_is_refused_though_it_decodes(tmp_path: Path) -> None:
    content = bytearray(encode(Image.fromarray(pixels(1) % 4)))
    content[-14] ^= 1  # the last byte before IEND is of IDAT's checksum
    (tmp_path / "label.png").write_bytes(content)
    with Image.open(tmp_path / "label.png") as image:
        assert np.asarray(image).shape == pixels(1).shape, "Pillow does not mind"
    assert accepted(INDEX.decode, tmp_path / "label.png") is None
    with pytest.raises(DataError, match=r"damaged PNG, wrong checksum .* b'IDAT'"):
        label_facts(tmp_path / "label.png", INDEX)


# ---- chunks and processes ----


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Own data with a bit of everything that goes wrong."""
    write_own(tmp_path, images=40)
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "s1.png").write_bytes(b"?")
    (images / "s12.png").unlink()
    (labels / "s3.png").unlink()
    save_png(labels / "s14.png", np.full((48, 64), 9, np.uint8))
    save_png(labels / "s15.png", np.full((48, 64), 255, np.uint8))
    save_png(labels / "s16.png", np.zeros((48, 48), np.uint8))
    save_png(labels / "s17.png", np.zeros((24, 32), np.uint8))
    save_png(images / "s38.png", np.zeros((48, 64), np.uint8))
    return tmp_path


def own_set(root: Path, **keys: Any) -> DataSet:
    corpus = Corpus.from_mapping({"root": root, **keys}, len(NAMES))
    method = Method(title="source train", table="[source]", decoding=corpus.decoding)
    return DataSet(method=method, corpus=corpus, split="train", labelled=True)


def flat(tally: Tally) -> dict[str, Any]:
    """A tally in terms that compare."""
    return {
        **{key: value for key, value in vars(tally).items() if key not in ("counts", "findings", "suspects")},
        "counts": tally.counts.tolist(),
        "findings": [vars(finding) for finding in tally.findings],
        "suspects": [vars(finding) for finding in tally.suspects],
    }


@given(st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tallies_add_up_wherever_the_files_are_cut(world: Path, cuts: list[int]) -> None:
    data = own_set(world)
    pairs = [data.pair(f"s{index}.png") for index in range(40)]
    whole, parts, bounds = examine(data.method, pairs), Tally(), [0, *sorted(cuts), 40]
    for low, high in pairwise(bounds):
        parts.update(examine(data.method, pairs[low:high]))
    assert flat(parts) == flat(whole)


def test_any_number_of_processes_reports_the_same(world: Path) -> None:
    (world / "one.txt").write_text("s2.png\n", encoding="utf-8")

    def examined(workers: int) -> list[Any]:
        charts = [listed(own_set(world)), listed(own_set(world, train_list="one.txt"))]
        files = list(scan(charts, workers=workers))
        assert sum(files) == sum(chart.total for chart in charts)
        return [flat(chart.tally) for chart in charts]

    alone = examined(0)
    assert examined(2) == alone
    kinds = {finding["kind"]: finding["count"] for finding in alone[0]["findings"]}
    assert kinds == {
        "unreadable images": 1,
        "missing labels": 1,
        "labels with unknown ids": 1,
        "labels without a labelled pixel": 1,
        "labels of another shape than their image": 1,
        "labels of another size than their image": 1,
        "images that are not 8-bit RGB": 1,
    }


class Endless(list[str]):
    """Names without an end, which say how many of them were asked for."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, key: Any) -> Any:
        self.asked = key.stop
        return ["s0.png"] * (key.stop - key.start)


def test_no_more_work_is_under_way_than_processes_need(world: Path) -> None:
    """So memory does not depend on the number of files; and a scan may be left in the middle."""
    names = Endless()
    steps = scan([Chart(own_set(world), names=names)], workers=1)
    assert next(steps) == 2 * CHUNK
    assert names.asked <= (AHEAD + 2) * CHUNK
    steps.close()


class Deadly(str):
    """A path that kills the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_process_that_dies_is_a_mistake_with_a_remedy(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataSet, "pair", lambda data, name: Pair(Deadly(name)))
    with pytest.raises(DataError, match="--workers 1"):
        list(scan([Chart(own_set(world), names=["s0.png"])], workers=1))


# ---- the script ----


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `python -m dataset.check own.toml ARGUMENTS`, or a script by its path; returns exit code, output, errors."""

    def go(*argv: str, script: str = "dataset/check.py") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *argv])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return go


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A healthy world to run scripts from, with pseudo labels of all target images."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_own(tmp_path / "world")
    small = {"num_steps": 1, "num_prototype": 1, "save_pred_every": 1}
    write_settings(tmp_path / "own.toml", own_settings(Path("world"), step1=small, step2=small))
    for path in (tmp_path / "world" / "labels").glob("t*.png"):
        save_png(tmp_path / "pseudo" / path.name, np.array(Image.open(path)))
    return tmp_path


PSEUDO = ("--ssl-target-dir", "pseudo")


def test_a_healthy_recipe_has_no_problem(own: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = run("own.toml", *PSEUDO, "--json", "report.json")
    assert code == 0, output
    assert "\nproblem" not in output
    assert "\nnote" not in output
    assert output.splitlines()[-1] == "no problem found"
    assert "source train: 5 images in world/images, 64x48 (5), 5 labels" in output
    assert "target train: 5 images in world/images, 64x48 (5), 5 pseudo labels" in output

    report = json.loads((own / "report.json").read_text(encoding="utf-8"))
    assert (report["problems"], report["findings"], report["files"]) == (0, [], 24)
    used = [*(own / "world" / "images").iterdir(), *(own / "pseudo").iterdir()]
    used += [path for path in (own / "world" / "labels").iterdir() if path.name[0] != "t"]
    assert report["bytes"] == sum(path.stat().st_size for path in used)
    for title, folder, letter in (("source train", "world/labels", "s"), ("target train", "pseudo", "t")):
        labels = np.stack([np.array(Image.open(path)) for path in sorted((own / folder).glob(f"{letter}*.png"))])
        percent = report["sets"][title]["percent"]
        for train_id, name in enumerate(NAMES):
            assert percent[name] == pytest.approx(100 * (labels == train_id).mean())
    assert report["sets"]["target val"]["labels"] == 2


def test_frequencies_count_ignored_and_unknown_apart(world: Path) -> None:
    chart = listed(own_set(world))
    list(scan([chart], workers=0))
    column = frequencies([chart], NAMES)["source train"]
    assert sum(column[name] for name in NAMES) == pytest.approx(100)
    total = int(chart.tally.counts.sum())
    assert column["ignored"] == pytest.approx(100 * 64 * 48 / total)
    assert column["unknown"] == pytest.approx(100 * 64 * 48 / total)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], None]:
    """Removes a file or a folder."""

    def change(root: Path) -> None:
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return change


def paint(name: str, value: int, size: tuple[int, int] = (64, 48)) -> Callable[[Path], None]:
    """Writes a label of one id."""
    return lambda root: save_png(root / name, np.full(size[::-1], value, np.uint8))


def damage(root: Path) -> None:
    """Changes a byte in the middle of an image."""
    path = root / "world/images/t1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def extra_images(root: Path) -> None:
    """An image of another suffix, and one of the suffix that no list names."""
    save_png(root / "world/images/x.png", pixels(3))
    (root / "world/images/y.jpg").write_bytes(encode(RGB, "JPEG"))


def renamed_copy(root: Path) -> None:
    """A validation image under another name in the target's training list."""
    shutil.copy(root / "world/images/v1.png", root / "world/images/t9.png")
    shutil.copy(root / "pseudo/t0.png", root / "pseudo/t9.png")
    write("world/target.txt", "".join(f"t{index}.png\n" for index in (0, 1, 2, 3, 4, 9)))(root)


def turn(name: str, orientation: int) -> Callable[[Path], None]:
    """Writes an orientation into an image file; the pixels stay where they are."""

    def change(root: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(root / name) as image:
            image.save(root / name, exif=exif)

    return change


SOURCE_LIST = "s0.png\ns1.png\ns2.png\ns3.png\ns4.png\n"
MISCHIEF: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    # id: (what goes wrong on disk, severity, what the row and its remedy say)
    "no images": (
        remove("world/images"),
        "problem",
        ("source train", "set that cannot be listed", "set root or images"),
    ),
    "no list": (remove("world/val.txt"), "problem", ("target val", "cannot be listed", "correct val_list")),
    "empty list": (write("world/val.txt", ""), "problem", ("target val", "the list is empty")),
    "dead entry": (
        *(write("world/source.txt", SOURCE_LIST + "s9.png\n"), "problem"),
        ("source train", "list entries without an image", "source.txt, line 6", "correct the list or root"),
    ),
    "entry twice": (
        *(write("world/source.txt", SOURCE_LIST + "s1.png\n"), "problem"),
        ("list entries that occur twice", "s1.png is listed already on line 2", "remove one"),
    ),
    "second column": (
        *(write("world/source.txt", SOURCE_LIST + "s1.png l.png\n"), "problem"),
        ("list entries with a second column", "one image name a line"),
    ),
    "a space": (
        *(write("world/source.txt", SOURCE_LIST + "s9 1.png\n"), "problem"),
        ("list entries without an image", "no image s9 1.png in"),
    ),
    "outside": (
        *(write("world/source.txt", SOURCE_LIST + "../images/s1.png\n"), "problem"),
        ("list entries outside the image folder", "relative to that folder"),
    ),
    "missing label": (
        *(remove("world/labels/s2.png"), "problem"),
        ("source train", "missing labels", "world/labels/s2.png", "labels and label_suffix of [source]"),
    ),
    "missing pseudo label": (
        *(remove("pseudo/t2.png"), "problem"),
        ("target train", "missing pseudo labels", "pseudo/t2.png", "Generate_Pseudo_Label.py"),
    ),
    "damaged image": (damage, "problem", ("target train", "unreadable images", "t1.png", "fetch the file again")),
    "image that is none": (write("world/images/v0.png", "?"), "problem", ("target val", "v0.png", "fetch the file")),
    "colour label": (
        lambda root: save_png(root / "world/labels/s1.png", pixels(3)),
        *(
            "problem",
            ("source train", "cannot be read as decode = 'index'", "PNG RGB", "check label_suffix and decode"),
        ),
    ),
    "unknown id": (
        paint("world/labels/v1.png", 77),
        "problem",
        ("target val", "unknown label ids 77", "map raw ids in ids"),
    ),
    "wrong pseudo id": (
        paint("pseudo/t1.png", 4),
        "problem",
        ("target train", "pseudo labels with unknown ids", "-> make"),
    ),
    "damaged pseudo label": (
        write("pseudo/t1.png", "?"),
        *("problem", ("target train", "pseudo labels that cannot be read", "t1.png", "-> make them anew")),
    ),
    "pseudo label of nothing": (
        paint("pseudo/t1.png", 255),
        *("note", ("pseudo labels without a labelled pixel", "-> none needed", "[pseudo_label] cap")),
    ),
    "label of another shape": (
        *(paint("world/labels/s1.png", 1, (48, 48)), "problem"),
        ("source train", "labels of another shape", "48x48, its image 64x48"),
    ),
    "label of another size": (
        *(paint("world/labels/s1.png", 1, (32, 24)), "note"),
        ("source train", "labels of another size", "32x24, its image 64x48", "resized by nearest"),
    ),
    "pseudo label of another shape": (
        *(paint("pseudo/t1.png", 1, (48, 48)), "problem"),
        ("target train", "pseudo labels of another shape", "make them anew"),
    ),
    "nothing labelled": (
        lambda root: [paint(f"world/labels/v{index}.png", 255)(root) for index in range(2)],
        *("problem", ("target val", "set without a labelled pixel", "ids and ignore of [target]")),
    ),
    "one without labels": (paint("pseudo/t1.png", 255), "note", ("pseudo labels without a labelled pixel", "t1.png")),
    "validation in training": (
        *(write("world/target.txt", "t0.png\nv1.png\n"), "problem"),
        ("target val", "images that are in target train, too", "v1.png", "remove them"),
    ),
    "validation in training by another name": (
        *(renamed_copy, "problem"),
        ("target val", "images that are in target train, too", "v1.png: there it is t9.png"),
    ),
    "strays": (extra_images, "note", ("images that no list names", "x.png", "list them")),
    "other suffix": (extra_images, "note", ("images that do not end in '.png'", "y.jpg", "image_suffix")),
    "stray label": (paint("world/labels/z.png", 1), "note", ("labels without an image", "z.png", "translated")),
    "stray pseudo label": (paint("pseudo/z.png", 1), "note", ("pseudo labels without an image", "z.png")),
    "other sizes": (
        lambda root: save_png(root / "world/images/t1.png", np.zeros((96, 128, 3), np.uint8)),
        *("note", ("target train", "sizes of images", "64x48 (4), 128x96 (1)")),
    ),
    "image turned by EXIF": (
        turn("world/images/t1.png", 3),
        "note",
        ("target train", "images with an EXIF orientation", "t1.png: orientation 3", "predict.py alone turns them"),
    ),
    "label on an image turned by EXIF": (
        lambda root: [
            change(root) for change in (turn("world/images/s1.png", 6), paint("world/labels/s1.png", 1, (48, 64)))
        ],
        "problem",
        ("source train", "labels of another shape", "48x64, its image 64x48", "-> they lie on the images as EXIF"),
    ),
    "grey image": (
        lambda root: save_png(root / "world/images/t1.png", np.zeros((48, 64), np.uint8)),
        *("note", ("images that are not 8-bit RGB", "PNG 8-bit grey")),
    ),
    "absent class": (
        lambda root: [paint(f"world/labels/s{index}.png", index % 2)(root) for index in range(5)],
        *("note", ("source train", "classes that never occur", "car, person")),
    ),
    "one class alone": (
        lambda root: [paint(f"world/labels/s{index}.png", 0)(root) for index in range(5)],
        *("problem", ("source train", "classes that never occur", "sky, car, person")),
    ),
    "many places": (
        lambda root: [write(f"world/images/s{index}.png", "?")(root) for index in range(5)],
        *(
            "problem",
            ("     5  unreadable images: world/images/s0.png: not an image", "; also", "s1.png, world/images/s2.png"),
        ),
    ),
}


@pytest.mark.parametrize("mischief", MISCHIEF)
def test_every_problem_has_its_row_and_its_remedy(
    own: Path, run: Callable[..., tuple[int, str, str]], mischief: str
) -> None:
    change, severity, said = MISCHIEF[mischief]
    change(own)
    code, output, errors = run("--config", "own.toml", *PSEUDO)
    assert code == (2 if severity == "problem" else 0), output + errors
    assert ("error: training would suffer" in errors) == (severity == "problem")
    lines = output.splitlines()
    rows = ["\n".join(pair) for pair in pairwise(lines) if pair[0].startswith(severity)]
    assert any(all(word in row for word in said) for row in rows), output


def test_pseudo_labels_of_the_size_that_is_written_may_have_any_shape(
    own: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Generate_Pseudo_Label.py stretches all of the image to [pseudo_label] size."""
    for index in range(5):
        paint(f"pseudo/t{index}.png", 1, (48, 48))(own)
    assert run("own.toml", *PSEUDO)[0] == 2
    assert run("own.toml", *PSEUDO, "--override", "pseudo_label.size=[48,48]")[0] == 0


def test_a_truth_under_another_table(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """Official ids include 0..18, so that files of train ids pass each for itself; as a set they are found out."""
    write_official(tmp_path / "gta", tmp_path / "cs")
    roots = ("--data-dir", str(tmp_path / "gta"), "--data-dir-target", str(tmp_path / "cs"))
    assert run(*roots)[0] == 0
    official = LabelDecoding(
        kind="index", num_classes=19, ids={7: 0, 11: 2, 23: 10, 24: 11, 26: 13, 33: 18}, ignore=(1,)
    )
    for path in (tmp_path / "gta" / "labels").iterdir():
        save_png(path, official.decode(path))
    code, output, errors = run(*roots)
    assert code == 2
    assert "labels that look like train ids (3): " in errors
    assert "00001.png: only 0, 2, 10, 11, 13, 18 occur" in errors
    assert "use the raw labels, or set ids = {} and ignore = [255] in [source]; trust_ids = true there if" in errors
    assert "the published corpus has 24966" in output
    assert run(*roots, "--override", "source.ids={}", "--override", "source.ignore=[255]")[0] == 0
    assert run(*roots, "--override", "source.trust_ids=true")[0] == 0
    assert run(*roots, "--override", "source.trust_ids=1")[0] == 2


OFFICIAL = LabelDecoding(
    kind="index",
    num_classes=19,
    ids={7: 0, 8: 1, 11: 2, 13: 4, 23: 10, 26: 13, 33: 18},
    ignore=(0, 1, 2, 3, 4, 10, 255),
)


@pytest.mark.parametrize(
    ("counts", "suspected"),
    [
        ({0: 5, 1: 1, 2: 1}, True),
        ({0: 5, 1: 1, 2: 1, 255: 90}, True),
        ({0: 5, 1: 1, 2: 1, 26: 1}, False),  # an id that no train id is
        ({0: 5, 1: 1}, False),  # two ids tell nothing
        ({0: 5, 1: 1, 255: 5}, False),
        ({0: 5, 7: 1, 8: 1}, True),  # most pixels are ignored
        ({0: 1, 1: 1, 2: 1, 7: 90, 8: 90}, True),  # most ids are
        ({0: 1, 2: 1, 7: 90, 8: 90}, False),  # half of them
        ({0: 90, 7: 90, 8: 1}, False),
        ({7: 1, 8: 1, 11: 1}, False),
    ],
)
def test_a_file_that_looks_like_train_ids(counts: dict[int, int], suspected: bool) -> None:
    array = np.zeros(256, np.int64)
    array[list(counts)] = list(counts.values())
    assert looks_like_train_ids(OFFICIAL, array) == suspected
    low = LabelDecoding(
        kind="index", num_classes=19, ids={7: 0}, ignore=OFFICIAL.ignore
    )  # nothing beyond the train ids
    assert not looks_like_train_ids(low, array)
    assert not looks_like_train_ids(LabelDecoding(kind="mask", num_classes=2, ids={33: 1}), array)


@pytest.mark.parametrize(
    ("suspects", "tolerated", "severity"), [(0, 0.1, None), (1, 0.1, NOTE), (2, 0.1, PROBLEM), (2, 0.25, NOTE)]
)
def test_a_tenth_of_suspects_is_a_note(tmp_path: Path, suspects: int, tolerated: float, severity: str | None) -> None:
    """One file by one, whatever the others hold; trusted ids are not suspected."""
    write_own(tmp_path, images=10)
    for index in range(10):
        suspected = index in range(3, 3 + suspects)
        save_png(tmp_path / f"labels/s{index}.png", pixels(1) % 3 if suspected else np.full((16, 24), 26, np.uint8))
    for trusted in (False, True):
        method = Method(title="source train", table="[source]", decoding=OFFICIAL, trust_ids=trusted)
        pairs = [Pair(str(tmp_path / f"images/s{i}.png"), str(tmp_path / f"labels/s{i}.png")) for i in range(10)]
        found = list(train_id_suspicion(examine(method, pairs), tolerated=tolerated))
        assert [finding.severity for finding in found] == ([severity] if severity and not trusted else [])
        if found:
            assert (found[0].count, found[0].detail) == (suspects, "only 0, 1, 2 occur")
            assert found[0].first.endswith("s3.png")
            assert "trust_ids = true" in found[0].remedy


# ---- findings ----


def test_places_are_kept_up_to_a_number_and_counted_beyond() -> None:
    findings = Findings()
    for index in range(MOST_PLACES + 5):
        findings.add(Finding(NOTE, "t", "k", "r", str(index)))
    (finding,) = findings
    assert finding.count == MOST_PLACES + 5
    assert [finding.first, *finding.more] == [str(index) for index in range(MOST_PLACES)]
    findings.add(Finding.of_names(NOTE, "t", "other", "r", [str(index) for index in range(2 * MOST_PLACES)]))
    assert [(found.count, len(found.more)) for found in findings][1] == (2 * MOST_PLACES, MOST_PLACES - 1)


def test_every_bad_entry_of_a_list_has_its_place(own: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    write("world/source.txt", SOURCE_LIST + "s7.png\ns8.png\ns9.png\n")(own)
    code, output, _ = run("own.toml", *PSEUDO, "--json", "report.json")
    assert code == 2
    assert "; also world/source.txt, line 7, world/source.txt, line 8\n" in output.replace(
        "correct the list or root", ";"
    )
    (finding,) = [row for row in json.loads(Path("report.json").read_text())["findings"] if row["count"] == 3]
    assert (finding["first"], finding["detail"]) == ("world/source.txt, line 6", "no image s7.png in world/images")


def test_a_semicolon_in_a_name_is_no_remedy() -> None:
    finding = refused("t", "k", DataError("l.txt, line 1: no image a; b.png in c; d; correct the list"))
    assert (finding.first, finding.detail) == ("", "l.txt, line 1: no image a; b.png in c; d")
    assert finding.remedy == "correct the list"
    finding = refused("t", "k", DataError("a; b.png: cut short"), first="a; b.png")
    assert (finding.detail, finding.remedy) == ("cut short", "fetch the file again")


# ---- the command line ----


def test_flags_reach_both_stages_and_the_configuration_has_two_spellings() -> None:
    def read(*argv: str) -> Any:
        return parse(argv, description="", section=("step1", "step2"), flags=TRAINING, extend=check._flags)

    camvid = str(ROOT / "configs" / "camvid_day_to_dusk.toml")
    for argv in ((camvid, *PSEUDO), ("--cpu", camvid, *PSEUDO), ("--config", camvid, *PSEUDO)):
        config, options = read(*argv)
        assert (config.step1.pseudo_labels, config.step2.pseudo_labels) == ("pseudo", "pseudo")
        assert (options.config_path, options.name) == (camvid, "camvid_day_to_dusk")
    with pytest.raises(ConfigError, match="two configurations"):
        read(camvid, "--config", camvid)
    with pytest.raises(ConfigError, match=r"--workers.*number of processes"):
        read(camvid, "--workers", "-1")
    with pytest.raises(ConfigError, match=r"--data-list-targe\b.*did you mean --data-list-target"):
        read(camvid, "--data-list-targe", "x")


def test_flags_of_training_alone_are_passed_over(own: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """--num-steps 1 of stage 1 would be less than the --num-steps-stop that stage 2 may have."""
    settings = own_settings(Path("world"), step2={"num_steps": 9, "num_steps_stop": 9})
    write_settings(own / "other.toml", settings)
    flags = ("--num-steps", "1", "--no-random-mirror", "--lambda-adv-target=0", "--target", "x")
    code, output, errors = run(*flags, "other.toml", *PSEUDO)
    assert code == 0, errors
    assert "note: --num-steps, --random-mirror, --lambda-adv-target: of training alone" in output
    assert "note: --target is accepted and has no effect" in output
    rest, notes = check.data_flags(["--set", "val", "own.toml", "--data-dir", "x", *PSEUDO, "--cpu"])
    assert (rest, notes) == (["--set", "val", "own.toml", "--data-dir", "x", *PSEUDO, "--cpu"], [])
    with pytest.raises(ConfigError, match="--num-steps"):
        check.data_flags(["--num-steps", "many"])


@pytest.mark.parametrize(("wanted", "images", "expected"), [(None, 3, 0), (3, 3, 3), (0, 10**6, 0)])
def test_a_handful_of_images_needs_no_processes(wanted: int | None, images: int, expected: int) -> None:
    assert check.worker_count(wanted, images) == expected
    assert check.worker_count(None, 10**6) == os.cpu_count()


def test_every_split_that_is_read_is_examined(own: Path) -> None:
    """Also where the stages differ; an evaluation split is held out; validation that is not named is a note."""
    settings = own_settings(Path("world"), step2={"split": "test"}, evaluate={"split": "extra"})
    settings["target"] |= {"test_list": "source.txt", "val_list": ""}
    settings["step2"] |= {"pseudo_labels": "pseudo"}
    settings["source"] |= {"val_list": "val.txt"}
    config, _ = parse(
        ["--config", str(write_settings(own / "more.toml", settings))], description="", section="step1", flags=TRAINING
    )
    sets, notes = check.examined_sets(config, datasets.class_table(config), decode=True)
    described = {data.title: (data.labelled, data.held_out, data.pseudo_labels) for data in sets}
    assert described == {
        "source train": (True, False, None),
        "source val": (True, True, None),
        "target train": (False, False, None),
        "target test": (False, False, Path("pseudo")),
        "target extra": (False, True, None),
    }
    assert all(data.method.decode for data in sets)
    assert [note.kind for note in notes] == ["set that is not named"]


def test_pseudo_labels_that_are_not_made_yet_are_a_note(own: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = run("own.toml")
    assert code == 0
    assert "folder of pseudo labels that is not there yet: runs/own/pseudo_labels" in output


@pytest.mark.parametrize(
    ("decode", "draw", "remedy"),
    [
        ("mask", lambda: palette_of(pixels(1) % 2 * 255), "index 255 of palette images is ignored (5 of 5 are such)"),
        ("index", lambda: Image.fromarray(pixels(1) % 2 * 255), 'set decode = "mask" in [source] if it is class 1'),
        ("mask", lambda: Image.fromarray(pixels(1) * 0), "check ids if they should be there"),
    ],
)
def test_a_binary_set_in_which_one_class_never_occurs(
    own: Path, run: Callable[..., tuple[int, str, str]], decode: str, draw: Callable[[], Image.Image], remedy: str
) -> None:
    settings = own_settings(Path("world"), classes={"names": ["ground", "road"], "stuff": [0], "things": [1]})
    settings["target"]["val_list"] = ""
    settings["source"]["decode"] = decode
    write_settings(own / "two.toml", settings)
    for index in range(5):
        save_png(own / f"pseudo/t{index}.png", pixels(1) % 2)
        save_png(own / f"world/images/s{index}.png", pixels(3))
        draw().save(own / f"world/labels/s{index}.png")
    code, _, errors = run("two.toml")
    assert code == 2
    assert "source train: classes that never occur (1): road; nothing can be learnt of them" in errors
    assert remedy in errors


def palette_of(indices: np.ndarray) -> Image.Image:
    """A palette image."""
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0] * 255 + [255, 0, 0])
    return image


@pytest.mark.parametrize(
    ("decode", "content", "remedy"),
    [
        ("mask", IMAGES["16-bit grey"], "convert it to an 8-bit grey PNG"),
        ("mask", IMAGES["rgba"], "convert it to an 8-bit grey PNG"),
        ("threshold", IMAGES["palette"], "convert it to an 8-bit grey PNG"),
        ("channel", PNG, "SYNTHIA: GT/LABELS"),
        ("channel", encode(GREY), 'decode = "index" for a converted one'),
        ("mask", PNG[:99], "fetch the file again"),
    ],
)
def test_a_label_that_cannot_be_read_has_its_own_remedy(
    tmp_path: Path, decode: str, content: bytes, remedy: str
) -> None:
    for name in ("image", "label"):
        (tmp_path / name).write_bytes(PNG if name == "image" else content)
    method = Method(title="t", table="[source]", decoding=LabelDecoding(kind=decode, num_classes=2))
    (finding,) = examine(method, [Pair(str(tmp_path / "image"), str(tmp_path / "label"))]).findings
    assert remedy in finding.remedy


# ---- the quick form ----


@pytest.fixture
def train(own: Path, run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Runs stage 2 from random weights with the pseudo labels."""

    def go(*argv: str) -> tuple[int, str, str]:
        flags = ("--config", "own.toml", "--restore-from", "random", *PSEUDO, *argv)
        return run(*flags, script="train_step2.py")

    return go


@pytest.mark.parametrize(
    "mischief",
    [
        *("damaged image", "label of another shape", "pseudo label of another shape"),
        *("wrong pseudo id", "validation in training", "dead entry", "missing pseudo label", "colour label"),
    ],
)
def test_training_runs_the_quick_form_and_names_the_full_one(
    own: Path, train: Callable[..., tuple[int, str, str]], run: Callable[..., tuple[int, str, str]], mischief: str
) -> None:
    MISCHIEF[mischief][0](own)
    shutil.move(own / "world", own / "moved")
    moved = ("--data-dir", "moved", "--data-dir-target", "moved")
    code, _, errors = train(*moved)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    message, _, command = line.partition("; everything that is wrong: ")
    assert message
    python, dash_m, module, *argv = shlex.split(command)
    assert (python, dash_m, module) == ("python", "-m", "dataset.check")
    code, output, _ = run(*argv)
    assert code == 2
    assert "moved/images" in output


def test_training_says_all_that_the_quick_form_finds(own: Path, train: Callable[..., tuple[int, str, str]]) -> None:
    for mischief in ("damaged image", "label of another shape", "one without labels"):
        MISCHIEF[mischief][0](own)
    code, output, errors = train()
    assert code == 2
    assert "labels of another shape" not in output
    assert "problem: target train: unreadable images (1): " in output
    assert "note: target train: pseudo labels without a labelled pixel (1): " in output
    assert "error: source train: labels of another shape than their image (1): " in errors


def test_training_says_which_images_it_leaves_out(own: Path, train: Callable[..., tuple[int, str, str]]) -> None:
    """In folders without lists: x.JPG beside .jpg, or another kind."""
    for letter, folder in (("s", "source"), ("t", "target")):
        for path in (own / "world" / "images").glob(f"{letter}*.png"):
            save_png(own / folder / "images" / path.name, np.array(Image.open(path)))
            save_png(own / folder / "labels" / path.name, np.array(Image.open(own / "world/labels" / path.name)))
    for name in ("x.PNG", "y.jpeg", "notes.txt"):
        shutil.copy(own / "source/images/s0.png", own / "source/images" / name)
    unlisted = ("source.train_list=", "target.train_list=", "run.validate=false")
    lists = [word for setting in unlisted for word in ("--override", setting)]
    code, output, errors = train("--data-dir", "source", "--data-dir-target", "target", *lists)
    assert code == 0, errors
    (line,) = [line for line in output.splitlines() if "left out" in line]
    assert line == (
        "note: source/images: 2 images left out, first x.PNG: names must end in '.png'; rename or convert them, or"
        " correct image_suffix"
    )


def test_every_script_that_reads_the_target_says_that_exif_is_not_applied(
    own: Path, train: Callable[..., tuple[int, str, str]], run: Callable[..., tuple[int, str, str]]
) -> None:
    turn("world/images/v1.png", 8)(own)
    said = "note: target val: images with an EXIF orientation (1): world/images/v1.png: orientation 8; "
    code, output, _ = train()
    assert code == 0
    assert output.count(said) == 1
    flags = ("--config", "own.toml", "--restore-from", "runs/own/step2", "--in-memory")
    code, output, _ = run(*flags, script="evaluate_cityscapes.py")
    assert code == 0
    assert output.count(said) == 1


def test_the_quick_form_looks_at_a_few_files_from_end_to_end(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(own / "many", images=37)
    config, _ = parse(["--config", "own.toml", "--data-dir", "many"], description="", section="step1", flags=TRAINING)
    source = datasets.source_dataset(config, config.step1, datasets.class_table(config))
    looked: list[str] = []

    def spy(method: Method, pairs: list[Pair]) -> Tally:
        looked.extend(Path(pair.image).name for pair in pairs)
        return examine(method, pairs)

    monkeypatch.setattr(quick_check, "examine", spy)
    quick_check.check_data(config, config.step1, source=source, target=None, validation=None)
    assert looked == [f"s{index}.png" for index in (0, 5, 10, 15, 21, 26, 31, 36)]
    for count in (9, 8, 7, 1):
        looked.clear()
        source.samples = source.samples[:count]
        quick_check.check_data(config, config.step1, source=source, target=None, validation=None)
        assert len(set(looked)) == min(count, 8)


def test_a_script_that_was_imported_already_runs_without_a_warning(script: Script) -> None:
    """Whatever other tests have imported; runpy would warn, and warnings are errors here."""
    assert sys.modules["dataset.check"] is check
    code, out, _ = script("dataset.check", "--help")
    assert code == 0
    assert "--decode" in out
    assert sys.modules["dataset.check"] is check
