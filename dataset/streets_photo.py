"""A street scene as a photograph: textures, light, air, lens and sensor of a style, over what the canvas painted."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from dataset.labels import IGNORE, load_class_table
from dataset.streets_canvas import SUPERSAMPLING, Camera
from dataset.streets_scene import compose, uniform
from dataset.streets_styles import Style

__all__ = ["TILE", "render", "render_official", "tiles"]

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
