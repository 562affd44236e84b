"""predict.py and what it is made of: inputs and their names, pictures of every kind, products, videos."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset import pictures
from dataset.corpora import DataError
from dataset.doctor_files import image_facts
from dataset.images import read_image
from dataset.inputs import _names, find_inputs
from dataset.labels import ClassTable, load_class_table
from dataset.pictures import WholePicture, WindowedPicture, open_picture
from model.deeplab import build_network
from model.weights import write_weights
from tests.conftest import Script
from tests.worlds import own_settings, photograph, scene, write_own, write_settings
from utils.config import build_config
from utils.prediction import Predictor, Sight, TooLargeError
from utils.products import Look, Part, Products
from utils.recorded import recorded_settings
from utils.tiling import Zoom

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
CLASSES = {
    "names": ["road", "sky", "car", "person"],
    "stuff": [0, 1],
    "things": [2, 3],
    "palette": [[128, 64, 128], [70, 130, 180], [0, 0, 142], [220, 20, 60]],
}


# ---- which files ----


def touched(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def named(root: Path, *given: str, without: str = "out") -> tuple[dict[str, str], list[str]]:
    """Name -> file below root, of what is given below root; and the notes."""
    inputs, notes = find_inputs([str(root / entry) for entry in given], without=root / without)
    return {item.name: item.path.relative_to(root).as_posix() for item in inputs}, notes


def test_a_folder_is_everything_below_it(tmp_path: Path) -> None:
    touched(tmp_path, "in/b.PNG", "in/sub/a.jpg", "in/.hidden.png", "in/notes.txt", "in/x.png/inside.bmp", "in/v.mp4")
    found, notes = named(tmp_path, "in")
    assert found == {"b": "in/b.PNG", "sub/a": "in/sub/a.jpg", "v": "in/v.mp4", "x.png/inside": "in/x.png/inside.bmp"}
    assert notes == [f"{tmp_path}/in: 1 file of other kinds passed over, first notes.txt"]


def test_patterns_and_files(tmp_path: Path) -> None:
    touched(tmp_path, "a1.png", "a2.png", "b.png", "deep/er/c.jpg", "photo.dat", "a[1].png")
    assert named(tmp_path, "a?.png")[0] == {"a1": "a1.png", "a2": "a2.png"}
    assert named(tmp_path, "**/*.jpg")[0] == {"deep/er/c": "deep/er/c.jpg"}
    assert named(tmp_path, "photo.dat")[0] == {"photo": "photo.dat"}  # a file that is named may be called anything
    assert named(tmp_path, "a[1].png")[0] == {"a[1]": "a[1].png"}  # what exists is no pattern
    found, notes = named(tmp_path, "b.png", "*.png")
    assert list(found) == ["b", "a1", "a2", "a[1]"]
    assert notes == ["1 file given more than once, predicted once"]


def test_names_do_not_collide(tmp_path: Path) -> None:
    touched(tmp_path, "p/a.jpg", "p/a.png", "q/a.jpg", "q/c.jpg", "A/c.JPG")
    found, _ = named(tmp_path, "p")
    assert found == {"a.jpg": "p/a.jpg", "a.png": "p/a.png"}
    found, _ = named(tmp_path, "p/a.jpg", "q")
    assert found == {"p/a.jpg": "p/a.jpg", "q/a.jpg": "q/a.jpg", "c": "q/c.jpg"}
    found, _ = named(tmp_path, "q/c.jpg", "A")
    assert found == {"q/c.jpg": "q/c.jpg", "A/c.JPG": "A/c.JPG"}  # on some disks their names would be one


@given(st.lists(st.sampled_from(["a.png", "a.jpg", "A.png", "b/a.png", "a/b.png", "a-2.png"]), min_size=1, max_size=8))
@settings(deadline=None)
def test_names_are_always_unique(relatives: list[str]) -> None:
    parts = [PurePosixPath(relative) for relative in relatives]
    names = _names([Path("same", part) for part in parts], parts)
    assert len({name.casefold() for name in names}) == len(relatives)


def test_results_are_no_inputs(tmp_path: Path) -> None:
    touched(tmp_path, "a.png", "out/overlay/a.png")
    found, notes = named(tmp_path, ".")
    assert found == {"a": "a.png"}
    assert "where results go, passed over" in notes[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("no.png", "no such file or folder"),
        ("*.gif", "the pattern matches no file"),
        ("empty", "no image or video in it$"),
        ("out", "no image or video in it but in .*out, where results go; name another --save"),
        ("a" * 300 + ".png", "File name too long"),
    ],
)
def test_an_input_that_means_nothing(tmp_path: Path, given: str, line: str) -> None:
    (tmp_path / "empty").mkdir()
    touched(tmp_path, "out/a.png")
    with pytest.raises(DataError, match=re.escape(given) + f".*{line}"):
        named(tmp_path, given)


@pytest.mark.parametrize("given", ["in", "in/**/*.png", "in/*/a.png", "in/**", "in/s*/*"])
def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    touched(tmp_path, "in/b.png", "in/sub/a.png", "in/other/a.png")
    assert named(tmp_path, given)[0]
    closed, scandir = str(tmp_path / "in/sub"), os.scandir

    def scan(folder: Any) -> Any:
        if os.fspath(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "access", lambda folder, _: os.fspath(folder).rstrip("/") != closed)
    with pytest.raises(DataError, match=rf"{closed}/?: the folder cannot be read"):
        named(tmp_path, given)


def test_an_empty_word_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="an input is empty"):
        find_inputs([""], without=tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_links_in_a_folder(tmp_path: Path) -> None:
    """Nobody may ever write to a pipe; a link that leads nowhere is named as unreadable later."""
    touched(tmp_path, "in/a.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    found, notes = named(tmp_path, "in")
    assert found == {"a": "in/a.png", "gone": "in/gone.png"}
    assert notes == [f"{tmp_path}/in: 1 file of other kinds passed over, first pipe.png"]


# ---- odd files: both readers ----


def of(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def sixteen(channels: int) -> bytes:
    deep = RAMP.astype(np.uint16) * 256 + 77
    return cv2.imencode(".png", deep if channels == 1 else np.dstack([deep] * channels))[1].tobytes()


def palette() -> Image.Image:
    image = Image.fromarray(RAMP)
    image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    return image


def grey_frames() -> list[Image.Image]:
    return [Image.fromarray(RAMP), Image.fromarray(255 - RAMP), Image.fromarray(RAMP // 2)]


def animated(suffix: str, **options: Any) -> bytes:
    first, *rest = grey_frames()
    return of(first, suffix, save_all=True, append_images=rest, **options)


RIGHT: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: of(Image.fromarray(RAMP).convert("RGB"), "PNG"),
    "grey.png": lambda: of(Image.fromarray(RAMP), "PNG"),
    "grey_alpha.png": lambda: of(Image.fromarray(RAMP).convert("LA"), "PNG"),
    "rgba.png": lambda: of(Image.fromarray(RAMP).convert("RGBA"), "PNG"),
    "clear.png": lambda: of(Image.merge("RGBA", [*[Image.fromarray(RAMP)] * 3, Image.fromarray(RAMP)]), "PNG"),
    "palette.png": lambda: of(palette(), "PNG"),
    "palette_clear.png": lambda: of(palette(), "PNG", transparency=bytes(range(256))),
    "palette_one_clear.png": lambda: of(palette(), "PNG", transparency=7),
    "grey16.png": lambda: sixteen(1),
    "rgb16.png": lambda: sixteen(3),
    "rgba16.png": lambda: sixteen(4),
    "grey16.pgm": lambda: b"P5 16 16 65535\n" + (RAMP.astype(np.uint16) * 256 + 77).astype(">u2").tobytes(),
    "grey16.tif": lambda: of(Image.fromarray(RAMP.astype(np.uint16) * 256 + 77), "TIFF"),
    "grey.bmp": lambda: of(Image.fromarray(RAMP), "BMP"),
    "named.jpg": lambda: of(Image.fromarray(RAMP), "PNG"),  # the content counts, not the name
    "moving.gif": lambda: animated("GIF"),
    "moving.png": lambda: animated("PNG"),
    "moving.webp": lambda: animated("WEBP", lossless=True),
    "pages.tif": lambda: animated("TIFF"),
    "one.png": lambda: of(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"),
}
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "it is empty"),
    "text.jpg": (lambda: b"not a picture at all", "not an image file of a known kind"),
    "drawing.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image file of a known kind"),
    "cut.png": (lambda: of(Image.effect_noise((99, 99), 90), "PNG")[:-900], "not a readable image"),
    "cut.jpg": (lambda: of(Image.effect_noise((99, 99), 90), "JPEG")[:-900], "not a readable image .*truncated"),
    "float.tif": (lambda: of(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "32-bit pixels"),
    "bomb.png": (lambda: b"\x89PNG\r\n\x1a\n" + header(60000, 60000) + b"\0\0\0\1IDAT", "exceeds limit .*or as a TIFF"),
}


def header(width: int, height: int) -> bytes:
    """The first chunk of a PNG of any size, and nothing after it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def pixels_of(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """All of a picture, and its notes."""
    with open_picture(path) as picture:
        width, height = picture.size
        return picture.read((0, 0, width, height), (width, height)), picture.notes


@pytest.mark.parametrize("name", RIGHT)
def test_odd_files_are_read_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(RIGHT[name]())
    expected = np.full((1, 1, 3), 9) if name == "one.png" else RAMP[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    found, notes = pixels_of(path)
    np.testing.assert_array_equal(found, expected)
    several = name.startswith(("moving", "pages"))
    assert notes == ((f"{path} holds 3 images; the first is used",) if several else ())


@pytest.mark.parametrize("name", WRONG)
def test_files_that_cannot_be_read_have_one_clear_line(tmp_path: Path, name: str) -> None:
    content, line = WRONG[name]
    path = tmp_path / name
    path.write_bytes(content())
    for reader in (read_image, open_picture):
        with pytest.raises(DataError, match=re.escape(str(path)) + f": .*{line}") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_a_folder_named_like_an_image_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    for reader in (read_image, open_picture):
        with pytest.raises(DataError, match=r"x\.png: cannot read the file"):
            reader(tmp_path / "x.png")


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = pixels_of(tmp_path / "red.jpg")[0][4, 4].astype(int)
    assert red > 200
    assert max(green, blue) < 50


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_seen_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    """A gradient that tells its corners apart, stored as a camera of any posture would store it."""
    upright = Image.fromarray(np.add.outer(np.arange(0, 128, 4), np.arange(0, 64, 4)).astype(np.uint8)).convert("RGB")
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that undoes it
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x{suffix}", exif=exif, quality=95)
    found, _ = pixels_of(tmp_path / f"x{suffix}")
    assert found.shape == (32, 16, 3)
    assert np.abs(found.astype(int) - np.asarray(upright)).max() < 12
    assert open_picture(tmp_path / f"x{suffix}").turned == (orientation != 1)
    assert image_facts(tmp_path / f"x{suffix}")[0][::3] == (stored.size, orientation)
    learnt = np.asarray(read_image(tmp_path / f"x{suffix}")).astype(int)  # labels are drawn on the pixels as stored
    assert learnt.shape == np.asarray(stored).shape
    assert np.abs(learnt - np.asarray(stored)).max() < 12


def test_a_damaged_orientation_is_passed_over(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert pixels_of(tmp_path / "x.jpg")[0].shape == (4, 8, 3)


def test_a_picture_that_pillow_warns_of_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    (tmp_path / "x.jpg").write_bytes(RIGHT["rgb.png"]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels_of(tmp_path / "x.jpg")[0].shape == (16, 16, 3)


# ---- pictures of any size ----


def write_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    height, width, count = pixels.shape
    place = {"transform": rasterio.Affine(2, 0, 100, 0, -2, 200), "crs": "EPSG:32633"}
    layout = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **layout, **place, **options) as file:
        file.write(np.moveaxis(pixels, 2, 0))


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(pictures, "_SLAB", 500)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_large_tiff_is_read_by_windows(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, channels), dtype=np.uint8)
    write_tiff(tmp_path / "x.tif", pixels, photometric="RGB" if channels == 3 else "MINISBLACK")
    expected = pixels[..., :3] if channels >= 3 else pixels.repeat(3, axis=2)
    with open_picture(tmp_path / "x.tif") as picture:
        assert isinstance(picture, WindowedPicture)
        assert picture.size == (64, 48)
        np.testing.assert_array_equal(picture.read((5, 7, 45, 40), (40, 33)), expected[7:40, 5:45])
        shrunk = Image.fromarray(np.ascontiguousarray(expected[7:40, 5:45])).resize((20, 17), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(picture.read((5, 7, 45, 40), (20, 17)), np.asarray(shrunk))
        whole = picture.read((0, 0, 64, 48), (8, 6))  # averaged by blocks on the way
        means = expected.reshape(6, 8, 8, 8, 3).mean(axis=(1, 3))
        assert np.abs(whole - means).max() < 25
        assert any("read by windows" in note for note in picture.notes)
        assert any("the first three are used" in note for note in picture.notes) == (channels == 4)


@pytest.mark.usefixtures("small_limit")
def test_a_large_tiff_of_other_pixels_is_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "deep.tif", np.zeros((48, 64, 3), dtype=np.uint16))
    with pytest.raises(DataError, match=r"deep\.tif: 8-bit pixels are expected"):
        open_picture(tmp_path / "deep.tif")


def test_every_product(tmp_path: Path) -> None:
    classes = ClassTable.from_mapping({**CLASSES, "label_ids": [7, 23, 26, 24]})
    lookup = np.zeros(256, dtype=np.uint8)
    lookup[:4] = [7, 23, 26, 24]
    look = Look(classes.colours, lookup, opacity=0.25)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (6, 5)).astype(np.uint8)
    confidence = rng.random((6, 5), dtype=np.float32)
    photo = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    kinds = ("overlay", "labels", "colour", "confidence", "label_ids")
    georeference = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 100, 0, -2, 200)}
    for place in (None, georeference):
        products = Products(tmp_path, "a/b.c", (5, 6), kinds, look, place)
        for rows in (slice(0, 4), slice(4, 6)):
            products.add(Part(rows, labels[rows], confidence[rows], photo[rows]))
        files = products.close()
        suffix = ".tif" if place else ".png"
        assert files == {kind: str(tmp_path / kind / "a" / f"b.c{suffix}") for kind in kinds}
        read = {kind: np.asarray(Image.open(file)) for kind, file in files.items()}
        np.testing.assert_array_equal(read["labels"], labels)
        np.testing.assert_array_equal(read["label_ids"], lookup[labels])
        np.testing.assert_array_equal(read["confidence"], np.rint(confidence * 255))
        colours = np.asarray(classes.palette)[labels]
        np.testing.assert_array_equal(np.asarray(Image.open(files["colour"]).convert("RGB")), colours)
        assert np.abs(read["overlay"] - (0.75 * photo + 0.25 * colours)).max() <= 1
    with rasterio.open(files["labels"]) as file:
        assert (file.crs, file.transform) == (georeference["crs"], georeference["transform"])
    products = Products(tmp_path / "gone", "x", (5, 6), kinds, look, georeference)
    products.discard()
    assert not [path for path in (tmp_path / "gone").rglob("*") if path.is_file()]


# ---- the script ----


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a tiny network that know where they come from, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = build_network("resnet18", num_classes=4, width=4)
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(3)  # else every class is as likely as the others
    classes = load_class_table({**CLASSES, "label_ids": [7, 23, 26, 24]})
    config = build_config(own_settings(tmp_path), where="test")
    record = {
        "architecture": network.architecture(),
        "classes": classes.to_mapping(),
        "input": {"order": "RGB", "mean": [100.0, 110.0, 120.0], "std": [50.0, 50.0, 50.0]},
        "config": config.to_dict(),
    }
    write_weights(tmp_path / "w.pth", network.state_dict(), record)
    return tmp_path / "w.pth"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph larger than the network's input."""
    rng = np.random.default_rng(3)
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph(rng, scene(rng, (128, 96), range(4)), shift=0)).save(tmp_path / "in" / "photo.png")
    return tmp_path / "in" / "photo.png"


def predicted(folder: str, kind: str = "labels", name: str = "photo.png") -> np.ndarray:
    with Image.open(Path(folder, kind, name)) as image:
        return np.asarray(image)


def test_one_picture_needs_its_weights_alone(script: Script, weights: Path, photo: Path) -> None:
    code, out, _ = script("predict.py", "in", "--restore-from", "w.pth", "--save", "out", "--cpu", "--json", "r.json")
    assert code == 0
    assert "no --config: as recorded with the weights in w.pth" in out
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert report["failed"] == []
    assert set(report["predicted"][0]["files"]) == {"overlay", "labels", "colour", "confidence", "label_ids"}
    labels, ids, confidence = (predicted("out", kind) for kind in ("labels", "label_ids", "confidence"))
    assert labels.shape == (96, 128)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(ids, np.array([7, 23, 26, 24])[labels])
    assert confidence.min() >= 255 // 4
    assert predicted("out", "overlay").shape == (96, 128, 3)


def test_turned_photographs_are_said(script: Script, weights: Path, photo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as stored:
        stored.save("in/side.jpg", exif=exif)
    code, out, _ = script("predict.py", "in", "--restore-from", "w.pth", "--save", "out", "--cpu", "--json", "r.json")
    assert code == 0
    assert "note: 1 picture turned upright, as EXIF says; training and evaluation read pixels as stored" in out
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert [entry["turned"] for entry in report["predicted"]] == [False, True]
    assert predicted("out", name="side.png").shape == (128, 96)


def test_what_a_killed_process_left_is_removed(script: Script, weights: Path, photo: Path) -> None:
    left = [Path("out/labels/sub/.photo.0123abcd.tmp.png"), Path("out/overlay/.drive.0123abcd.tmp.mp4")]
    for path in (*left, Path("out/notes/.mine.0123abcd.tmp.png")):
        path.parent.mkdir(parents=True)
        path.touch()
    code, out, _ = script("predict.py", "in", "--restore-from", "w.pth", "--save", "out", "--cpu")
    assert code == 0
    assert "note: out: 2 unfinished files of a process that was killed are removed" in out
    assert [path.name for path in Path("out").rglob(".*")] == [".mine.0123abcd.tmp.png"]


def test_it_predicts_what_the_evaluator_predicts(script: Script, weights: Path, tmp_path: Path) -> None:
    """The same classes, network and input, by default and with views; the evaluator needs no --config either."""
    write_own(tmp_path, images=1, size=(96, 72))
    common = ("--restore-from", "w.pth", "--cpu")
    (tmp_path / "config.toml").touch()
    pictures = ("images/v0.png", "images/v1.png", "--write", "labels")
    for views in ((), ("--scales", "0.75,1", "--flip")):
        assert script("predict.py", *pictures, *common, "--save", "out", *views)[0] == 0
        code, out, _ = script("evaluate_cityscapes.py", *common, "--save", "eval", "--num-workers", "0", *views)
        assert code == 0, out
        for name in ("v0.png", "v1.png"):
            np.testing.assert_array_equal(predicted("out", name=name), np.asarray(Image.open(Path("eval", name))))
    assert re.search(r"^next: python compute_iou\.py \S+labels eval --config config\.toml", out, flags=re.MULTILINE)
    Path("config.toml").unlink()
    code, out, _ = script("evaluate_cityscapes.py", *common, "--save", "eval", "--num-workers", "0")
    assert "next: compute_iou.py" in out
    assert "with --config" in out


def test_views_change_the_prediction(script: Script, weights: Path, photo: Path) -> None:
    common = ("in", "--restore-from", "w.pth", "--cpu", "--write", "confidence")
    for folder, views in (("a", ()), ("b", ("--flip",)), ("c", ("--scales", "0.5,1"))):
        assert script("predict.py", *common, "--save", folder, *views)[0] == 0
    assert sorted(path.name for path in Path("a").iterdir()) == ["confidence"]
    first, second, third = (predicted(folder, "confidence").astype(int) for folder in "abc")
    assert np.abs(first - second).max() > 0
    assert np.abs(first - third).max() > 0


def test_one_tile_is_the_whole(script: Script, weights: Path, photo: Path) -> None:
    common = ("in", "--restore-from", "w.pth", "--cpu", "--write", "labels", "--scale", "1")
    for folder, tiles in (("whole", ()), ("one", ("--tile", "128,96")), ("many", ("--tile", "96,96"))):
        assert script("predict.py", *common, "--save", folder, *tiles)[0] == 0
    np.testing.assert_array_equal(predicted("whole"), predicted("one"))
    assert predicted("many").shape == (96, 128)
    assert (predicted("many") != predicted("whole")).any()  # the network sees less at once


def test_a_large_tiff_becomes_tiffs(
    script: Script, weights: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.asarray(Image.open(photo))
    write_tiff(Path("city.tif"), pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    code, out, _ = script(
        "predict.py", "city.tif", "--restore-from", "w.pth", "--save", "out", "--cpu", "--scale", "1", "--tile", "64,64"
    )
    assert code == 0
    assert "note: city.tif is large, 128x96: read by windows" in out
    with rasterio.open("out/labels/city.tif") as file:
        labels = file.read(1)
        assert file.crs == "EPSG:32633"
    Image.fromarray(pixels).save("city.bmp")
    monkeypatch.undo()
    monkeypatch.chdir(weights.parent)
    script(
        "predict.py", "city.bmp", "--restore-from", "w.pth", "--save", "b", "--cpu", "--scale", "1", "--tile", "64,64"
    )
    np.testing.assert_array_equal(labels, predicted("b", name="city.png"))


def test_odd_files_one_after_the_other(script: Script, weights: Path, tmp_path: Path) -> None:
    """What can be read is predicted at its own size; the rest is named at the end, each in one line."""
    (tmp_path / "odd").mkdir()
    for name, content in RIGHT.items():
        (tmp_path / "odd" / name).write_bytes(content())
    for name, (content, _) in WRONG.items():
        (tmp_path / "odd" / name).write_bytes(content())
    (tmp_path / "odd" / "not_a_film.mp4").write_bytes(b"nothing to see")
    code, out, err = script(
        *("predict.py", "odd", "odd/drawing.svg", "--restore-from", "w.pth", "--save", "out", "--cpu"),
        *("--json", "r.json", "--write", "labels,overlay"),
    )
    assert code == 1
    report = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert len(report["predicted"]) == len(RIGHT)
    for entry in report["predicted"]:
        side = 1 if entry["input"].endswith("one.png") else 16
        assert np.asarray(Image.open(entry["files"]["labels"])).shape == (side, side)
    wrong = [*WRONG, "not_a_film.mp4"]
    assert sorted(Path(entry["input"]).name for entry in report["failed"]) == sorted(wrong)
    assert f"error: {len(wrong)} of {len(wrong) + len(RIGHT)} inputs could not be predicted (other" in err
    for name in wrong:
        assert len(re.findall(rf"^  odd/{re.escape(name)}: ", err, flags=re.MULTILINE)) == 1
    assert "Traceback" not in err
    assert "moving.gif holds 3 images; the first is used" in out


def write_film(path: Path, count: int, size: tuple[int, int] = (64, 48)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, size)
    for index in range(count):
        writer.write(np.full((size[1], size[0], 3), 40 * index, dtype=np.uint8))
    writer.release()


def test_a_film_becomes_a_film(script: Script, weights: Path, tmp_path: Path) -> None:
    write_film(tmp_path / "drive.avi", count=3)
    common = ("drive.avi", "--restore-from", "w.pth", "--save", "out", "--cpu", "--json", "r.json")
    assert script("predict.py", *common)[0] == 0
    files = json.loads(Path("r.json").read_text(encoding="utf-8"))["predicted"][0]["files"]
    assert files == {"film": "out/overlay/drive.mp4"}
    film = cv2.VideoCapture("out/overlay/drive.mp4")
    assert (film.get(cv2.CAP_PROP_FRAME_COUNT), film.get(cv2.CAP_PROP_FPS)) == (3, 10)
    assert film.read()[1].shape == (48, 64, 3)
    assert sorted(path.name for path in Path("out/overlay").iterdir()) == ["drive.mp4"]

    assert script("predict.py", *common, "--frames", "--write", "labels,confidence")[0] == 0
    assert sorted(path.name for path in Path("out/labels/drive").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    assert predicted("out", "labels", "drive/000002.png").shape == (48, 64)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "--save DIR is missing"),
        (("--save", "o", "--write", "overlya"), "did you mean overlay"),
        (("--save", "o", "--size", "64,48", "--scale", "1"), "--size and --scale exclude each other"),
        (("--save", "o", "--tile", "8,8"), "--tile 8,8: no side may be shorter than 32"),
        (("--save", "o", "--overlap", "0.9"), "--overlap must lie within 0..0.5"),
        (("--save", "o", "--scale", "0"), "--scale must lie within"),
        (("--save", "o", "--opacity", "2"), "--opacity must lie within"),
        (("--save", "o", "--scales", "1,1"), "scales must be one or more different numbers"),
        (("--save", "o", "--scales", "big"), "not of the form X,X"),
        (
            ("--save", "o", "more.png"),
            "unexpected more.png: what is no flag stands together, before or after the flags",
        ),
        (("--save", "o", "--restore-from", "nowhere"), "nowhere: neither a weights file nor the folder of a run"),
        (("--save", "w.pth"), "--save w.pth: no folder can be there (File exists)"),
        (("--save", "w.pth/out"), "--save w.pth/out: no folder can be there (Not a directory)"),
    ],
)
def test_mistakes_have_one_line(script: Script, weights: Path, photo: Path, flags: tuple[str, ...], line: str) -> None:
    code, _, err = script("predict.py", "in", "--restore-from", "w.pth", "--cpu", *flags)
    assert code == 2
    assert re.search(rf"^error: .*{re.escape(line)}", err, flags=re.MULTILINE)


def test_a_missing_input_is_a_mistake(script: Script, weights: Path, photo: Path) -> None:
    code, _, err = script("predict.py", "in", "missing.png", "--restore-from", "w.pth", "--save", "out", "--cpu")
    assert (code, err) == (2, "error: missing.png: no such file or folder\n")
    assert not Path("out").exists()


def test_weights_of_other_origin_need_a_configuration(script: Script, weights: Path, photo: Path) -> None:
    weights.with_suffix(".json").unlink()
    common = ("in", "--restore-from", "w.pth", "--save", "out", "--cpu")
    code, _, err = script("predict.py", *common)
    assert code == 2
    assert "w.pth predicts 4 classes, the class table has 19; name the configuration" in err
    write_settings(Path("own.toml"), own_settings(Path()))
    assert script("predict.py", *common, "--config", "own.toml")[0] == 0
    code, _, err = script("predict.py", *common, "--config", "own.toml", "--write", "label_ids")
    assert code == 2
    assert "the class table has no label_ids" in err


def test_scores_that_are_not_numbers_are_no_classes(script: Script, weights: Path, photo: Path) -> None:
    state = torch.load(weights)
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, "nan.pth")
    write_settings(Path("own.toml"), own_settings(Path()))
    code, _, err = script(
        "predict.py", "in", "--restore-from", "nan.pth", "--save", "o", "--cpu", "--config", "own.toml"
    )
    assert code == 1
    assert re.search(r"^error: in/photo\.png: the network's scores are not numbers", err, flags=re.MULTILINE)
    assert not [path for path in Path("o").rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
def test_too_little_memory_on_the_host_is_one_line(error: Exception) -> None:
    def show(images: torch.Tensor) -> torch.Tensor:
        raise error

    predictor = Predictor(show, torch.device("cpu"), Sight(Zoom((64, 64))))
    with pytest.raises(TooLargeError, match=r"x: 64x64 at once are too much .* give a smaller --tile"):
        list(predictor.parts(WholePicture(Image.new("RGB", (8, 8))), "x"))


def test_what_is_recorded(weights: Path, tmp_path: Path) -> None:
    found = recorded_settings(str(weights))
    assert found is not None
    path, settings = found
    assert path == ""
    assert settings["target"]["size"] == [64, 48]
    assert settings["classes"]["label_ids"] == [7, 23, 26, 24]
    assert "run" not in settings
    (tmp_path / "config.toml").touch()
    assert (recorded_settings(str(weights)) or ("",))[0] == str(tmp_path / "config.toml")
    assert recorded_settings(str(tmp_path / "absent.pth")) is None
    assert recorded_settings(str(tmp_path)) is None  # a folder without a run
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    assert recorded_settings(str(tmp_path / "text.pth")) is None
