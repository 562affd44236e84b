"""Corpora: the published layouts, list files, pairing of labels, pseudo labels, strict tables."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.corpora import Corpus, DataError, Sample, pseudo_label_name, with_pseudo_labels

NAMES = ["b/two.png", "a/one.png", "a/three.png"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path / "images", *NAMES)
    touch(tmp_path / "labels", *NAMES)
    return tmp_path


def own(root: Path, **entries: object) -> Corpus:
    return Corpus.from_mapping({"root": str(root), **entries}, 5, "own.toml [source]")


def with_list(root: Path, text: str, **entries: object) -> Corpus:
    (root / "list.txt").write_bytes(text.encode())
    return own(root, train_list="list.txt", **entries)


# ---- published layouts ----


def test_cityscapes_layout(tmp_path: Path) -> None:
    touch(tmp_path / "leftImg8bit/train", "bonn/bonn_1_leftImg8bit.png", "aachen/aachen_0_leftImg8bit.png")
    touch(tmp_path / "gtFine/train", "bonn/bonn_1_gtFine_labelIds.png", "bonn/bonn_1_gtFine_color.png")
    touch(tmp_path / "gtFine/train", "aachen/aachen_0_gtFine_labelIds.png")
    touch(tmp_path / "leftImg8bit/val", "ulm/ulm_2_leftImg8bit.png")
    corpus = Corpus.from_mapping({"corpus": "cityscapes", "root": str(tmp_path)}, 19)
    first, second = corpus.samples("train", labelled=True)
    assert first.name == "aachen/aachen_0_leftImg8bit.png"
    assert first.image == tmp_path / "leftImg8bit/train" / first.name
    assert first.label == tmp_path / "gtFine/train/aachen/aachen_0_gtFine_labelIds.png"
    assert second.name == "bonn/bonn_1_leftImg8bit.png"
    name = "ulm/ulm_2_leftImg8bit.png"
    assert corpus.samples("val", labelled=False) == [Sample(name, tmp_path / "leftImg8bit/val" / name, None)]
    with pytest.raises(DataError, match=r"1 of 1 labels are missing.*ulm_2_leftImg8bit"):
        corpus.samples("val", labelled=True)


@pytest.mark.parametrize(
    ("name", "image", "label", "count"),
    [
        ("gta5", "images/00001.png", "labels/00001.png", 24966),
        ("synthia", "RGB/0000001.png", "GT/LABELS/0000001.png", 9400),
    ],
)
def test_flat_layouts(tmp_path: Path, name: str, image: str, label: str, count: int) -> None:
    touch(tmp_path, image, label)
    corpus = Corpus.from_mapping({"corpus": name, "root": tmp_path}, 19)
    assert corpus.name == name
    assert corpus.samples("train", labelled=True) == [Sample(Path(image).name, tmp_path / image, tmp_path / label)]
    assert dict(corpus.expected) == {"train": count}
    assert corpus.count_note("train", count) is None
    assert f"published corpus has {count}" in str(corpus.count_note("train", 1))
    assert corpus.count_note("val", 1) is None
    with pytest.raises(DataError, match=r"no val list given.*set val_list"):
        corpus.samples("val", labelled=True)


def test_keys_override_the_shipped_table(tmp_path: Path) -> None:
    translated = tmp_path / "translated"
    entries = {"corpus": "gta5", "root": "data/gta5", "images": str(translated), "image_suffix": ".jpg"}
    corpus = Corpus.from_mapping(entries, 19)
    assert corpus.image_folder("train") == translated
    assert corpus.label_folder("train") == Path("data/gta5/labels")
    assert corpus.decoding == Corpus.from_mapping({"corpus": "cityscapes", "root": "."}, 19).decoding
    merged = Corpus.from_mapping({"corpus": "gta5", "root": ".", "ids": {"7": 0, "26": 1}, "ignore": []}, 2)
    assert dict(merged.decoding.ids) == {7: 0, 26: 1}


# ---- folders ----


def test_without_list_the_sorted_folder(root: Path) -> None:
    touch(root / "images", ".DS_Store", "a/._one.png", "notes.txt", ".cache/x.png")
    assert [sample.name for sample in own(root).samples("train", labelled=True)] == sorted(NAMES)
    with pytest.raises(DataError, match="no val list given"):
        own(root).samples("val", labelled=False)


def test_linked_folders_are_followed_and_cycles_refused(tmp_path: Path) -> None:
    touch(tmp_path / "store/city", "x.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/linked").symlink_to(tmp_path / "store/city")
    corpus = own(tmp_path, train_list="list.txt")
    (tmp_path / "list.txt").write_text("linked/x.png\n")
    assert [s.name for s in corpus.samples("train", labelled=False)] == ["linked/x.png"]
    assert own(tmp_path).samples("train", labelled=False) == corpus.samples("train", labelled=False)
    (tmp_path / "store/city/back").symlink_to(tmp_path / "images")
    with pytest.raises(DataError, match="link leads back"):
        own(tmp_path).samples("train", labelled=False)


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = own(root)
    closed, scandir = str(root / "images" / "closed"), os.scandir
    os.mkdir(closed)
    assert corpus.samples("train", labelled=False)

    def scan(folder: str | Path) -> Any:
        if os.fspath(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(DataError, match=rf"{closed}: the folder cannot be read \(Permission denied\); make it"):
        corpus.samples("train", labelled=False)


def test_images_that_are_left_out_are_noted_where_no_list_tells(root: Path) -> None:
    corpus = own(root)
    assert corpus.left_out_note("train") is None
    for name in ("z.PNG", "y.jpg", "notes.txt", ".hidden.jpg", "deep/x.jpeg"):
        touch(root, f"images/{name}")
    assert "images: 3 images left out, first deep/x.jpeg: names must end in '.png'" in str(
        corpus.left_out_note("train")
    )
    assert with_list(root, "a/one.png\n").left_out_note("train") is None


def test_missing_and_empty_folders(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match=r"pictures: no such folder; set root or images"):
        own(root, images="pictures").samples("train", labelled=False)
    with pytest.raises(DataError, match=r"no file ends in '\.tif'"):
        own(root, image_suffix=".tif").samples("train", labelled=False)
    with pytest.raises(DataError, match="not the name of a split"):
        own(root, images="{split}").samples("../images", labelled=False)


def test_missing_label_names_the_file_and_the_number(root: Path) -> None:
    (root / "labels/a/one.png").unlink()
    with pytest.raises(DataError, match=r"labels/a/one\.png: 1 of 3 labels are missing, first that of a/one\.png"):
        own(root).samples("train", labelled=True)
    assert len(own(root).samples("train", labelled=False)) == 3


# ---- lists ----


@pytest.mark.parametrize(
    "text",
    [
        "b/two.png\na/one.png\n",
        "\r\nb/two.png\r\n\r\na/one.png",
        "\ufeffb/two.png  \n\ta/one.png\n\n",
        "./b/two.png\na//one.png",
    ],
)
def test_list_order_and_forms(root: Path, text: str) -> None:
    samples = with_list(root, text).samples("train", labelled=True)
    assert [sample.name for sample in samples] == ["b/two.png", "a/one.png"]
    assert [sample.label for sample in samples] == [root / "labels/b/two.png", root / "labels/a/one.png"]


def test_absolute_entry_inside_the_folder_is_taken(root: Path) -> None:
    samples = with_list(root, f"{root}/images/b/two.png\n").samples("train", labelled=False)
    assert [sample.name for sample in samples] == ["b/two.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/one.png\nb/four.png\n", r"list\.txt, line 2: no image b/four\.png"),
        ("\na/one.png labels/one.png\n", r"line 2: .*second column"),
        ("a/one.png\nb/two.png\n./a/one.png\n", r"line 3: a/one\.png is listed already on line 1"),
        ("../images/a/one.png\n", "line 1: .* is not inside"),
        ("a/../a/one.png\n", "line 1: .* is not inside"),
        ("/etc/passwd\n", "line 1: /etc/passwd is not inside"),
        ("a\n", "line 1: no image a "),
        ("a/one.png\nb/two\n", r"line 2: b/two lacks its suffix; .* whole names, here b/two\.png"),
        ("\n  \n", "the list is empty"),
    ],
)
def test_bad_list_is_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        with_list(root, text).samples("train", labelled=False)
    assert "list.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_utf_8_is_refused_by_its_line(root: Path) -> None:
    (root / "list.txt").write_bytes("a/one.png\nb/caf\xe9.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.txt, line 2: the list is not UTF-8 text"):
        own(root, train_list="list.txt").samples("train", labelled=False)


COMPOSED, DECOMPOSED = "b/caf\u00e9.png", "b/cafe\u0301.png"


@pytest.mark.parametrize(("listed", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_in_another_unicode_form_is_said_to_be_one(root: Path, listed: str, stored: str) -> None:
    """As in a list from elsewhere for files that macOS named."""
    touch(root / "images", stored)
    if (root / "images" / listed).is_file():
        pytest.skip("this file system takes both forms for one name")
    with pytest.raises(DataError, match=r"line 1: .* in another Unicode form"):
        with_list(root, f"{listed}\n").samples("train", labelled=False)


def test_a_table_without_a_corpus_is_named_as_it_was_written(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set root or images of own\.toml \[source\]$"):
        own(root, images="gone").samples("train", labelled=False)
    with pytest.raises(DataError, match=r"^own\.toml \[source\]: no val list given"):
        own(root).samples("val", labelled=False)


def test_name_with_a_space_is_one_name(root: Path) -> None:
    touch(root / "images", "a/big one.png")
    assert with_list(root, "a/big one.png\n").samples("train", labelled=False)[0].name == "a/big one.png"


def test_entry_of_another_suffix_is_refused(root: Path) -> None:
    touch(root / "images", "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg does not end in '\.png'"):
        with_list(root, "x.jpg\n").samples("train", labelled=False)


def test_list_is_found_here_then_below_root(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = with_list(root, "a/one.png\n")
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    assert [s.name for s in corpus.samples("train", labelled=False)] == ["a/one.png"]
    (here / "list.txt").write_text("b/two.png\n")
    assert [s.name for s in corpus.samples("train", labelled=False)] == ["b/two.png"]
    with pytest.raises(DataError, match=r"none\.txt: no such list file.*correct val_list"):
        own(root, val_list="none.txt").samples("val", labelled=False)


# ---- strict tables ----


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image_sufix": ".png"}, "unknown key 'image_sufix'; did you mean 'image_suffix'"),
        ({"quux": 1}, "unknown key 'quux'; known: corpus, decode"),
        ({"corpus": "gta"}, "no shipped table 'gta' in corpora; did you mean 'gta5'"),
        ({"root": 3}, "root must be a string, found 3"),
        ({"image_suffix": "png"}, r"\[source\]: image_suffix 'png' has no dot; .* such as '\.png'"),
        ({"label_suffix": "png"}, "label_suffix 'png' has no dot"),
        ({"decode": "colour"}, "decode must be one of index, channel, threshold"),
        ({"decode": 1}, "decode must be a string"),
        ({"ids": [1, 2]}, "ids must be a table"),
        ({"ids": {"road": 1}}, "ids must map raw ids"),
        ({"ids": {"300": 1}}, "ids must map raw ids"),
        ({"ids": {"1": 7}}, r"ids maps to 7, the classes are 0\.\.4"),
        ({"ids": {"1": "road"}}, "ids must map raw ids"),
        ({"ignore": 255}, "ignore must be a list of integers"),
        ({"ignore": [-1]}, "ignore must be a list of integers"),
        ({"ids": {"7": 0}, "ignore": [7]}, "raw ids 7 are classes and listed in ignore"),
        ({"ignore": [0]}, "raw ids 0 are classes and listed in ignore"),
        ({"threshold": 300}, r"threshold must be an integer within 0\.\.254"),
        ({"train_list": ["a"]}, "train_list must be a string"),
        ({"expected": {"train": "many"}}, "expected must be"),
        ({"corpus": "cityscapes"}, "ids maps to 5, 6"),
    ],
)
def test_bad_table_is_refused(entries: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        Corpus.from_mapping({"root": ".", **entries}, 5, "own.toml [source]")
    assert str(error.value).startswith("own.toml [source]: ")


def test_root_is_required() -> None:
    with pytest.raises(DataError, match=r"\[target\]: root is missing"):
        Corpus.from_mapping({"corpus": "cityscapes"}, 19, "[target]")


def test_train_id_files_under_a_map_of_official_ids_are_refused() -> None:
    entries = {"corpus": "cityscapes", "root": ".", "label_suffix": "_gtFine_labelTrainIds.png"}
    with pytest.raises(DataError, match="names files of train ids"):
        Corpus.from_mapping(entries, 19)
    corpus = Corpus.from_mapping({**entries, "ids": {}, "ignore": [255]}, 19)
    assert corpus.decoding.lookup[:19].tolist() == list(range(19))


# ---- pseudo labels ----


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("aachen/aachen_0_leftImg8bit.png", "aachen_0_leftImg8bit.png"),
        ("x.jpg", "x.png"),
        ("deep/er/x.y.tif", "x.y.png"),
    ],
)
def test_pseudo_label_name(image: str, label: str) -> None:
    assert pseudo_label_name(image) == label


def test_pseudo_labels_are_paired_from_a_flat_folder(root: Path, tmp_path: Path) -> None:
    samples = own(root).samples("train", labelled=False)
    folder = tmp_path / "pseudo"
    folder.mkdir()
    Image.fromarray(np.array([[0, 4, 255]], dtype=np.uint8)).save(folder / "one.png")
    with pytest.raises(DataError, match=r"three\.png: 2 of 3 pseudo labels are missing, .*Generate_Pseudo_Label\.py"):
        with_pseudo_labels(samples, folder)
    touch(folder, "two.png", "three.png")
    paired = with_pseudo_labels(samples, str(folder))
    assert [(s.name, s.image) for s in paired] == [(s.name, s.image) for s in samples]
    assert [s.label for s in paired] == [folder / n for n in ("one.png", "three.png", "two.png")]


def test_images_that_share_a_pseudo_label_are_refused(tmp_path: Path) -> None:
    samples = [Sample("a/x.png", Path("a")), Sample("b/x.jpg", Path("b"))]
    with pytest.raises(DataError, match=r"a/x\.png and b/x\.jpg share the prediction x\.png"):
        with_pseudo_labels(samples, tmp_path)
