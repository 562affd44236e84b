"""Tiles of aerial photographs: nothing lost, nothing shared between the splits, nothing read beyond a window."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset import photographs, tile
from dataset.corpora import Corpus, DataError
from dataset.images import read_image
from dataset.labels import IGNORE
from dataset.toml import shipped_table
from tests.conftest import Script
from utils.config import build_config, read_config
from utils.mistakes import MISTAKES

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("inria", "massachusetts_buildings", "massachusetts_roads", "deepglobe")
LAYOUTS = {  # image and label as the archives have them
    "inria": ("train/images/{}.tif", "train/gt/{}.tif"),
    "massachusetts_buildings": ("{split}/sat/{}.tiff", "{split}/map/{}.tif"),
    "massachusetts_roads": ("{split}/sat/{}.tiff", "{split}/map/{}.tif"),
    "deepglobe": ("train/{}_sat.jpg", "train/{}_mask.png"),
}
NAMES = {"inria": ("austin1", "austin15", "tyrol-w5", "tyrol-w6")}
CLASS_COLOURS = {"massachusetts_buildings": (255, 0, 0), "deepglobe": (250, 251, 252)}
STRIPS = {"compress": "lzw", "interleave": "pixel"}
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
SIZE = 32

# ---- tiny archives ----


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write (H,W) or (H,W,channels): TIFF by GDAL with its options, anything else by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".tif", ".tiff"):
        Image.fromarray(pixels).save(path)
        return
    bands = np.moveaxis(np.atleast_3d(pixels), 2, 0)
    shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    place = rasterio.Affine(1, 0, 10, 0, -1, 10)
    with rasterio.open(path, "w", driver="GTiff", transform=place, **shape, **options) as dataset:
        dataset.write(bands)


def draw(seed: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H,W,3) without pure white, and the classes (H,W) of its pixels, 0 or 1."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (height, width, 3), dtype=np.uint8), rng.integers(0, 2, (height, width), dtype=np.uint8)


def coloured(classes: np.ndarray, colour: tuple[int, ...] | int) -> np.ndarray:
    """The label of an archive: class 1 in this colour on black."""
    return (np.atleast_3d(classes) * np.asarray(colour)).astype(np.uint8).squeeze()


def write_archive(
    root: Path, corpus: str = "inria", *, size: tuple[int, int] = (70, 50), options: Mapping[str, Any] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Four photographs in the official layout, the first of val; name -> (image, classes)."""
    pairs = {name: draw(seed, *size) for seed, name in enumerate(NAMES.get(corpus, ("101", "102", "103", "104")))}
    for index, (name, (image, classes)) in enumerate(pairs.items()):
        paths = [root / path.format(name, split="train" if index else "valid") for path in LAYOUTS[corpus]]
        save(paths[0], image, **(options or {}))
        save(paths[1], coloured(classes, CLASS_COLOURS.get(corpus, 255)), **(options or {}))
    return pairs


def cut(root: Path, output: Path, *flags: str, corpus: str = "inria") -> dict[str, Any]:
    """Cut a corpus in this process; its manifest."""
    folders = ["--root", str(root), "--output", str(output)]
    tile.main([corpus, *folders, f"--size={SIZE}", "--workers=0", *flags])
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))


def hashes(folder: Path) -> dict[str, str]:
    """Relative name -> hash, of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def corner(name: str) -> tuple[str, int, int]:
    """Photograph, top and left that a tile's name tells."""
    found = re.fullmatch(r"(.+)_y(\d+)_x(\d+)(\.\w+)?", name)
    assert found
    return found[1], int(found[2]), int(found[3])


# ---- the grid ----


@given(length=st.integers(1, 300), size=st.integers(1, 60), stride=st.integers(1, 60))
def test_tiles_cover_a_side_and_end_with_it(length: int, size: int, stride: int) -> None:
    size, stride = min(size, length), min(stride, size, length)
    begins = photographs.positions(length, size, stride)
    naive, begin = [], 0
    while begin + size < length:
        naive.append(begin)
        begin += stride
    assert begins == [*naive, length - size]
    assert {pixel for begin in begins for pixel in range(begin, begin + size)} == set(range(length))


# ---- what is written ----


@pytest.mark.parametrize("options", [STRIPS, TILED, {**TILED, **STRIPS}, {}], ids=["strips", "tiled", "both", "raw"])
@pytest.mark.parametrize("stride", [SIZE, 20])
def test_the_tiles_give_the_photographs_back(tmp_path: Path, options: dict[str, Any], stride: int) -> None:
    pairs = write_archive(tmp_path / "archive", options=options)
    cut(tmp_path / "archive", tmp_path / "tiles", f"--stride={stride}")
    corpus = Corpus.from_mapping({"corpus": "inria", "root": tmp_path / "tiles"}, 2)
    images = {name: np.zeros_like(image) for name, (image, _) in pairs.items()}
    labels = {name: np.full_like(classes, 77) for name, (_, classes) in pairs.items()}
    for sample in (*corpus.samples("train", labelled=True), *corpus.samples("val", labelled=True)):
        assert sample.label is not None
        name, top, left = corner(sample.name)
        place = np.s_[top : top + SIZE, left : left + SIZE]
        images[name][place] = np.asarray(read_image(sample.image))
        labels[name][place] = corpus.decoding.decode(sample.label)
    for name, (image, classes) in pairs.items():
        np.testing.assert_array_equal(images[name], image)
        np.testing.assert_array_equal(labels[name], classes)


@pytest.mark.parametrize("corpus", SHIPPED)
def test_an_official_archive_becomes_its_corpus(tmp_path: Path, corpus: str) -> None:
    pairs = write_archive(tmp_path / "archive", corpus)
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", corpus=corpus)
    read = Corpus.from_mapping({"corpus": corpus, "root": tmp_path / "tiles"}, 2)
    owners = {}
    for split in ("train", "val"):
        samples = read.samples(split, labelled=True)
        names = [sample.name for sample in samples]
        assert names == sorted(names)
        owners[split] = {corner(name)[0] for name in names}
        for sample in samples:
            assert sample.label is not None
            name, top, left = corner(sample.name)
            truth = pairs[name][1][top : top + SIZE, left : left + SIZE]
            np.testing.assert_array_equal(read.decoding.decode(sample.label), truth)
        numbers = manifest["splits"][split]
        assert (numbers["tiles"], numbers["photographs"]) == (len(names), len(owners[split]))
    assert not owners["train"] & owners["val"]
    assert owners["train"] | owners["val"] == set(pairs)
    expected = {"inria": {"austin1", "tyrol-w5"}, "deepglobe": owners["val"]}.get(corpus, {"101"})
    assert owners["val"] == expected


def test_a_label_tile_is_an_8_bit_palette_image(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    cut(tmp_path / "archive", tmp_path / "tiles")
    with Image.open(tmp_path / "tiles" / "SegmentationClass" / "austin1_y00000_x00000.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getcolors() is not None
        assert {colour for _, colour in image.convert("RGB").getcolors()} == {(0, 0, 0), (255, 255, 255)}


def test_a_jpeg_is_cut_as_it_decodes(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", "deepglobe")
    cut(tmp_path / "archive", tmp_path / "tiles", corpus="deepglobe")
    with photographs.opened(tmp_path / "archive" / "train" / "101_sat.jpg") as dataset:
        whole = photographs.read_window(dataset, 0, 0, 50, 70)
    with Image.open(tmp_path / "tiles" / "Images" / "101_y00018_x00038.png") as image:
        np.testing.assert_array_equal(np.asarray(image), whole[18:, 38:])


def test_the_manifest_counts(tmp_path: Path) -> None:
    pairs = write_archive(tmp_path / "archive")
    summary = tmp_path / "summary.json"
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", "--json", str(summary))
    assert manifest["state"] == "complete"
    assert manifest["versions"]["rasterio"] == rasterio.__version__
    assert [entry["name"] for entry in manifest["photographs"]] == sorted(pairs)
    for entry in manifest["photographs"]:
        assert entry["size"] == [70, 50]
        assert entry["skipped"] == []
        classes = pairs[entry["name"]][1]
        tiles = [classes[y : y + SIZE, x : x + SIZE] for y in (0, 18) for x in (0, 32, 38)]
        assert entry["tiles"] == [f"{entry['name']}_y{y:05d}_x{x:05d}" for y in (0, 18) for x in (0, 32, 38)]
        assert entry["class_percent"] == pytest.approx(100 * np.mean(tiles))
    told = json.loads(summary.read_text(encoding="utf-8"))
    assert told["splits"] == manifest["splits"]
    assert told["kept"] == 0


def test_a_palette_label_is_read_by_its_colours(tmp_path: Path) -> None:
    """Index 0 is white here, index 1 black."""
    image, classes = draw(0, 70, 50)
    label = Image.fromarray(1 - classes)
    label.putpalette([255, 255, 255, 0, 0, 0])
    save(tmp_path / "a.png", image)
    label.save(tmp_path / "a_label.png")
    with photographs.opened(tmp_path / "a_label.png") as dataset:
        colours = photographs.read_window(dataset, 3, 5, 20, 30)
    np.testing.assert_array_equal(photographs.class_mask(colours, 127, tmp_path), classes[3:23, 5:35])


def test_nothing_larger_than_a_tile_and_its_margin_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "archive", "massachusetts_roads", size=(150, 100))
    asked = []

    class Watched:
        """A file that notes the windows that are read of it."""

        def __init__(self, path: Path) -> None:
            self.dataset = true_open(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.dataset, name)

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *error: object) -> None:
            self.dataset.close()

        def read(self, bands: list[int], *, window: rasterio.windows.Window) -> np.ndarray:
            asked.append((window.width, window.height))
            return self.dataset.read(bands, window=window)

    true_open = rasterio.open
    monkeypatch.setattr(rasterio, "open", Watched)
    cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")
    assert len(asked) == 2 * 4 * 5 * 4  # image and label of every tile
    assert max(max(window) for window in asked) == SIZE + 2 * (SIZE // 8)


# ---- no-data ----


def flooded(same: np.ndarray, least: float) -> np.ndarray:
    """Pixels of 8-connected regions of at least `least` pixels, by flood fill."""
    large = np.zeros_like(same)
    left = {(int(row), int(column)) for row, column in np.argwhere(same)}
    while left:
        region, border = set(), [left.pop()]
        while border:
            row, column = border.pop()
            region.add((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            border += around
        if len(region) >= least:
            large[tuple(np.array(sorted(region)).T)] = True
    return large


@given(seed=st.integers(0, 1000), density=st.floats(0, 1), least=st.integers(1, 20))
def test_no_data_is_large_regions_of_the_colour(seed: int, density: float, least: int) -> None:
    rng = np.random.default_rng(seed)
    same = rng.random((12, 15)) < density
    image = rng.integers(0, 255, (12, 15, 3), dtype=np.uint8)
    image[same] = 255
    np.testing.assert_array_equal(photographs.no_data_mask(image, (255, 255, 255), least), flooded(same, least))


def write_white(root: Path, corpus: str, where: tuple[slice, slice]) -> None:
    """An archive of which the photograph 102 is white somewhere; its label says class 1 there."""
    pairs = write_archive(root, corpus)
    image, classes = pairs["102"]
    image[where], classes[where] = 255, 1
    paths = [root / path.format("102", split="train") for path in LAYOUTS[corpus]]
    save(paths[0], image)
    save(paths[1], coloured(classes, CLASS_COLOURS.get(corpus, 255)))


def tiles_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in manifest["photographs"] if entry["name"] == name)


def test_tiles_with_no_data_are_skipped_and_listed(tmp_path: Path) -> None:
    write_white(tmp_path / "archive", "massachusetts_roads", np.s_[:16, :33])
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")
    entry = tiles_of(manifest, "102")
    assert {skipped["tile"]: skipped["no_data_percent"] for skipped in entry["skipped"]} == {
        "102_y00000_x00000": 50.0,
        # A sliver of 16 pixels, one of its 32 columns, belongs to the large region beyond the tile's edge.
        "102_y00000_x00032": pytest.approx(100 / 64),
    }
    assert [corner(name)[1:] for name in entry["tiles"]] == [(0, 38), (18, 0), (18, 32), (18, 38)]
    assert manifest["splits"]["train"]["skipped"] == 2
    assert not (tmp_path / "tiles" / "Images_cleannull" / "102_y00000_x00000.png").exists()
    assert "102_y00000_x00000.png" not in (tmp_path / "tiles" / "train.txt").read_text(encoding="utf-8")


def test_a_small_sliver_within_a_tile_is_recognised_by_what_lies_beyond(tmp_path: Path) -> None:
    """Nine white pixels are too few for a region, and belong to one all the same."""
    write_white(tmp_path / "archive", "massachusetts_roads", np.s_[:9, :33])
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")
    assert [skipped["tile"] for skipped in tiles_of(manifest, "102")["skipped"]][1:] == ["102_y00000_x00032"]


def test_no_data_is_ignored_in_labels_and_a_tile_of_it_is_skipped(tmp_path: Path) -> None:
    white = np.s_[:32, :40]
    write_white(tmp_path / "archive", "massachusetts_buildings", white)
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_buildings")
    entry = tiles_of(manifest, "102")
    assert [skipped["tile"] for skipped in entry["skipped"]] == ["102_y00000_x00000"]
    read = Corpus.from_mapping({"corpus": "massachusetts_buildings", "root": tmp_path / "tiles"}, 2)
    missing = np.zeros((50, 70), dtype=bool)
    missing[white] = True
    for name in entry["tiles"]:
        _, top, left = corner(name)
        label = read.decoding.decode(tmp_path / "tiles" / "SegmentationClass" / f"{name}.png")
        np.testing.assert_array_equal(label == IGNORE, missing[top : top + SIZE, left : left + SIZE])


def test_a_few_white_pixels_are_a_roof(tmp_path: Path) -> None:
    write_white(tmp_path / "archive", "massachusetts_roads", np.s_[10:13, 10:13])
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")
    assert manifest["splits"]["train"]["skipped"] == 0
    assert tiles_of(manifest, "102")["no_data_percent"] == 0


def test_a_share_of_no_data_may_be_allowed(tmp_path: Path) -> None:
    """The tile of 50% goes, that of 1.6% stays; what is missing in it is ignored."""
    write_white(tmp_path / "archive", "massachusetts_roads", np.s_[:16, :33])
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", "--max-no-data=0.1", corpus="massachusetts_roads")
    entry = tiles_of(manifest, "102")
    assert [skipped["tile"] for skipped in entry["skipped"]] == ["102_y00000_x00000"]
    assert entry["no_data_percent"] == pytest.approx(100 / 64 / 5)


# ---- train and val ----


def found(count: int) -> list[photographs.Photograph]:
    return [photographs.Photograph(f"p{index}", Path("i"), Path("l"), "") for index in range(count)]


@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 50))
def test_a_drawn_split_has_its_share(count: int, fraction: float, seed: int) -> None:
    splits = photographs.drawn_split(found(count), fraction, seed)
    assert list(splits.values()).count("val") == max(1, round(fraction * count))
    assert splits == photographs.drawn_split(found(count)[::-1], fraction, seed)


def test_seeds_draw_differently() -> None:
    assert len({tuple(photographs.drawn_split(found(20), 0.5, seed).values()) for seed in range(10)}) == 10


def test_a_list_names_photographs_with_and_without_suffix(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    (tmp_path / "val.txt").write_text("tyrol-w6\r\n\n austin15.tif\n", encoding="utf-8")
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", "--val", str(tmp_path / "val.txt"))
    assert {entry["name"] for entry in manifest["photographs"] if entry["split"] == "val"} == {"austin15", "tyrol-w6"}


def test_a_share_takes_the_place_of_an_official_split(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", "massachusetts_roads")
    flags = ("--val-fraction=0.75", "--seed=3")
    manifest = cut(tmp_path / "archive", tmp_path / "tiles", *flags, corpus="massachusetts_roads")
    assert manifest["splits"]["val"]["photographs"] == 3


# ---- again, and with more processes ----


def test_an_interrupted_run_is_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_white(tmp_path / "archive", "massachusetts_roads", np.s_[:16, :33])
    tiles = tmp_path / "tiles"
    cut(tmp_path / "archive", tiles, corpus="massachusetts_roads")
    whole = hashes(tiles)
    manifest = json.loads((tiles / "manifest.json").read_text(encoding="utf-8"))
    for key in ("splits", "state"):
        manifest.pop(key)
    (tiles / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in (
        "train.txt",
        "Images_cleannull/102_y00018_x00000.png",
        "SegmentationClass_cleannull/101_y00000_x00000.png",
    ):
        (tiles / name).unlink()
    untouched = tiles / "Images_cleannull" / "104_y00000_x00000.png"
    before = untouched.stat().st_mtime_ns
    capsys.readouterr()
    cut(tmp_path / "archive", tiles, corpus="massachusetts_roads")
    assert hashes(tiles) == whole
    assert untouched.stat().st_mtime_ns == before
    assert "20 tiles of an earlier run kept" in capsys.readouterr().out


def test_a_manifest_stands_before_the_first_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "archive")

    def killed(*_: object) -> None:
        manifest = json.loads((tmp_path / "tiles" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["state"] == "in progress"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tile, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            cut(tmp_path / "archive", tmp_path / "tiles")
    assert cut(tmp_path / "archive", tmp_path / "tiles")["state"] == "complete"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--size=40",), "was cut with size = 32, not 40, stride = 32, not 40; choose another --output"),
        (("--stride=16",), "was cut with stride = 32, not 16"),
        (("--val-fraction=0.25",), r"another split, \d differ, first \S+; choose another --output"),
    ],
)
def test_a_folder_cut_otherwise_is_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    write_archive(tmp_path / "archive")
    cut(tmp_path / "archive", tmp_path / "tiles")
    before = hashes(tmp_path / "tiles")
    with pytest.raises(DataError, match=message):
        cut(tmp_path / "archive", tmp_path / "tiles", *flags)
    assert hashes(tmp_path / "tiles") == before


def test_a_foreign_folder_is_never_written_into(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive")
    save(tmp_path / "tiles" / "Images" / "mine.png", draw(0, 8, 8)[0])
    with pytest.raises(DataError, match="was not written by"):
        cut(tmp_path / "archive", tmp_path / "tiles")
    assert len(hashes(tmp_path / "tiles")) == 1


def test_two_processes_write_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_white(tmp_path / "archive", "massachusetts_buildings", np.s_[:16, :33])
    cut(tmp_path / "archive", tmp_path / "one", corpus="massachusetts_buildings")
    capsys.readouterr()
    cut(tmp_path / "archive", tmp_path / "two", "--workers=2", corpus="massachusetts_buildings")
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("next: python -m dataset.check --config configs/massbuildings_to_inria.toml --data-dir ")


class Deadly(str):
    """A name that kills the process that receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_process_that_dies_is_a_mistake_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "archive")
    with monkeypatch.context() as patch:
        true_claim = tile._claim

        def claim(job: tile.Job, plan: list[dict[str, Any]]) -> dict[str, Any]:
            begun = true_claim(job, plan)
            object.__setattr__(job, "threshold", Deadly())
            return begun

        patch.setattr(tile, "_claim", claim)
        with pytest.raises(DataError, match=r"process was killed .*; start again, what is cut is kept"):
            cut(tmp_path / "archive", tmp_path / "tiles", "--workers=1")
    assert cut(tmp_path / "archive", tmp_path / "tiles")["state"] == "complete"


def test_damaged_tiles_are_cut_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of TIFF and PNG, and labels that are whole and of something else."""
    for corpus, folder in (("inria", "Images"), ("massachusetts_roads", "Images_cleannull")):
        root, tiles = tmp_path / corpus, tmp_path / f"{corpus} tiles"
        write_archive(root, corpus)
        cut(root, tiles, corpus=corpus)
        whole = hashes(tiles)
        images, labels = sorted((tiles / folder).iterdir()), sorted(tiles.glob("Segmentation*/*"))
        content = images[0].read_bytes()
        images[0].write_bytes(content[: len(content) // 2])
        images[1].write_bytes(b"")
        save(labels[2], np.full((SIZE, SIZE), 7, np.uint8))
        save(labels[3], np.zeros((8, 8), np.uint8))
        content = labels[4].read_bytes()
        labels[4].write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
        capsys.readouterr()
        cut(root, tiles, corpus=corpus)
        printed = capsys.readouterr().out
        assert f"note: 5 damaged tiles of an earlier run cut anew, first {images[0].stem}" in printed
        assert "19 tiles of an earlier run kept" in printed
        assert hashes(tiles) == whole


def test_a_rerun_that_fails_leaves_a_complete_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "archive")
    cut(tmp_path / "archive", tmp_path / "tiles")
    whole = hashes(tmp_path / "tiles")
    (tmp_path / "tiles/Images/austin1_y00000_x00000.tif").unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(
            DataError, match=r"x00000\.tif: cannot be written \(No space left on device\); .*start again"
        ):
            cut(tmp_path / "archive", tmp_path / "tiles")
    assert hashes(tmp_path / "tiles")["manifest.json"] == whole["manifest.json"]
    cut(tmp_path / "archive", tmp_path / "tiles")
    assert hashes(tmp_path / "tiles") == whole


def test_what_killed_runs_left_unfinished_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(tmp_path / "archive")
    cut(tmp_path / "archive", tmp_path / "tiles")
    whole = hashes(tmp_path / "tiles")
    for name in (
        "Images/.a b.0123abcd.tmp.tif",
        "SegmentationClass/.x.00000000.tmp.png",
        ".manifest.89abcdef.tmp.json",
    ):
        (tmp_path / "tiles" / name).touch()
    (tmp_path / "tiles" / "Images" / ".mine.tmp.png").touch()
    cut(tmp_path / "archive", tmp_path / "tiles")
    assert "3 unfinished files of a run that was killed removed" in capsys.readouterr().out
    (tmp_path / "tiles" / "Images" / ".mine.tmp.png").unlink()
    assert hashes(tmp_path / "tiles") == whole


# ---- labels of other values ----


def test_a_train_without_class_1_is_refused(tmp_path: Path) -> None:
    pairs = write_archive(tmp_path / "archive")
    for name, (_, classes) in pairs.items():
        value = 255 if name == "austin1" else 100  # of val
        save(tmp_path / f"archive/train/gt/{name}.tif", coloured(classes, value))
    for seen in ("the highest value is 100", "the tiles of an earlier run have none"):
        with pytest.raises(DataError, match=rf"above threshold = 127 \({seen}\)"):
            cut(tmp_path / "archive", tmp_path / "tiles")
    manifest = json.loads((tmp_path / "tiles" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["state"] == "in progress"
    assert not (tmp_path / "tiles" / "train.txt").exists()


def test_values_between_black_and_white_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_archive(tmp_path / "archive")
    cut(tmp_path / "archive", tmp_path / "white")
    assert "note" not in capsys.readouterr().out
    save(tmp_path / "archive/train/gt/austin15.tif", coloured(pairs["austin15"][1], 150))
    cut(tmp_path / "archive", tmp_path / "grey")
    assert re.search(r"note: 1 label with more values of 64 to 191 .+austin15\.tif: class 1", capsys.readouterr().out)
    assert hashes(tmp_path / "grey" / "Images") == hashes(tmp_path / "white" / "Images")


# ---- tables ----


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_names_a_corpus_and_a_recipe_of_it(name: str) -> None:
    archive = photographs.Archive.from_mapping(shipped_table("photographs", name, name), name)
    assert archive.tiles == {"corpus": name}
    recipe = build_config(read_config(ROOT / "configs" / f"{archive.recipe}.toml"), where=name)
    assert recipe.source["corpus"] == name


def own_table(path: Path, **keys: Any) -> Path:
    table = {"images": "i", "labels": "l", "image_suffixes": [".png"], "label_suffixes": [".png"], **keys}
    path.write_text(tomli_w.dumps({key: value for key, value in table.items() if value is not None}), encoding="utf-8")
    return path


def cut_own(tmp_path: Path, *flags: str, **keys: Any) -> None:
    """Cut the photographs a, b, c of one's own by a table."""
    for seed, name in enumerate("abc"):
        image, classes = draw(seed, 40, 40)
        save(tmp_path / "i" / f"{name}.png", image)
        save(tmp_path / "l" / f"{name}.png", classes)
    table = own_table(tmp_path / "own.toml", **keys)
    folders = ["--root", str(tmp_path), "--output", str(tmp_path / "tiles")]
    tile.main(["--table", str(table), *folders, f"--size={SIZE}", "--workers=0", *flags])


def test_photographs_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "notes.doc").touch()
    (tmp_path / "i" / ".hidden.png").touch()
    (tmp_path / "i" / "folder.png").mkdir()
    (tmp_path / "i" / "folder").mkdir()
    cut_own(tmp_path, "--val-fraction=0.3", threshold=0)
    assert len(hashes(tmp_path / "tiles" / "Images")) == 3 * 4
    printed = capsys.readouterr().out
    assert "/i: neither photograph nor label, passed over: .hidden.png and 2 more" in printed
    assert "next:" not in printed  # no recipe is known


@pytest.mark.parametrize(
    ("keys", "flags", "message"),
    [
        ({"imges": "x"}, (), "unknown key 'imges'; did you mean 'images'"),
        ({"labels": None}, (), "labels is missing"),
        ({"image_suffixes": []}, (), "image_suffixes must be a list of endings"),
        ({"val_fraction": 1.5}, (), "val_fraction must be a number between 0 and 1"),
        ({"val_pattern": "("}, (), "is no regular expression"),
        ({"val_pattern": "a", "val_fraction": 0.5}, (), "exclude each other"),
        ({"folders": {"train": "train"}}, (), "folders must be a table of train and val"),
        ({"folders": {"train": "x", "val": "y"}}, (), "images names {split} exactly where"),
        ({"no_data_colour": [255]}, (), r"no_data_colour must be \[red, green, blue\]"),
        ({"no_data": "drop"}, (), "no_data must be one of skip, ignore"),
        ({"tiles": {"corpus": "inri"}}, (), "did you mean 'inria'"),
        ({"tiles": {"images": "Images"}}, (), "tiles: one folder holds both splits; name train_list"),
        ({"tiles": {"corpus": "inria", "image_suffix": ".jpg"}}, (), "image_suffix must be .png or .tif"),
        ({"tiles": {**photographs.OWN_TILES, "decode": "threshold"}}, (), 'as decode = "mask" reads them; set it'),
        ({"tiles": {**photographs.OWN_TILES, "decode": "index", "ignore": [1]}}, (), "keep one of the two|set it"),
        ({}, (), "no rule of the split"),
        ({"val_pattern": "z"}, (), "no photograph is of val"),
        ({"val_pattern": "a"}, (), "a label of 0 and 1 has nothing above 127"),
        ({"val_pattern": "a"}, ("--no-data=skip",), "these photographs have no no_data_colour"),
    ],
)
def test_a_mistake_in_a_table(tmp_path: Path, keys: dict[str, Any], flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(MISTAKES, match=message) as caught:
        cut_own(tmp_path, *flags, **keys)
    assert "\n" not in str(caught.value)


# ---- mistakes ----


def remove_label(root: Path) -> None:
    (root / "train/gt/austin15.tif").unlink()


def remove_image(root: Path) -> None:
    (root / "train/images/austin15.tif").unlink()


def shorten_label(root: Path) -> None:
    save(root / "train/gt/austin15.tif", np.zeros((50, 60), np.uint8))


def shrink(root: Path) -> None:
    save(root / "train/images/austin15.tif", draw(0, 70, 20)[0])
    save(root / "train/gt/austin15.tif", np.zeros((20, 70), np.uint8))


def twin(root: Path) -> None:
    save(root / "train/images/austin15.tiff", draw(0, 70, 50)[0])


def truncate(root: Path) -> None:
    path = root / "train/images/austin15.tif"
    path.write_bytes(path.read_bytes()[:6000])


def empty_file(root: Path) -> None:
    (root / "train/images/austin15.tif").write_bytes(b"")


def deepen(root: Path) -> None:
    save(root / "train/images/austin15.tif", draw(0, 70, 50)[0].astype(np.uint16))


def grey(root: Path) -> None:
    save(root / "train/images/austin15.tif", draw(0, 70, 50)[1])


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (remove_label, (), r"austin15.tif: no label in \S+; 1 of 4 photographs have no label"),
        (remove_image, (), r"austin15.tif: no photograph in \S+; 1 of 4 labels have no photograph"),
        (shorten_label, (), r"images/austin15.tif is 70x50, its label \S+gt/austin15.tif 60x50"),
        (shrink, (), r"austin15.tif: 70x20 is smaller than a tile of 32; give --size less"),
        (twin, (), "have the same name; remove one"),
        (truncate, (), r"images/austin15.tif: cannot be read \(.+\); unpack or download it again"),
        (empty_file, (), r"images/austin15.tif: cannot be read \(.+\); unpack or download it again"),
        (deepen, (), "8-bit pixels are expected, these are uint16"),
        (grey, (), "has 1 channels instead of 3"),
        (nothing, ("--size=16",), "a tile has at least 32 pixels"),
        (nothing, ("--stride=33",), "choose 1 to 32, more would leave gaps"),
        (nothing, ("--stride=0",), "choose 1 to 32"),
        (nothing, ("--max-no-data=0.5",), "have no no_data_colour; leave them out"),
        (nothing, ("--seed=1",), "the split is not drawn; leave it out"),
        (nothing, ("--val-fraction=0",), "a share lies between 0 and 1"),
        (nothing, ("--val=missing.txt",), "cannot read the list of --val"),
        (nothing, ("--val={root}/val.txt",), r"val.txt, line 2: 'austin51' is no photograph .+did you mean austin1"),
        (nothing, ("--val={root}/val.txt", "--val-fraction=0.5"), "exclude each other"),
        (nothing, ("--table=own.toml",), "name either a shipped CORPUS or a --table FILE"),
        (nothing, ("--workers=-1",), "give a number of processes, 0 for none"),
        (nothing, ("--strid=3",), "unknown argument --strid .did you mean --stride"),
        (nothing, ("--output={root}/val.txt",), "val.txt.*: a file is there, where a folder should be"),
        (nothing, ("--output={root}/val.txt/below",), "val.txt.*: a file is there, where a folder should be"),
        (nothing, ("--root={root}/train",), r"no such folder; --root names the folder of the archive"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    script: Script,
    spoil: Callable[[Path], None],
    flags: tuple[str, ...],
    message: str,
) -> None:
    root = tmp_path / "archive"
    write_archive(root, options=STRIPS)
    (root / "val.txt").write_text("austin1\naustin51\n", encoding="utf-8")
    spoil(root)
    folders = ["--root", str(root), "--output", str(tmp_path / "tiles"), f"--size={SIZE}", "--workers=0"]
    code, _, errors = script("dataset.tile", "inria", *folders, *(flag.format(root=root) for flag in flags))
    lines = [line for line in errors.splitlines() if line and not line.startswith(("look:", "cut:"))]
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


@pytest.mark.parametrize("corpus", ["deepglobe", "massachusetts_roads"])
def test_a_truncated_photograph_is_named(tmp_path: Path, corpus: str) -> None:
    """JPEG and TIFF: GDAL would fill the rest of a JPEG with grey."""
    write_archive(tmp_path / "archive", corpus)
    path = tmp_path / "archive" / LAYOUTS[corpus][0].format("102", split="train")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"102.+cannot be read"):
        cut(tmp_path / "archive", tmp_path / "tiles", corpus=corpus)


def test_two_photographs_of_one_name_in_two_folders(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", "massachusetts_roads")
    for layout in LAYOUTS["massachusetts_roads"]:
        here, there = (tmp_path / "archive" / layout.format("102", split=split) for split in ("train", "valid"))
        there.write_bytes(here.read_bytes())
    with pytest.raises(DataError, match="have the same name; rename one, and its label"):
        cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")


def test_a_split_without_data_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", "massachusetts_roads")
    save(tmp_path / "archive/valid/sat/101.tiff", np.full((50, 70, 3), 255, np.uint8))
    with pytest.raises(DataError, match="no tile of val is left"):
        cut(tmp_path / "archive", tmp_path / "tiles", corpus="massachusetts_roads")
