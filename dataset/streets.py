"""The embedded benchmark "streets": small street scenes in two styles, written as GTA5 and as Cityscapes.

A seeded renderer composes a street in metres (road, frontages, traffic, people), paints it through a pinhole
camera and then "photographs" it. Two styles share that vocabulary of shapes and places and differ in appearance:
`SOURCE` looks like a game (saturated, clean, sunny), `TARGET` like a dashboard camera (other surfaces and light,
haze, blur, noise, vignette), with other class frequencies, street widths and camera heights. Shape and layout hold
over both, so that adaptation is possible; colour and texture do not, so that it is needed.

    python -m dataset.streets data/streets --seed 0 --source 600 --target 600

writes `gta5_deeplab/` and `Cityscapes/` below the folder in the official layouts with official label ids.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.pool import processes
from dataset.streets_photo import render_official
from dataset.streets_styles import SOURCE, TARGET
from dataset.toml import DataError
from utils.console import progress
from utils.files import atomic_write

__all__ = ["write_world"]

RENDERER = 1
"""Version of the pictures; raise it whenever the same seed would give another picture."""

CITIES: Mapping[str, Sequence[str]] = {
    "train": ("ahornstadt", "birkenau", "lindenfels"),
    "val": ("eschenburg", "weidental"),
}
"""Invented cities of the target, disjoint between the splits."""


class Picture(NamedTuple):
    """One picture of a world: what seeds it and where it goes."""

    domain: int
    """0 source, 1 target."""
    split: int
    """0 train, 1 val."""
    number: int
    image: Path
    label: Path


def write_world(
    root: str | Path,
    *,
    seed: int,
    source_train: int,
    source_val: int,
    target_train: int,
    target_val: int,
    size: tuple[int, int] = (256, 128),
    workers: int = 0,
) -> Path:
    """Write both domains below `root` and return it; a world that is already there is left as it is.

    `size` is (W, H). Picture i of a split depends on (seed, domain, split, i) only, never on the counts or on
    `workers` (processes, 0: this one). An interrupted call goes on where it stopped. Raises DataError for counts and
    seeds below 0, and if `root` holds a world of other parameters, or a corpus that is not one of ours.
    """
    root = Path(root)
    counts = {
        "source_train": source_train,
        "source_val": source_val,
        "target_train": target_train,
        "target_val": target_val,
    }
    if min(counts.values()) < 0:
        raise DataError(f"{root}: counts of images cannot be negative ({counts})")
    if seed < 0:
        raise DataError(f"seed {seed}: give 0 or more")
    parameters = {"renderer": RENDERER, "seed": seed, **counts, "size": list(size)}
    if not claim(root, parameters):
        return root
    pictures = [
        *source_pictures(root, source_train, source_val),
        *target_pictures(root, target_train, target_val),
    ]
    for folder in {root / "gta5_deeplab", *(path.parent for p in pictures for path in (p.image, p.label))}:
        folder.mkdir(parents=True, exist_ok=True)
    for name, first, last in (("train", 0, source_train), ("val", source_train, source_train + source_val)):
        lines = "".join(f"{index + 1:05d}.png\n" for index in range(first, last))
        with atomic_write(root / "gta5_deeplab" / f"{name}.txt") as path:
            path.write_text(lines, encoding="utf-8")
    missing = [p for p in pictures if not (p.image.exists() and p.label.exists())]
    with processes(min(workers, len(missing)), remedy="start again, or with fewer --workers") as each:
        done = each(partial(write_picture, seed, size), missing)
        for _ in progress(done, total=len(missing), description=str(root), unit="image"):
            pass
    os.replace(root / "world.json.partial", root / "world.json")
    return root


def claim(root: Path, parameters: Mapping[str, object]) -> bool:
    """Mark `root` as this world's; False if the world is already finished.

    `world.json.partial` stands for an unfinished world and becomes `world.json` at the end.
    """
    for name in ("world.json", "world.json.partial"):
        if (root / name).exists():
            found = recorded(root / name)
            if found != parameters:
                what = differences(found, parameters)
                raise DataError(f"{root / name}: another world ({what}); delete the folder or name another")
            if name == "world.json":
                return False
    taken = [name for name in ("gta5_deeplab", "Cityscapes") if (root / name).exists()]
    if taken and not (root / "world.json.partial").exists():
        raise DataError(f"{root / taken[0]}: exists and was not written by dataset.streets; name another folder")
    root.mkdir(parents=True, exist_ok=True)
    with atomic_write(root / "world.json.partial") as path:
        path.write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    return True


def recorded(path: Path) -> Mapping[str, object]:
    """The parameters of the world that `path` stands for. Raises DataError for a file that was not written by us."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged or was not written by dataset.streets; delete the folder or name another")
    return found


def differences(found: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """The parameters in which two worlds differ, for an error message."""
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    return ", ".join(f"{key} {found.get(key)} there, {asked.get(key)} asked" for key in keys)


def source_pictures(root: Path, train: int, val: int) -> Iterator[Picture]:
    """The source in the GTA5 layout: train, then val, numbered through in one folder."""
    base = root / "gta5_deeplab"
    for number in range(train + val):
        name = f"{number + 1:05d}.png"
        split = int(number >= train)
        yield Picture(0, split, number - train * split, base / "images" / name, base / "labels" / name)


def target_pictures(root: Path, train: int, val: int) -> Iterator[Picture]:
    """The target in the Cityscapes layout, dealt to the split's cities in turn."""
    base = root / "Cityscapes"
    for split, (name, count) in enumerate((("train", train), ("val", val))):
        cities = CITIES[name]
        for index in range(count):
            city = cities[index % len(cities)]
            stem = f"{city}_000000_{index // len(cities) + 1:06d}"
            image = base / "leftImg8bit" / name / city / f"{stem}_leftImg8bit.png"
            yield Picture(1, split, index, image, base / "gtFine" / name / city / f"{stem}_gtFine_labelIds.png")


def write_picture(seed: int, size: tuple[int, int], picture: Picture) -> None:
    """Render one picture and write its two files."""
    rng = np.random.default_rng([seed, picture.domain, picture.split, picture.number])
    image, kinds = render_official(rng, (SOURCE, TARGET)[picture.domain], size)
    for path, pixels in ((picture.image, image), (picture.label, kinds)):
        with atomic_write(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")


def parse_size(text: str) -> tuple[int, int]:
    """`"256,128"` -> (256, 128)."""
    try:
        width, height = (int(part) for part in text.split(","))
    except ValueError:
        width = height = 0
    if min(width, height) < 32:
        raise argparse.ArgumentTypeError(f"size {text!r}: give width,height of at least 32 pixels, such as 256,128")
    return width, height


def main(argv: Sequence[str] | None = None) -> None:
    """Write the world that the command line describes."""
    from utils.config import Parser
    from utils.flags import not_negative

    parser = Parser(description=__doc__)
    count: dict[str, Any] = {"type": not_negative, "metavar": "N"}
    parser.add_argument("root", type=Path, help="folder to write gta5_deeplab/ and Cityscapes/ into")
    parser.add_argument("--seed", **count, default=0, help="of everything random (0)")
    parser.add_argument("--source", **count, default=600, help="source training images (600)")
    parser.add_argument("--source-val", **count, default=100, help="source validation images (100)")
    parser.add_argument("--target", **count, default=600, help="target training images (600)")
    parser.add_argument("--target-val", **count, default=100, help="target validation images (100)")
    parser.add_argument("--size", type=parse_size, default=(256, 128), metavar="W,H", help="of an image (256,128)")
    parser.add_argument(
        "--workers", **count, default=os.cpu_count() or 1, help="processes (default: one per processor; 0: none)"
    )
    arguments = parser.parse_args(argv)
    write_world(
        arguments.root,
        seed=arguments.seed,
        source_train=arguments.source,
        source_val=arguments.source_val,
        target_train=arguments.target,
        target_val=arguments.target_val,
        size=arguments.size,
        workers=arguments.workers,
    )


if __name__ == "__main__":
    from utils.launch import launch

    launch(main)
