"""Class tables and label decoding: published maps, refused files, real CamVid labels."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dataset import labels as module
from dataset.corpora import Corpus, DataError, Sample
from dataset.labels import (
    IGNORE,
    ClassTable,
    LabelDecoding,
    load_class_table,
    same_shape,
    train_id_decoding,
)
from dataset.png import FAST_PNG

SHARED_DATA = Path(__file__).parents[1] / "../shared/data"

# Transcribed from the two benchmarks' documentation, independently of the shipped tables.
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
CITYSCAPES |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
SYNTHIA = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13}
SYNTHIA |= {18: 14, 19: 15, 20: 16, 12: 17, 11: 18}


def decoding_of(corpus: str) -> LabelDecoding:
    return Corpus.from_mapping({"corpus": corpus, "root": "."}, 19).decoding


def save_index(path: Path, values: list[list[int]] | np.ndarray) -> Path:
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)
    return path


def save_rgb16(path: Path, classes: np.ndarray) -> Path:
    """A SYNTHIA label: class in red, instance in green, 7 in blue."""
    instances = np.arange(classes.size, dtype=np.uint16).reshape(classes.shape) + 300
    bgr = np.stack([np.full_like(instances, 7), instances, classes.astype(np.uint16)], axis=2)
    assert cv2.imwrite(str(path), bgr)
    return path


# ---- class tables ----


def test_cityscapes_table() -> None:
    table = load_class_table("cityscapes")
    assert table.num_classes == 19
    assert table.stuff == (0, 1, 2, 3, 4, 8, 9, 10)
    assert table.things == (5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    assert set(range(19)) - set(table.subsets["16"]) == {9, 14, 16}
    assert set(range(19)) - set(table.subsets["13"]) == {3, 4, 5, 9, 14, 16}
    assert table.subsets["19"] == tuple(range(19))
    assert table.palette[0] == (128, 64, 128)
    assert table.palette[18] == (119, 11, 32)
    assert len(set(table.palette)) == 19
    assert table.label_ids is not None
    assert {raw: train for train, raw in enumerate(table.label_ids)} == CITYSCAPES


def test_own_class_table_gets_defaults() -> None:
    table = load_class_table({"names": ["ground", "road"], "stuff": [0], "things": [1]})
    assert table.subsets == {"2": (0, 1)}
    assert table.label_ids is None
    assert table.palette == ((128, 0, 0), (0, 128, 0))


def test_generated_palette_has_distinct_colours_other_than_black() -> None:
    names = [f"class {index}" for index in range(254)]
    table = ClassTable.from_mapping({"names": names, "stuff": list(range(254)), "things": []})
    assert len({*table.palette, (0, 0, 0)}) == 255


GOOD = {"names": ["a", "b", "c"], "stuff": [0, 2], "things": [1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"things": [1, 2]}, "each class 0..2 once"),
        ({"things": []}, "each class 0..2 once"),
        ({"things": [3]}, "integers within 0..2"),
        ({"things": [True]}, "integers within 0..2"),
        ({"names": ["a", "b", "a"]}, "different names"),
        ({"names": "abc"}, "list of strings"),
        ({"palette": [[0, 0, 0]]}, "1 colours for 3 classes"),
        ({"palette": [[0, 0], [0, 0], [0, 0]]}, "red, green, blue"),
        ({"palette": [[0, 0, 256]] * 3}, "red, green, blue"),
        ({"subsets": {"2": [0, 3]}}, r"subsets\.2"),
        ({"subsets": {"2": []}}, r"subsets\.2"),
        ({"label_ids": [1, 2]}, "3 different ids"),
        ({"stuf": [0]}, "unknown key 'stuf'; did you mean 'stuff'"),
    ],
)
def test_bad_class_table_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_class_table({**GOOD, **change}, "own.toml [classes]")
    assert str(error.value).startswith("own.toml [classes]: ")
    assert "\n" not in str(error.value)


def test_missing_key_and_unknown_name() -> None:
    with pytest.raises(DataError, match="things is missing"):
        load_class_table({"names": ["a"], "stuff": [0]})
    with pytest.raises(DataError, match="did you mean 'cityscapes'"):
        load_class_table("cityscape")
    with pytest.raises(DataError, match="no shipped table"):
        load_class_table("../corpora/gta5")


def test_colorize_round_trip() -> None:
    table = load_class_table("cityscapes")
    labels = np.array([[0, 18, 255], [7, 100, 13]], dtype=np.uint8)
    image = table.colorize(labels)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels)
    colours = np.asarray(image.convert("RGB"))
    assert tuple(colours[0, 0]) == table.palette[0]
    assert tuple(colours[0, 1]) == table.palette[18]
    assert tuple(colours[1, 2]) == table.palette[13]
    assert not colours[0, 2].any()
    assert not colours[1, 1].any()


# ---- index files ----


@pytest.mark.parametrize("corpus", ["cityscapes", "gta5"])
def test_every_official_id_is_mapped(tmp_path: Path, corpus: str) -> None:
    raw = [*range(35), 255]
    labels = decoding_of(corpus).decode(save_index(tmp_path / "x.png", [raw]))
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [CITYSCAPES.get(value, IGNORE) for value in raw]


@pytest.mark.parametrize("bad", [35, 100, 254])
def test_unofficial_id_is_refused_with_file_and_ids(tmp_path: Path, bad: int) -> None:
    path = save_index(tmp_path / "strange.png", [[7, bad]])
    with pytest.raises(DataError, match=rf"strange\.png: unknown label ids {bad} \(found 7, {bad}\)"):
        decoding_of("cityscapes").decode(path)


def test_train_ids_are_named_where_that_shows(tmp_path: Path) -> None:
    decoding = LabelDecoding(kind="index", num_classes=3, ids={10: 0, 20: 1, 30: 2}, ignore=(0,))
    with pytest.raises(DataError, match="look like train ids"):
        decoding.decode(save_index(tmp_path / "a.png", [[0, 1, 2, 255]]))
    with pytest.raises(DataError) as error:
        decoding.decode(save_index(tmp_path / "b.png", [[10, 40]]))
    assert "train ids" not in str(error.value)


def test_palette_file_yields_indices_not_colours(tmp_path: Path) -> None:
    values = np.array([[7, 8, 11], [33, 0, 255]], dtype=np.uint8)
    image = Image.fromarray(values)
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    image.save(tmp_path / "p.png")
    assert decoding_of("gta5").decode(tmp_path / "p.png").tolist() == [[0, 1, 2], [18, 255, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour_type", ["grey", "palette"])
def test_narrow_files_keep_their_stored_values(tmp_path: Path, bits: int, colour_type: str) -> None:
    values = np.arange(2 ** min(bits, 4), dtype=np.uint8)[None]
    path = tmp_path / "narrow.png"
    if colour_type == "palette":
        image = Image.fromarray(values)
        image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(path, bits=bits)
    else:
        path.write_bytes(grey_png(values[0].tolist(), bits))
    np.testing.assert_array_equal(train_id_decoding(16).decode(path), values)


def grey_png(row: list[int], bits: int) -> bytes:
    """A one-line grey PNG of 1, 2, 4 or 8 bits a pixel, which Pillow cannot write."""
    packed = "".join(f"{value:0{bits}b}" for value in row)
    packed += "0" * (-len(packed) % 8)
    line = bytes([0, *(int(packed[at : at + 8], 2) for at in range(0, len(packed), 8))])
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", len(row), 1, bits, 0, 0, 0, 0),
        b"IDAT": zlib.compress(line),
        b"IEND": b"",
    }
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_colour_and_instance_files_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((2, 2), 26001, dtype=np.uint16)).save(tmp_path / "instance.png")
    Image.new("L", (8, 8)).save(tmp_path / "lossy.jpg")
    for name in ("colour.png", "instance.png", "lossy.jpg"):
        with pytest.raises(DataError, match=rf"{name}: a label must be a lossless 8-bit"):
            decoding_of("cityscapes").decode(tmp_path / name)


def test_the_conversion_that_a_refusal_names_makes_ids(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
    colours = np.array([[128, 64, 128], [70, 130, 180]], dtype=np.uint8)[ids]
    fetched = tmp_path / "labels_as_fetched" / "city"
    fetched.mkdir(parents=True)
    Image.fromarray(colours).save(fetched / "rgb.png")
    Image.fromarray(np.dstack([colours, ids])).save(fetched / "rgba.png")
    Image.fromarray(ids.astype(np.uint16)).save(fetched / "deep.png")
    decoding = train_id_decoding(2)
    for path in fetched.iterdir():
        with pytest.raises(DataError) as refusal:
            decoding.decode(path)
        assert "(Labels as colours, or of 16 bits)" in str(refusal.value)
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    _, _, section = text.partition("### Labels as colours, or of 16 bits\n")
    program = section.partition("```python\n")[2].partition("```")[0].replace("DIR/", f"{tmp_path}/")
    exec(program, {})
    for path in fetched.iterdir():
        np.testing.assert_array_equal(decoding.decode(tmp_path / "labels" / "city" / path.name), ids)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(fetched / "other.png")
    with pytest.raises(SystemExit, match=r"other\.png: a colour that is not in COLOURS"):
        exec(program, {})


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    decoding = train_id_decoding(19)
    with pytest.raises(DataError, match=r"absent\.png: cannot read the file \(No such file"):
        decoding.decode(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: not an image file") as error:
        decoding.decode(tmp_path / "text.png")
    assert "0x" not in str(error.value)
    whole = save_index(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 19, (64, 64)))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    with pytest.raises(DataError, match=r"cut\.png: not a readable image"):
        decoding.decode(tmp_path / "cut.png")


def test_train_id_decoding_is_the_identity_within_the_classes(tmp_path: Path) -> None:
    path = save_index(tmp_path / "x.png", [[0, 1, 10, 255]])
    assert train_id_decoding(11).decode(path).tolist() == [[0, 1, 10, 255]]
    with pytest.raises(DataError, match=r"unknown label ids 10 .*classes are 0\.\.9"):
        train_id_decoding(10).decode(path)


@given(st.data())
def test_decoding_agrees_with_a_dictionary(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ids = data.draw(st.dictionaries(st.integers(0, 255), st.integers(0, 6), min_size=1, max_size=9))
    ignore = data.draw(st.sets(st.integers(0, 255).filter(lambda value: value not in ids), max_size=5))
    decoding = LabelDecoding(kind="index", num_classes=7, ids=ids, ignore=tuple(ignore))
    values = data.draw(st.lists(st.sampled_from(sorted({*ids, *ignore})), min_size=1, max_size=20))
    path = save_index(tmp_path_factory.getbasetemp() / "agrees.png", [values])
    assert decoding.decode(path)[0].tolist() == [ids.get(value, IGNORE) for value in values]
    stranger = data.draw(st.integers(0, 255))
    if stranger not in ids and stranger not in ignore:
        with pytest.raises(DataError, match=f"unknown label ids {stranger} "):
            decoding.decode(save_index(path, [[*values, stranger]]))


def test_decoding_survives_pickling_after_use() -> None:
    decoding = decoding_of("synthia")
    table = decoding.lookup
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(decoding)).lookup, table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "colour"}, "decode must be one of index, channel, threshold, mask"),
        ({"ids": {1: 5}}, "ids maps to 5"),
        ({"ignore": (2,)}, "raw ids 2 are classes and listed in ignore"),
        ({"num_classes": 255}, "1 to 254 classes"),
        ({"kind": "threshold", "num_classes": 1}, "2 to 254 classes"),
    ],
)
def test_bad_decoding_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelDecoding(**{"kind": "index", "num_classes": 5, **change})


# ---- 16-bit files ----


def test_synthia_classes_come_from_the_red_channel(tmp_path: Path) -> None:
    raw = np.arange(23, dtype=np.uint16)[None]
    labels = decoding_of("synthia").decode(save_rgb16(tmp_path / "x.png", raw))
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [SYNTHIA.get(value, IGNORE) for value in range(23)]


@pytest.mark.parametrize("bad", [23, 255, 256, 770])
def test_synthia_id_above_22_is_refused(tmp_path: Path, bad: int) -> None:
    path = save_rgb16(tmp_path / "x.png", np.array([[3, bad]]))
    with pytest.raises(DataError, match=rf"x\.png: unknown label ids {bad} "):
        decoding_of("synthia").decode(path)


def test_other_bit_depths_and_colour_types_are_refused(tmp_path: Path) -> None:
    decoding = decoding_of("synthia")
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb8.png")
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "grey16.png")
    assert cv2.imwrite(str(tmp_path / "rgba16.png"), np.zeros((2, 2, 4), dtype=np.uint16))
    Image.new("RGB", (2, 2)).save(tmp_path / "x.tif")
    expected = {"rgb8": "depth 8, colour type 2", "grey16": "depth 16, colour type 0"}
    expected |= {"rgba16": "depth 16, colour type 6"}
    for name, found in expected.items():
        with pytest.raises(DataError, match=rf"{name}\.png: expected a 16-bit RGB PNG.*{found}"):
            decoding.decode(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="found not a PNG"):
        decoding.decode(tmp_path / "x.tif")


@pytest.mark.parametrize("keep", [40, 200, 2000])
def test_damaged_synthia_file_is_named(tmp_path: Path, keep: int) -> None:
    path = save_rgb16(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 23, (64, 64)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut\.png: not a readable"):
        decoding_of("synthia").decode(path)


# ---- masks ----


def test_mask_is_one_above_the_threshold(tmp_path: Path) -> None:
    path = save_index(tmp_path / "mask.png", [[0, 127, 128, 255]])
    assert LabelDecoding(kind="threshold", num_classes=2).decode(path).tolist() == [[0, 0, 1, 1]]
    low = LabelDecoding(kind="threshold", num_classes=2, threshold=0)
    assert low.decode(save_index(path, [[0, 1, 2]])).tolist() == [[0, 1, 1]]


def test_mask_forms(tmp_path: Path) -> None:
    decoding = LabelDecoding(kind="threshold", num_classes=2)
    grey = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    for mode, name in [("1", "bits.png"), ("RGB", "rgb.png"), ("L", "grey.tif")]:
        grey.convert(mode).save(tmp_path / name)
        assert decoding.decode(tmp_path / name).tolist() == [[0, 1]]
    Image.new("RGB", (1, 1), (255, 255, 254)).save(tmp_path / "coloured.png")
    with pytest.raises(DataError, match="must be grey"):
        decoding.decode(tmp_path / "coloured.png")
    grey.convert("P").save(tmp_path / "palette.png")
    with pytest.raises(DataError, match="8-bit grey image, this is PNG P"):
        decoding.decode(tmp_path / "palette.png")


def test_a_black_and_white_palette_mask_is_not_read_as_ignored(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P").save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"255 is the ignored id there, not class 1; say which"):
        MASK.decode(tmp_path / "mask.png")


def test_mask_of_zeros_and_ones_is_not_read_as_empty(tmp_path: Path) -> None:
    path = save_index(tmp_path / "mask.png", [[0, 1]])
    with pytest.raises(DataError, match="set threshold = 0"):
        LabelDecoding(kind="threshold", num_classes=2).decode(path)


# ---- real files ----


def label_files(samples: list[Sample]) -> list[Path]:
    return [sample.label for sample in samples if sample.label is not None]


@pytest.mark.skipif(not (SHARED_DATA / "camvid_day_to_dusk").is_dir(), reason="no CamVid frames here")
def test_camvid_described_in_a_table() -> None:
    entries = {
        "root": str(SHARED_DATA / "camvid_day_to_dusk"),
        "ignore": [11],
        "train_list": "source_train.txt",
        "val_list": "target_val.txt",
    }
    corpus = Corpus.from_mapping(entries, num_classes=11)
    assert len(corpus.samples("train", labelled=True)) == 119
    samples = corpus.samples("val", labelled=True)
    assert len(samples) == 31
    seen = set()
    for path in label_files(samples):
        labels = corpus.decoding.decode(path)
        raw = np.asarray(Image.open(path))
        assert labels.shape == (360, 480)
        np.testing.assert_array_equal(labels == IGNORE, raw == 11)
        np.testing.assert_array_equal(labels[raw < 11], raw[raw < 11])
        seen |= set(np.unique(labels).tolist())
    assert seen == {*range(11), 255} - {7}  # no fence in these frames
    without_ignore = Corpus.from_mapping({**entries, "ignore": [255]}, num_classes=11)
    with pytest.raises(DataError, match="unknown label ids 11 "):
        [without_ignore.decoding.decode(path) for path in label_files(samples)]


MASK = LabelDecoding(kind="mask", num_classes=2)


@pytest.mark.parametrize(
    ("mode", "stored", "expected"),
    [
        ("L", [[0, 1, 1]], [[0, 1, 1]]),
        ("L", [[0, 255, 255]], [[0, 1, 1]]),
        ("L", [[255, 255, 255]], [[1, 1, 1]]),
        ("L", [[0, 0, 0]], [[0, 0, 0]]),
        ("1", [[0, 255, 0]], [[0, 1, 0]]),
        ("RGB", [[0, 255, 0]], [[0, 1, 0]]),
        ("P", [[0, 1, 255]], [[0, 1, IGNORE]]),  # a palette image holds train ids, as dataset.tile writes them
    ],
)
def test_masks_of_either_convention(tmp_path: Path, mode: str, stored: list, expected: list) -> None:
    image = Image.fromarray(np.array(stored, dtype=np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    path = tmp_path / "mask.png"
    (image if mode in ("L", "P") else image.convert(mode)).save(path)
    assert MASK.decode(path).tolist() == expected


@pytest.mark.parametrize("values", [[0, 1, 255], [0, 128, 255], [2], [0, 254]])
def test_a_mask_of_neither_convention_is_refused(tmp_path: Path, values: list[int]) -> None:
    """0, 1 and 255 in one grey file: 255 could be the class, or no data."""
    Image.fromarray(np.array([values], dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png: a mask holds 0 and 1 or 0 and 255") as error:
        MASK.decode(tmp_path / "mask.png")
    assert "\n" not in str(error.value)


def test_a_palette_mask_of_other_ids_a_colour_file_and_a_jpeg_are_refused(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 2]], dtype=np.uint8))
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "palette.png")
    with pytest.raises(DataError, match="unknown label ids 2"):
        MASK.decode(tmp_path / "palette.png")
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match="must be grey"):
        MASK.decode(tmp_path / "red.png")
    Image.new("L", (8, 8)).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="JPEG blurs"):
        MASK.decode(tmp_path / "lossy.jpg")


@pytest.mark.parametrize("kind", LabelDecoding.KINDS)
def test_reading_and_looking_up_is_decoding(tmp_path: Path, kind: str) -> None:
    """What a scan counts by raw ids is what training sees."""
    ids = {} if kind in LabelDecoding.BINARY else {0: 1, 1: 0}
    decoding = LabelDecoding(kind=kind, num_classes=2, ids=ids)
    values = np.random.default_rng(0).integers(0, 2, (5, 7))
    path = tmp_path / "label.png"
    if kind == "channel":
        save_rgb16(path, values)
    else:
        Image.fromarray((values * (255 if kind in LabelDecoding.BINARY else 1)).astype(np.uint8)).save(path)
    np.testing.assert_array_equal(decoding.lookup[decoding.read(path)], decoding.decode(path))
    np.testing.assert_array_equal(decoding.decode(path), values if kind in LabelDecoding.BINARY else 1 - values)


@pytest.mark.skipif(not (SHARED_DATA / "roads_epfl_to_massachusetts").is_dir(), reason="no road tiles here")
def test_grey_road_masks() -> None:
    entries = {"root": str(SHARED_DATA / "roads_epfl_to_massachusetts/source"), "decode": "threshold"}
    corpus = Corpus.from_mapping(entries, num_classes=2)
    samples = corpus.samples("train", labelled=True)
    assert len(samples) == 60
    shares = [float(corpus.decoding.decode(path).mean()) for path in label_files(samples[:20])]
    assert 0.02 < float(np.mean(shares)) < 0.4


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0.01, 1))
def test_a_resized_image_has_the_shape_of_its_original(width: int, height: int, factor: float) -> None:
    resized = max(1, round(width * factor)), max(1, round(height * factor))
    if min(width, height) * factor >= 0.5:
        assert same_shape((width, height), resized)
        assert same_shape(resized, (width, height))


@pytest.mark.parametrize(
    ("first", "second"), [((1280, 760), (1280, 720)), ((1914, 1052), (1280, 720)), ((480, 360), (360, 480))]
)
def test_other_shapes(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert not same_shape(first, second)
    assert not same_shape(second, first)


# ---- the fast reader ----


def grey_pngs() -> dict[str, bytes]:
    """A small label map as PNG, in every form that Pillow can give a grey one."""
    label = cv2.resize(np.random.default_rng(0).integers(0, 20, (5, 7), dtype=np.uint8), (61, 43), interpolation=0)
    image = Image.fromarray(label)
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add(b"iCCP", b"x\0\0" + zlib.compress(b"junk"))
    forms: dict[str, dict] = {
        "plain": {},
        "transparency": {"transparency": 3},
        "gamma": {"pnginfo": info},
        "nibbles": {"bits": 4},
        "animation": {"save_all": True, "append_images": [Image.fromarray(255 - label)]},
        "animation apart": {
            "save_all": True,
            "append_images": [Image.fromarray(255 - label)],
            "default_image": True,
        },
    }
    files = {}
    for name, form in forms.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **form)
        files[name] = buffer.getvalue()
    return files


def damaged(data: bytes) -> list[bytes]:
    """Every third place cut off or with a bit turned."""
    places = range(0, len(data), 3)
    turned = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in places]
    return [*turned, *(data[:at] for at in places), data + b"x"]


def read_or_refusal(path: Path, data: bytes) -> np.ndarray | str:
    path.write_bytes(data)
    try:
        return train_id_decoding(254).read(path)
    except DataError as error:
        return str(error)


@pytest.mark.skipif(not FAST_PNG, reason="kornia-rs is not installed")
@pytest.mark.parametrize("form", grey_pngs())
def test_the_fast_reader_gives_what_pillow_gives_and_nothing_of_broken_pixels(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    whole = grey_pngs()[form]
    files = [whole, *damaged(whole)]
    fast = [read_or_refusal(path, data) for data in files]
    monkeypatch.setattr(module, "plain_png", lambda data, mode: None)
    slow = [read_or_refusal(path, data) for data in files]
    assert isinstance(fast[0], np.ndarray)
    for ours, pillows in zip(fast, slow, strict=True):
        # Pillow minds a flaw in a chunk that says nothing of the pixels; the fast reader may not.
        same = np.array_equal(ours, pillows) and type(ours) is type(pillows)
        assert same or np.array_equal(ours, fast[0])
        assert same or form != "plain"
    assert sum(isinstance(found, str) for found in fast) > len(fast) / 3


def test_a_plain_label_takes_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_index(tmp_path / "a.png", [[0, 1], [2, 255]])
    monkeypatch.setattr(module, "plain_png", lambda data, mode: np.full((1, 1, 1), 7, np.uint8))
    assert decoding_of("cityscapes").read(path).tolist() == [[7]]
    assert train_id_decoding(19).decode(path).tolist() == [[7]]


def test_a_damaged_png_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(DataError, match="damaged PNG") as mistake:
        module.open_image(path, path.read_bytes()[:60])
    assert str(mistake.value).count("cut.png") == 1
