"""The embedded benchmark: determinism, what occurs in it, how its domains differ, the folders it writes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from PIL import Image, ImageFilter

from dataset import streets, streets_photo
from dataset.streets_styles import SOURCE, TARGET, Style
from dataset.toml import DataError
from tests.conftest import Script

SIZE = (256, 128)
STYLES = (SOURCE, TARGET)
THINGS_IN_GROUPS = {"person": 11, "car": 13, "pole": 5, "sign": 7, "bicycle": 18}
OFFICIAL = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SMALL: dict[str, Any] = {
    "source_train": 3,
    "source_val": 2,
    "target_train": 4,
    "target_val": 3,
    "size": (64, 32),
    "workers": 0,
}


@cache
def gallery(style: int) -> tuple[np.ndarray, np.ndarray]:
    """Thirty-two pictures and labels of a style, rendered once."""
    scenes = [streets_photo.render(np.random.default_rng([5, style, i]), STYLES[style], SIZE) for i in range(32)]
    return np.stack([image for image, _ in scenes]), np.stack([label for _, label in scenes])


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_same_seed_renders_the_same_pixels_and_another_seed_does_not(style: Style) -> None:
    first, again, other = (streets_photo.render(np.random.default_rng(seed), style, (96, 48)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.5
    assert (first[1] != other[1]).mean() > 0.05


@pytest.mark.parametrize("size", [(256, 128), (97, 51), (320, 200)])
def test_shapes_and_types(size: tuple[int, int]) -> None:
    image, label = streets_photo.render(np.random.default_rng(0), TARGET, size)
    assert image.shape == (size[1], size[0], 3)
    assert label.shape == (size[1], size[0])
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(19), 255}


@pytest.mark.parametrize("style", [0, 1], ids=["source", "target"])
def test_every_class_is_common(style: int) -> None:
    _, labels = gallery(style)
    pixels = np.stack([np.bincount(label.ravel(), minlength=256)[:19] for label in labels])
    share = (pixels > 40).mean(axis=0)
    assert share.min() >= 0.2, dict(enumerate(share))


@pytest.mark.parametrize("style", [0, 1], ids=["source", "target"])
@pytest.mark.parametrize("name", THINGS_IN_GROUPS)
def test_several_instances_of_a_thing_share_a_picture(style: int, name: str) -> None:
    _, labels = gallery(style)
    most = 0
    for label in labels:
        components = cc3d.connected_components(label == THINGS_IN_GROUPS[name], connectivity=8)
        most = max(most, int((np.bincount(components.ravel())[1:] >= 20).sum()))
    assert most >= 3


def test_near_objects_cover_far_ones() -> None:
    """A rider's vehicle lies under the rider: rider pixels touch two-wheeler pixels nearly wherever one is seen."""
    _, labels = gallery(0)
    touching = 0
    seen = 0
    for label in labels:
        rider, wheels = label == 12, (label == 17) | (label == 18)
        if rider.sum() > 40:
            seen += 1
            touching += bool((rider[:-1] & wheels[1:]).any())
    assert seen >= 10
    assert touching / seen > 0.9


def noise(images: np.ndarray) -> float:
    """Median absolute difference to a 3x3 median, in the sky and on the road alike."""
    rest = [np.asarray(Image.fromarray(i).filter(ImageFilter.MedianFilter(3)), float) - i for i in images]
    return float(np.median(np.abs(rest)))


def saturation(images: np.ndarray) -> float:
    return float((images.max(axis=-1).astype(float) - images.min(axis=-1)).mean())


def test_the_domains_differ_in_appearance() -> None:
    source, target = gallery(0)[0][:12], gallery(1)[0][:12]
    assert noise(target) > noise(source) + 1
    assert saturation(source) > 1.6 * saturation(target)
    corner = np.s_[:, :16, :16]
    centre = np.s_[:, :16, 120:136]
    assert target[corner].mean() / target[centre].mean() < source[corner].mean() / source[centre].mean()


def test_the_domains_differ_in_class_frequency_but_share_the_layout() -> None:
    def shares(labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), minlength=256)[:19] / labels.size

    source, target = shares(gallery(0)[1]), shares(gallery(1)[1])
    ratio = target / source
    assert ratio.max() > 1.3
    assert ratio.min() < 0.8
    for labels in (gallery(0)[1], gallery(1)[1]):
        assert (labels[:, 100:112] == 0).mean() > 0.6
        assert (labels[:, 64:] == 10).mean() < 0.01


def test_the_camera_car_is_ignored_in_the_target_only() -> None:
    assert (gallery(1)[1][:, -1] == 255).mean() > 0.5
    assert (gallery(0)[1][:, -1] == 255).mean() < 0.05


def test_every_texture_and_palette_name_exists_in_both_styles() -> None:
    source, target = STYLES
    assert set(source.palette) == set(target.palette)
    for style in STYLES:
        assert {texture.tile for texture in style.textures.values()} <= set(streets_photo.tiles())


def test_tiles_are_standardised() -> None:
    for tile in streets_photo.tiles().values():
        assert tile.shape == (streets_photo.TILE, streets_photo.TILE)
        assert abs(tile.mean()) < 1e-4
        assert abs(tile.std() - 1) < 1e-3


def test_the_folders_are_the_official_ones(tmp_path: Path) -> None:
    streets.write_world(tmp_path, seed=1, **SMALL)
    written = set(files(tmp_path))
    cities = [
        ("train", "ahornstadt", 1),
        ("train", "birkenau", 1),
        ("train", "lindenfels", 1),
        ("train", "ahornstadt", 2),
    ]
    cities += [("val", "eschenburg", 1), ("val", "weidental", 1), ("val", "eschenburg", 2)]
    expected = {f"gta5_deeplab/{folder}/{i:05d}.png" for folder in ("images", "labels") for i in range(1, 6)}
    for split, city, number in cities:
        stem = f"{split}/{city}/{city}_000000_{number:06d}"
        expected |= {
            f"Cityscapes/leftImg8bit/{stem}_leftImg8bit.png",
            f"Cityscapes/gtFine/{stem}_gtFine_labelIds.png",
        }
    assert written == expected | {"gta5_deeplab/train.txt", "gta5_deeplab/val.txt", "world.json"}
    assert (tmp_path / "gta5_deeplab/train.txt").read_text().split() == [
        "00001.png",
        "00002.png",
        "00003.png",
    ]
    assert (tmp_path / "gta5_deeplab/val.txt").read_text().split() == ["00004.png", "00005.png"]
    assert json.loads((tmp_path / "world.json").read_text())["target_train"] == 4


def test_the_files_hold_what_render_returns_in_official_ids(tmp_path: Path) -> None:
    streets.write_world(tmp_path, seed=9, **SMALL)
    image, label = streets_photo.render(np.random.default_rng([9, 1, 1, 1]), TARGET, (64, 32))
    stem = "val/weidental/weidental_000000_000001"
    with Image.open(tmp_path / f"Cityscapes/leftImg8bit/{stem}_leftImg8bit.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)
    with Image.open(tmp_path / f"Cityscapes/gtFine/{stem}_gtFine_labelIds.png") as picture:
        assert picture.mode == "L"
        ids = np.asarray(picture)
    assert set(np.unique(ids)) <= {*OFFICIAL, 1, 4}
    # Cityscapes numbers its 19 evaluated classes in the order of their official ids.
    for train_id, official in enumerate(OFFICIAL):
        np.testing.assert_array_equal(ids == official, label == train_id)


def test_a_picture_depends_on_its_place_only(tmp_path: Path) -> None:
    """Not on how many pictures there are, nor on how many processes paint them."""
    few = files(streets.write_world(tmp_path / "few", seed=2, **SMALL))
    counts = {**SMALL, "source_train": 5, "target_train": 8, "target_val": 5, "workers": 2}
    many = files(streets.write_world(tmp_path / "many", seed=2, **counts))
    same = [name for name in few if "Cityscapes" in name]
    assert same
    assert all(few[name] == many[name] for name in same)
    for train in range(1, 4):
        assert few[f"gta5_deeplab/images/{train:05d}.png"] == many[f"gta5_deeplab/images/{train:05d}.png"]
    for val in range(2):
        assert few[f"gta5_deeplab/labels/{4 + val:05d}.png"] == many[f"gta5_deeplab/labels/{6 + val:05d}.png"]


def test_a_finished_world_is_left_alone_and_other_parameters_are_refused(tmp_path: Path) -> None:
    streets.write_world(tmp_path, seed=1, **SMALL)
    victim = tmp_path / "gta5_deeplab/images/00001.png"
    victim.write_bytes(b"mine")
    streets.write_world(tmp_path, seed=1, **SMALL)
    assert victim.read_bytes() == b"mine"
    with pytest.raises(ValueError, match=r"world\.json.*seed 1 there, 2 asked") as caught:
        streets.write_world(tmp_path, seed=2, **SMALL)
    assert "\n" not in str(caught.value)


def test_an_interrupted_world_is_completed(tmp_path: Path) -> None:
    whole = files(streets.write_world(tmp_path / "whole", seed=1, **SMALL))
    broken = streets.write_world(tmp_path / "broken", seed=1, **SMALL)
    (broken / "world.json").rename(broken / "world.json.partial")
    (broken / "gta5_deeplab/labels/00002.png").unlink()
    with pytest.raises(ValueError, match="seed"):
        streets.write_world(broken, seed=3, **SMALL)
    streets.write_world(broken, seed=1, **SMALL)
    assert files(broken) == whole


def test_a_foreign_corpus_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "Cityscapes").mkdir()
    with pytest.raises(ValueError, match="was not written by"):
        streets.write_world(tmp_path, seed=1, **SMALL)
    assert files(tmp_path) == {}


def test_the_command_line(tmp_path: Path) -> None:
    counts = ("--source", "--source-val", "--target", "--target-val")
    arguments = ["--seed=1", *(f"{count}=1" for count in counts), "--size=64,32", "--workers=0"]
    streets.main([str(tmp_path), *arguments])
    assert (tmp_path / "world.json").is_file()
    with pytest.raises(DataError, match="seed 1 there, 2 asked"):
        streets.main([str(tmp_path), *arguments, "--seed", "2"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--size", "256"), "--size: size '256': give width,height"),
        (("--workers", "-1"), "--workers: '-1' is not a whole number"),
        (("--seed", "-1"), "--seed: '-1' is not a whole number"),
        (("--targe", "3"), "unknown argument --targe (did you mean --target?)"),
    ],
)
def test_a_mistake_is_one_line(script: Script, arguments: tuple[str, ...], reason: str) -> None:
    code, printed, errors = script("dataset.streets", "world", *arguments)
    assert (code, printed) == (2, "")
    [line] = errors.splitlines()
    assert reason in line


@pytest.mark.parametrize("content", ["x", "[]"])
def test_a_damaged_record_of_a_world_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "world.json").write_text(content)
    with pytest.raises(DataError, match=r"world\.json is damaged or was not written by dataset\.streets"):
        streets.write_world(tmp_path, seed=1, **SMALL)
