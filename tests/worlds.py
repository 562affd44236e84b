"""Tiny data sets and configurations on disk, for tests of configuration, engine and scripts.

`write_own` makes data of one's own (four classes, lists, train ids), `write_official` GTA5 and Cityscapes in their
official layout, `write_corpus` any corpus of the paper in its own. All draw blobs whose colour tells the class, so that
a few updates learn something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tomli_w
from PIL import Image

NAMES = ("road", "sky", "car", "person")
LABEL_IDS = (7, 11, 23, 24, 26, 33)  # official ids: road, building, sky, person, car, bicycle
SYNTHIA_IDS = (3, 1, 10, 8, 21, 22)  # SYNTHIA's ids: road, sky, person, car, wall, and one that is ignored
TILES = {  # corpus -> suffix of images, ending of the folders' names, value of class 1 in the masks
    "inria": (".tif", "", 255),
    "massachusetts_buildings": (".png", "", 1),
    "deepglobe": (".png", "", 255),
    "massachusetts_roads": (".png", "_cleannull", 255),
}
TINY_NETWORK = {"name": "resnet18", "width": 4, "discriminator_width": 4, "restore_from": "random"}
ALIGNED = {"seg": 1.0, "adv": 1e-2, "stuff": 1e-1, "instances": 1e-1}
SELF_TRAINED = {**ALIGNED, "pseudo": 1.0, "separation": 1e-1, "aggregation": 1e-1}

# ---- data ----


def scene(rng: np.random.Generator, size: tuple[int, int], ids: Sequence[int]) -> np.ndarray:
    """A label map (H, W) uint8 of raw ids: the first two as halves, the others as blobs upon them."""
    width, height = size
    label = np.full((height, width), ids[0], dtype=np.uint8)
    label[: height // 2] = ids[1]
    for value in ids[2:]:
        for _ in range(2):
            top, left = rng.integers(0, height - height // 3), rng.integers(0, width - width // 3)
            label[top : top + height // 3, left : left + width // 3] = value
    return label


def photograph(rng: np.random.Generator, label: np.ndarray, *, shift: int) -> np.ndarray:
    """An image (H, W, 3) uint8 whose colours follow the label; `shift` is the difference between the domains."""
    colours = np.random.default_rng(0).integers(30, 190, (256, 3))
    noise = rng.integers(-20, 21, (*label.shape, 3))
    return np.clip(colours[label] + noise + shift, 0, 255).astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write an array as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_own(root: Path, *, images: int = 5, size: tuple[int, int] = (64, 48), validation: int = 2) -> None:
    """Data of one's own below `root`: images/, labels/ of train ids, and lists of source, target and val.

    Source images are s*.png, target images t*.png, target validation images v*.png.
    """
    rng = np.random.default_rng(1)
    for list_name, letter, number, shift in (
        ("source", "s", images, 0),
        ("target", "t", images, 40),
        ("val", "v", validation, 40),
    ):
        names = [f"{letter}{index}.png" for index in range(number)]
        for name in names:
            label = scene(rng, size, range(len(NAMES)))
            save_png(root / "images" / name, photograph(rng, label, shift=shift))
            save_png(root / "labels" / name, label)
        (root / f"{list_name}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def write_official(gta5: Path, cityscapes: Path, *, size: tuple[int, int] = (96, 64), images: int = 3) -> None:
    """GTA5 (images/, labels/) and Cityscapes (leftImg8bit/, gtFine/; train and val) in their official layout."""
    rng = np.random.default_rng(2)
    for index in range(1, images + 1):
        label = scene(rng, size, LABEL_IDS)
        save_png(gta5 / "images" / f"{index:05d}.png", photograph(rng, label, shift=0))
        save_png(gta5 / "labels" / f"{index:05d}.png", label)
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        for index in range(2):
            label = scene(rng, size, LABEL_IDS)
            label[-4:] = 1  # the bonnet: an official id that is ignored
            stem = f"{city}/{city}_{index:06d}_000019"
            image = photograph(rng, label, shift=40)
            save_png(cityscapes / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", image)
            save_png(cityscapes / "gtFine" / split / f"{stem}_gtFine_labelIds.png", label)
            save_png(cityscapes / "gtFine" / split / f"{stem}_gtFine_color.png", image)


def write_corpus(name: str, root: Path) -> None:
    """A few images of odd and differing sizes of a known corpus, in its official layout below `root`."""
    rng = np.random.default_rng(3)
    if name == "cityscapes":
        _write_cityscapes(root, rng)
    elif name == "gta5":
        for stem in ("00001", "00002", "24966"):
            label = scene(rng, _odd_size(rng), LABEL_IDS)
            save_png(root / "images" / f"{stem}.png", photograph(rng, label, shift=0))
            save_png(root / "labels" / f"{stem}.png", label)
    elif name == "synthia":
        for stem in ("0000000", "0000001", "0009399"):
            label = scene(rng, _odd_size(rng), SYNTHIA_IDS)
            save_png(root / "RGB" / f"{stem}.png", photograph(rng, label, shift=0))
            save_synthia_label(root / "GT" / "LABELS" / f"{stem}.png", label, rng)
    else:
        _write_tiles(root, rng, *TILES[name])


def _write_cityscapes(root: Path, rng: np.random.Generator) -> None:
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        for index in range(2):
            label = scene(rng, _odd_size(rng), LABEL_IDS)
            stem = f"{city}/{city}_{index:06d}_000019"
            image = photograph(rng, label, shift=40)
            save_png(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png", image)
            save_png(root / "gtFine" / split / f"{stem}_gtFine_labelIds.png", label)
            save_png(root / "gtFine" / split / f"{stem}_gtFine_instanceIds.png", label.astype(np.uint16) * 1000)
            save_png(root / "gtFine" / split / f"{stem}_gtFine_color.png", image)


def save_synthia_label(path: Path, label: np.ndarray, rng: np.random.Generator) -> None:
    """A 16-bit RGB PNG: the class in the first channel, an instance number in the second, nothing in the third."""
    instance = rng.integers(0, 2000, label.shape).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.dstack([np.zeros_like(instance), instance, label.astype(np.uint16)]))  # BGR


def _write_tiles(root: Path, rng: np.random.Generator, suffix: str, folder: str, value: int) -> None:
    """Aerial tiles with unpadded names, masks of 0 and `value`, and the lists of train and val."""
    for split, numbers in (("train", (1, 2, 10)), ("val", (3, 20))):
        names = [f"tile{number}{suffix}" for number in numbers]
        for name in names:
            mask = scene(rng, _odd_size(rng), (0, 0, 1))
            save_png(root / f"Images{folder}" / name, photograph(rng, mask, shift=len(suffix)))
            save_png(root / f"SegmentationClass{folder}" / name.replace(suffix, ".png"), mask * np.uint8(value))
        (root / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def _odd_size(rng: np.random.Generator) -> tuple[int, int]:
    """(W, H), both odd."""
    width, height = 2 * rng.integers(40, 60, 2) + 1
    return int(width), int(height)


# ---- configurations ----


def own_settings(root: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the world that `write_own` made; `sections` lay keys over its own, section by section."""
    domain = {"root": str(root), "images": "images", "labels": "labels", "size": [64, 48]}
    stage = {
        "num_steps": 12,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "save_pred_every": 6,
        "num_prototype": 1,
        "weights": ALIGNED,
    }
    settings: dict[str, Any] = {
        "classes": {"names": list(NAMES), "stuff": [0, 1], "things": [2, 3]},
        "source": {**domain, "train_list": "source.txt"},
        "target": {**domain, "train_list": "target.txt", "val_list": "val.txt"},
        "model": TINY_NETWORK,
        "run": {"device": "cpu", "num_workers": 0, "log_every": 1, "tensorboard": False, "report": False},
        "step1": stage,
        "pseudo_label": {"size": [64, 48]},
        "step2": {**stage, "weights": SELF_TRAINED, "aim": "adaptive", "isia": "paper"},
    }
    for section, keys in sections.items():
        settings[section] = {**settings.get(section, {}), **keys}
    return settings


def write_settings(path: Path, settings: Mapping[str, Any]) -> Path:
    """Write a configuration as TOML."""
    path.write_text(tomli_w.dumps(dict(settings)), encoding="utf-8")
    return path


# ---- references ----


def naive_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[float | None]:
    """IoU per class in percent over (prediction, truth) pairs of train ids, by counting pixel sets; None if absent."""
    scores: list[float | None] = []
    for category in range(num_classes):
        intersection = union = 0
        for prediction, truth in pairs:
            counted = truth != 255
            predicted, true = (prediction == category) & counted, (truth == category) & counted
            intersection += int((predicted & true).sum())
            union += int((predicted | true).sum())
        scores.append(100.0 * intersection / union if union else None)
    return scores
