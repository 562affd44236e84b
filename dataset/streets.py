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
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from dataset.labels import IGNORE, load_class_table
from dataset.streets_canvas import SUPERSAMPLING, Camera
from dataset.streets_scene import compose, uniform
from dataset.streets_styles import SOURCE, TARGET, Style
from dataset.toml import DataError

__all__ = ["SOURCE", "TARGET", "Style", "render", "write_world"]

RENDERER = 1
"""Version of the pictures; raise it whenever the same seed would give another picture."""

# ---- the picture ----

TILE = 512
"""Edge of a texture tile in samples; tiles are periodic."""

GROUND_SAMPLES = 14.0
"""Texture samples per metre on the ground."""


@cache
def tiles() -> dict[str, np.ndarray]:
    """The texture tiles, (TILE, TILE) float32, periodic, zero mean, unit deviation; alike for every seed."""
    rng = np.random.default_rng(20220)
    frequency = np.fft.fftfreq(TILE)[:, None] ** 2, np.fft.rfftfreq(TILE)[None, :] ** 2

    def noise(low: float, high: float = 0.0, stretch: float = 1.0) -> np.ndarray:
        """White noise blurred by a Gaussian of `low` samples, minus one of `high`, stretched along x."""
        spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
        square = frequency[0] + frequency[1] * stretch**2
        keep = np.exp(-2 * (math.pi * low) ** 2 * square)
        if high:
            keep = keep - np.exp(-2 * (math.pi * high) ** 2 * square)
        return np.fft.irfft2(spectrum * keep, s=(TILE, TILE))

    row, column = np.mgrid[0:TILE, 0:TILE]
    slab = -((row % 16 < 2) | (column % 16 < 2)).astype(float)
    brick = -((row % 4 < 1) | ((column + 4 * (row // 4 % 2)) % 8 < 1)).astype(float)
    cobble = -((row % 8 < 2) | ((column + 4 * (row // 8 % 2)) % 8 < 2)).astype(float)
    patterns = {
        "grain": noise(0.6),
        "leaf": noise(0.9, 2.5),
        "blotch": noise(3.0, 24.0) / 0.02 + noise(0.5) / 1.0,
        "cloud": noise(6.0, 40.0, 3.0),
        "streak": noise(1.2, 12.0, 5.0),
        "slab": slab,
        "brick": brick + 0.25 * noise(0.8) / 0.2,
        "cobble": cobble + 0.3 * noise(1.0) / 0.2,
    }
    return {name: standardised(pattern) for name, pattern in patterns.items()}


def standardised(values: np.ndarray) -> np.ndarray:
    """Zero mean, unit deviation, float32."""
    return ((values - values.mean()) / values.std()).astype(np.float32)


def render(rng: np.random.Generator, style: Style, size: tuple[int, int] = (256, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene.

    `size` is (W, H). Returns (image, label): (H, W, 3) uint8 RGB and (H, W) uint8 train ids, 255 where ignored.
    """
    image, kinds = render_official(rng, style, size)
    return image, train_ids()[kinds]


@cache
def train_ids() -> np.ndarray:
    """Official Cityscapes id -> train id, (256,) uint8, 255 where ignored."""
    official = load_class_table("cityscapes").label_ids or ()
    table = np.full(256, IGNORE, np.uint8)
    table[list(official)] = np.arange(len(official), dtype=np.uint8)
    return table


def render_official(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """As `render`, with the label in official Cityscapes ids."""
    canvas = compose(rng, style, size)
    numbers, colours, kind_of, depth_of = canvas.finish()
    top, low = (np.asarray(canvas.colour(name), np.float32) for name in ("sky_top", "sky_low"))
    colours[0] = (top + low) / 2
    step = SUPERSAMPLING
    albedo = np.asarray(Image.fromarray(colours.astype(np.uint8)[numbers]).reduce(step), np.float32)
    pixel = numbers[::step, ::step]
    kinds = kind_of[pixel]
    camera = Camera(*(value / step if i > 1 else value for i, value in enumerate(canvas.camera)))
    depth, row_depth = distances(camera, depth_of[pixel])
    rise = np.clip(np.arange(size[1], dtype=np.float32) / camera.horizon, 0, 1)[:, None]
    albedo = np.where((pixel == 0)[..., None], (top + (low - top) * rise)[:, None, :], albedo)
    albedo *= 1 + surface(rng, style, camera, kinds, row_depth, np.isnan(depth_of)[pixel])[..., None]
    return photograph(rng, style, albedo, depth, low), kinds


def distances(camera: Camera, painted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres per pixel (H, W), the ground's filled in where `painted` is NaN; and the ground's per row (H, 1)."""
    below = np.arange(painted.shape[0], dtype=np.float32)[:, None] + 0.5 - camera.horizon
    row_depth = camera.focal * camera.height / np.maximum(below, 0.4)
    return np.where(np.isnan(painted), row_depth, painted), row_depth


def surface(
    rng: np.random.Generator,
    style: Style,
    camera: Camera,
    kinds: np.ndarray,
    row_depth: np.ndarray,
    on_ground: np.ndarray,
) -> np.ndarray:
    """Relative brightness (H, W) of the textures; upright ones lie in the picture, the ground's on the ground."""
    height, width = kinds.shape
    names = list(tiles())
    tile_of, amplitude_of = np.zeros(256, np.intp), np.zeros(256, np.float32)
    for kind, texture in style.textures.items():
        tile_of[kind], amplitude_of[kind] = names.index(texture.tile), texture.amplitude
    offset = rng.integers(0, TILE, 2)
    column = np.arange(width, dtype=np.float32)[None, :]
    across = (column - camera.centre) * row_depth * (GROUND_SAMPLES / camera.focal)
    u = np.where(on_ground, across, column).astype(np.intp) + offset[0]
    row = np.arange(height, dtype=np.float32)[:, None]
    v = np.where(on_ground, row_depth * GROUND_SAMPLES, row).astype(np.intp) + offset[1]
    pattern = _stacked_tiles()[tile_of[kinds], v % TILE, u % TILE]
    # Far ground is sampled more coarsely than its pattern: fade it out instead of letting it flicker.
    fade = np.where(on_ground, np.minimum(1.0, 12.0 / row_depth), 1.0)
    return np.maximum(amplitude_of[kinds] * pattern * fade, -0.8)


@cache
def _stacked_tiles() -> np.ndarray:
    return np.stack(list(tiles().values()))


def photograph(
    rng: np.random.Generator, style: Style, albedo: np.ndarray, depth: np.ndarray, air: np.ndarray
) -> np.ndarray:
    """Light, air, lens and sensor: (H, W, 3) float32 surface colours in 0..255 -> uint8 picture."""
    height, width, _ = albedo.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    light = 1 - style.vignette * (0.35 * y * y + 0.65 * x * x) ** 1.5
    if style.light_field:
        crop = tiles()["cloud"][rng.integers(TILE) - np.arange(height) * 128 // height]
        light = light * (1 + style.light_field * 0.5 * crop[:, np.arange(width) * 256 // width])
    clear = np.exp(-uniform(rng, style.haze) / 100 * np.minimum(depth, 400.0))
    picture = air + (albedo - air) * clear[..., None]
    gain = uniform(rng, style.brightness) * (1 + style.cast * rng.standard_normal(3).astype(np.float32))
    picture = picture * light[..., None] * gain
    grey = picture.mean(axis=-1, keepdims=True)
    picture = grey + (picture - grey) * uniform(rng, style.saturation)
    picture = 118 + (picture - 118) * uniform(rng, style.contrast)
    radius = uniform(rng, style.blur) * width / 256
    if radius > 0:
        soft = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
        picture = np.asarray(soft, np.float32)
    picture = picture + uniform(rng, style.noise) * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


# ---- the world ----

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
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Write both domains below `root` and return it; a world that is already there is left as it is.

    `size` is (W, H). Picture i of a split depends on (seed, domain, split, i) only, never on the counts or on
    `workers` (processes; None: one per processor, 0: this one). An interrupted call goes on where it stopped.
    Raises DataError if `root` holds a world of other parameters, or a corpus that is not one of ours.
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
        with whole_file(root / "gta5_deeplab" / f"{name}.txt") as path:
            path.write_text(lines, encoding="utf-8")
    missing = [p for p in pictures if not (p.image.exists() and p.label.exists())]
    done = paint_all(partial(write_picture, seed, size), missing, workers)
    for _ in tqdm(done, total=len(missing), desc=str(root), unit="img", disable=not progress):
        pass
    os.replace(root / "world.json.partial", root / "world.json")
    return root


def claim(root: Path, parameters: Mapping[str, object]) -> bool:
    """Mark `root` as this world's; False if the world is already finished.

    `world.json.partial` stands for an unfinished world and becomes `world.json` at the end.
    """
    for name in ("world.json", "world.json.partial"):
        if (root / name).exists():
            found = json.loads((root / name).read_text(encoding="utf-8"))
            if found != parameters:
                what = differences(found, parameters)
                raise DataError(f"{root / name}: another world ({what}); delete the folder or name another")
            if name == "world.json":
                return False
    taken = [name for name in ("gta5_deeplab", "Cityscapes") if (root / name).exists()]
    if taken and not (root / "world.json.partial").exists():
        raise DataError(f"{root / taken[0]}: exists and was not written by dataset.streets; name another folder")
    root.mkdir(parents=True, exist_ok=True)
    with whole_file(root / "world.json.partial") as path:
        path.write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    return True


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
        with whole_file(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def paint_all(write: Callable[[Picture], None], pictures: Iterable[Picture], workers: int | None) -> Iterator[None]:
    """Map `write` over the pictures, in `workers` processes."""
    if workers == 0:
        yield from map(write, pictures)
        return
    # "spawn": forking a process in which a progress bar's thread may run is unsafe.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, pictures, chunksize=8)


def parse_size(text: str) -> tuple[int, int]:
    """`"256,128"` -> (256, 128)."""
    try:
        width, height = (int(part) for part in text.split(","))
    except ValueError:
        width = height = 0
    if min(width, height) < 32:
        raise argparse.ArgumentTypeError(f"size {text!r}: give width,height of at least 32 pixels, such as 256,128")
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dataset.streets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder to write gta5_deeplab/ and Cityscapes/ into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=int, default=600, metavar="N", help="source train images")
    parser.add_argument("--source-val", type=int, default=100, metavar="N", help="source val images")
    parser.add_argument("--target", type=int, default=600, metavar="N", help="target train images")
    parser.add_argument("--target-val", type=int, default=100, metavar="N", help="target val images")
    parser.add_argument("--size", type=parse_size, default=(256, 128), metavar="W,H")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per processor, 0: none)")
    args = parser.parse_args(arguments)
    try:
        write_world(
            args.root,
            seed=args.seed,
            source_train=args.source,
            source_val=args.source_val,
            target_train=args.target,
            target_val=args.target_val,
            size=args.size,
            workers=args.workers,
            progress=True,
        )
    except (DataError, FileExistsError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
