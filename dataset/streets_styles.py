"""The two styles of the embedded benchmark: a game and a camera.

A style says what a street is like and how it is photographed; what stands in a street is the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dataset.streets_canvas import Colour, Kind

Range = tuple[float, float]


class Texture(NamedTuple):
    """A surface pattern: a tile's name (`dataset.streets.tiles`) and its amplitude relative to the colour."""

    tile: str
    amplitude: float


@dataclass(frozen=True, kw_only=True)
class Style:
    """Everything in which the domains differ. A `Range` is (lowest, highest) of a uniform draw per image."""

    name: str
    # The camera and the street.
    camera_height: Range
    """Metres above the road."""
    focal: Range
    """Focal length as a fraction of the image width."""
    horizon: Range
    """Row of the horizon as a fraction of the image height."""
    bonnet: bool
    """The lower edge shows the camera car's own bonnet (official id 1, ignored)."""
    road_half_width: Range
    sidewalk_width: Range
    building_height: Range
    # What occurs.
    chances: Mapping[Kind, float]
    """Probability that an image is given at least one of a kind that not every street has."""
    counts: Mapping[Kind, tuple[int, int]]
    """Fewest and most of a kind that every street has."""
    frontage: Mapping[str, float]
    """Weights of what lines the street where nothing is prescribed: building, wall, fence, hedge, park."""
    cross_street: float
    """Probability of a crossing street with traffic that shows its side."""
    # Surfaces.
    palette: Mapping[str, Sequence[Colour]]
    """Colour name -> the colours that a shape of that name may have."""
    textures: Mapping[Kind, Texture]
    jitter: float
    """Standard deviation of a shape's colour, in 8-bit steps."""
    # Light and lens.
    sun: Range
    """Contrast between lit and unlit faces, 0 (overcast) to 1."""
    light_field: float
    """Amplitude of slow brightness changes over the picture (cloud and street shadows)."""
    haze: Range
    """Extinction per 100 metres."""
    saturation: Range
    contrast: Range
    brightness: Range
    cast: float
    """Standard deviation of the white balance, per channel."""
    blur: Range
    """Radius of the lens blur in pixels of a 256 pixels wide picture."""
    vignette: float
    """Darkening in the corners."""
    noise: Range
    """Standard deviation of the sensor noise in 8-bit steps."""


SOURCE = Style(
    name="source",
    camera_height=(1.55, 2.1),
    focal=(0.60, 0.70),
    horizon=(0.38, 0.46),
    bonnet=False,
    road_half_width=(4.4, 5.6),
    sidewalk_width=(2.4, 3.6),
    building_height=(7.0, 17.0),
    chances={
        Kind.WALL: 0.65,
        Kind.FENCE: 0.65,
        Kind.TERRAIN: 0.7,
        Kind.TRUCK: 0.5,
        Kind.BUS: 0.5,
        Kind.TRAIN: 0.5,
        Kind.MOTORCYCLE: 0.6,
        Kind.BICYCLE: 0.6,
        Kind.STATIC: 0.4,
    },
    counts={
        Kind.CAR: (1, 4),
        Kind.PERSON: (2, 5),
        Kind.RIDER: (1, 2),
        Kind.POLE: (1, 3),
        Kind.TRAFFIC_LIGHT: (1, 3),
        Kind.TRAFFIC_SIGN: (1, 3),
        Kind.VEGETATION: (1, 3),
    },
    frontage={"building": 0.6, "wall": 0.08, "fence": 0.08, "hedge": 0.1, "park": 0.14},
    cross_street=0.45,
    palette={
        "sky_top": ((52, 120, 214), (70, 140, 226), (60, 110, 200)),
        "sky_low": ((170, 210, 246), (196, 222, 246), (240, 214, 180)),
        "road": ((84, 84, 92), (92, 90, 94), (76, 78, 86)),
        "marking": ((245, 245, 240), (250, 222, 90)),
        "paving": ((196, 186, 176), (184, 180, 178), (206, 192, 170)),
        "grass": ((104, 176, 62), (122, 188, 70), (150, 176, 84)),
        "bed": ((134, 120, 104),),
        "rail": ((170, 170, 176),),
        "facade": (
            (214, 164, 116),
            (226, 198, 150),
            (190, 120, 92),
            (204, 206, 210),
            (168, 176, 196),
            (222, 180, 170),
        ),
        "window": ((66, 92, 130), (84, 120, 160), (48, 62, 86)),
        "wall": ((176, 164, 150), (158, 150, 146), (186, 150, 124)),
        "fence": ((120, 78, 44), (62, 64, 66), (206, 206, 200)),
        "fence_gap": ((108, 128, 74), (126, 120, 100)),
        "trunk": ((104, 70, 42),),
        "leaf": ((56, 138, 44), (74, 156, 50), (42, 120, 52), (96, 160, 50)),
        "pole": ((112, 116, 122), (90, 94, 98)),
        "light_housing": ((30, 32, 34), (44, 46, 40)),
        "sign_red": ((216, 30, 36),),
        "sign_white": ((250, 250, 250),),
        "sign_blue": ((30, 86, 200),),
        "sign_yellow": ((250, 208, 40),),
        "bin": ((60, 90, 70), (80, 80, 84)),
        "cloth": (
            (222, 60, 52),
            (60, 110, 214),
            (240, 240, 236),
            (250, 196, 50),
            (70, 170, 110),
            (40, 40, 48),
            (84, 90, 104),
        ),
        "trousers": ((44, 58, 110), (50, 48, 52), (120, 100, 76)),
        "skin": ((238, 190, 154), (190, 134, 96), (124, 82, 58)),
        "hair": ((60, 40, 28), (30, 26, 26), (200, 160, 84)),
        "jacket": ((240, 120, 30), (40, 40, 46), (214, 40, 60), (70, 160, 220)),
        "helmet": ((246, 246, 246), (220, 40, 40), (40, 44, 50), (250, 200, 40)),
        "bicycle": ((220, 40, 50), (40, 90, 200), (34, 34, 38), (60, 180, 120)),
        "motorcycle": ((210, 30, 34), (40, 40, 44), (40, 90, 190), (240, 150, 30)),
        "tyre": ((26, 26, 28),),
        "spokes": ((126, 126, 130),),
        "metal": ((176, 178, 184),),
        "engine": ((58, 58, 62),),
        "glass": ((44, 62, 86), (60, 86, 116)),
        "car": ((214, 34, 40), (36, 80, 190), (242, 242, 244), (34, 34, 40), (250, 190, 30), (120, 126, 134)),
        "bus": ((236, 60, 40), (250, 196, 40), (60, 120, 220)),
        "board": ((255, 160, 40),),
        "load": ((240, 240, 240), (210, 214, 220), (250, 220, 150), (120, 160, 210)),
        "cab": ((200, 40, 44), (40, 90, 180), (240, 240, 240), (40, 130, 90)),
        "train": ((230, 230, 226), (60, 150, 140), (220, 200, 60)),
        "train_stripe": ((190, 30, 50), (30, 60, 140)),
        "bonnet": ((40, 40, 44),),
    },
    textures={
        Kind.ROAD: Texture("grain", 0.03),
        Kind.SIDEWALK: Texture("slab", 0.07),
        Kind.BUILDING: Texture("grain", 0.02),
        Kind.WALL: Texture("brick", 0.07),
        Kind.VEGETATION: Texture("leaf", 0.13),
        Kind.TERRAIN: Texture("leaf", 0.07),
        Kind.SKY: Texture("cloud", 0.05),
    },
    jitter=8.0,
    sun=(0.6, 0.95),
    light_field=0.0,
    haze=(0.0, 0.25),
    saturation=(1.05, 1.25),
    contrast=(1.0, 1.1),
    brightness=(0.98, 1.06),
    cast=0.01,
    blur=(0.0, 0.0),
    vignette=0.0,
    noise=(0.0, 1.0),
)

TARGET = Style(
    name="target",
    camera_height=(1.25, 1.55),
    focal=(0.64, 0.74),
    horizon=(0.42, 0.5),
    bonnet=True,
    road_half_width=(4.2, 5.2),
    sidewalk_width=(2.2, 3.2),
    building_height=(8.0, 20.0),
    chances={
        Kind.WALL: 0.6,
        Kind.FENCE: 0.65,
        Kind.TERRAIN: 0.6,
        Kind.TRUCK: 0.45,
        Kind.BUS: 0.5,
        Kind.TRAIN: 0.48,
        Kind.MOTORCYCLE: 0.5,
        Kind.BICYCLE: 0.75,
        Kind.STATIC: 0.5,
    },
    counts={
        Kind.CAR: (2, 5),
        Kind.PERSON: (2, 7),
        Kind.RIDER: (1, 2),
        Kind.POLE: (2, 4),
        Kind.TRAFFIC_LIGHT: (1, 3),
        Kind.TRAFFIC_SIGN: (1, 4),
        Kind.VEGETATION: (2, 5),
    },
    frontage={"building": 0.6, "wall": 0.06, "fence": 0.08, "hedge": 0.1, "park": 0.16},
    cross_street=0.4,
    palette={
        "sky_top": ((176, 188, 200), (150, 168, 190), (196, 200, 204)),
        "sky_low": ((222, 224, 224), (232, 228, 218), (206, 212, 218)),
        "road": ((112, 108, 104), (98, 98, 98), (124, 118, 112)),
        "marking": ((206, 204, 196), (190, 188, 180)),
        "paving": ((144, 138, 134), (132, 124, 120), (156, 146, 136)),
        "grass": ((100, 126, 62), (118, 132, 72), (134, 122, 78)),
        "bed": ((104, 96, 88),),
        "rail": ((126, 120, 116),),
        "facade": (
            (150, 108, 88),
            (170, 154, 134),
            (132, 126, 122),
            (178, 166, 140),
            (118, 92, 82),
            (160, 160, 160),
        ),
        "window": ((58, 64, 70), (84, 92, 98), (110, 116, 120)),
        "wall": ((126, 116, 106), (140, 134, 126), (116, 94, 82)),
        "fence": ((82, 72, 62), (60, 66, 62), (142, 140, 136)),
        "fence_gap": ((90, 96, 74), (104, 100, 90)),
        "trunk": ((74, 62, 52),),
        "leaf": ((66, 88, 48), (82, 98, 54), (58, 78, 52), (104, 100, 52)),
        "pole": ((98, 100, 100), (122, 122, 120), (76, 80, 78)),
        "light_housing": ((42, 44, 42), (54, 54, 48)),
        "sign_red": ((170, 46, 48),),
        "sign_white": ((218, 216, 210),),
        "sign_blue": ((44, 78, 142),),
        "sign_yellow": ((206, 176, 70),),
        "bin": ((70, 76, 70), (84, 70, 62)),
        "cloth": (
            (60, 62, 74),
            (118, 62, 58),
            (150, 150, 150),
            (54, 84, 134),
            (170, 62, 54),
            (184, 150, 76),
            (34, 34, 38),
        ),
        "trousers": ((46, 50, 66), (44, 42, 44), (92, 84, 74)),
        "skin": ((206, 166, 142), (160, 118, 92), (108, 78, 62)),
        "hair": ((58, 46, 38), (34, 30, 30), (150, 126, 90)),
        "jacket": ((170, 96, 50), (48, 48, 54), (150, 52, 60), (80, 116, 140), (180, 180, 90)),
        "helmet": ((204, 204, 200), (150, 50, 48), (46, 48, 52)),
        "bicycle": ((120, 50, 52), (50, 66, 100), (40, 40, 42), (150, 150, 146)),
        "motorcycle": ((130, 44, 42), (46, 46, 48), (54, 70, 104)),
        "tyre": ((36, 35, 35),),
        "spokes": ((106, 102, 98),),
        "metal": ((142, 142, 142),),
        "engine": ((56, 54, 54),),
        "glass": ((52, 58, 64), (78, 86, 92)),
        "car": ((144, 146, 150), (196, 196, 196), (46, 48, 52), (112, 42, 44), (58, 72, 100), (90, 94, 96)),
        "bus": ((178, 74, 58), (196, 164, 80), (92, 112, 146), (190, 190, 186)),
        "board": ((214, 150, 70),),
        "load": ((190, 190, 186), (164, 168, 172), (176, 160, 126), (110, 124, 140)),
        "cab": ((140, 58, 54), (66, 86, 122), (190, 190, 188), (70, 100, 84)),
        "train": ((186, 184, 176), (92, 122, 116), (178, 160, 84)),
        "train_stripe": ((132, 50, 56), (56, 70, 108)),
        "bonnet": ((52, 52, 54), (90, 92, 94)),
    },
    textures={
        Kind.ROAD: Texture("blotch", 0.10),
        Kind.SIDEWALK: Texture("cobble", 0.16),
        Kind.BUILDING: Texture("brick", 0.12),
        Kind.WALL: Texture("blotch", 0.16),
        Kind.FENCE: Texture("grain", 0.10),
        Kind.VEGETATION: Texture("leaf", 0.26),
        Kind.TERRAIN: Texture("blotch", 0.16),
        Kind.SKY: Texture("cloud", 0.06),
        Kind.CAR: Texture("streak", 0.07),
        Kind.TRUCK: Texture("streak", 0.07),
        Kind.BUS: Texture("streak", 0.07),
        Kind.TRAIN: Texture("streak", 0.07),
        Kind.PERSON: Texture("grain", 0.05),
        Kind.RIDER: Texture("grain", 0.05),
    },
    jitter=11.0,
    sun=(0.1, 0.45),
    light_field=0.16,
    haze=(0.3, 1.1),
    saturation=(0.75, 1.05),
    contrast=(0.85, 1.05),
    brightness=(0.95, 1.2),
    cast=0.035,
    blur=(0.3, 0.8),
    vignette=0.25,
    noise=(2.5, 6.0),
)
