"""The canvas of the embedded benchmark: a painter's algorithm in metres and shape numbers.

Everything is given in metres in one street frame: x to the right of the road's middle, y up from the ground,
z forward from the camera. The canvas holds *shape numbers*, not colours: each polygon gets the next number, and
what the number looks like and means (colour, label, distance) stands in tables that are looked up once at the
end. So a picture and its labels come from the same single painting and can never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float, float]

SUPERSAMPLING = 2
"""Canvas pixels per image pixel along each axis; colours are averaged, labels are every second pixel."""

NEAREST_DEPTH = 0.6
"""Metres; points nearer to the camera than this are pushed out to it before projection."""


class Kind(IntEnum):
    """Official Cityscapes label ids of what is painted; ids outside the 19 evaluated classes are ignored."""

    EGO_VEHICLE = 1
    STATIC = 4
    ROAD = 7
    SIDEWALK = 8
    BUILDING = 11
    WALL = 12
    FENCE = 13
    POLE = 17
    TRAFFIC_LIGHT = 19
    TRAFFIC_SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    RIDER = 25
    CAR = 26
    TRUCK = 27
    BUS = 28
    TRAIN = 31
    MOTORCYCLE = 32
    BICYCLE = 33


class Camera(NamedTuple):
    """A level pinhole camera looking along the street; x and height in metres, the rest in canvas pixels."""

    x: float
    height: float
    focal: float
    centre: float
    horizon: float

    def project(self, point: Point) -> tuple[float, float]:
        """Street coordinates -> canvas column and row."""
        x, y, z = point
        scale = self.focal / max(z, NEAREST_DEPTH)
        return self.centre + scale * (x - self.x), self.horizon - scale * (y - self.height)


class Face(NamedTuple):
    """A flat quadrilateral in the street, addressed by (u, v) in the unit square."""

    bottom_start: Point
    bottom_end: Point
    top_end: Point
    top_start: Point

    def at(self, u: float, v: float) -> Point:
        """Bilinear position: u along the bottom edge, v upward."""
        a, b, c, d = (1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v
        p, q, r, s = self
        return (
            a * p[0] + b * q[0] + c * r[0] + d * s[0],
            a * p[1] + b * q[1] + c * r[1] + d * s[1],
            a * p[2] + b * q[2] + c * r[2] + d * s[2],
        )

    @property
    def run(self) -> float:
        """Length of the bottom edge in metres."""
        return math.dist(self.bottom_start, self.bottom_end)

    def part(self, u0: float, v0: float, u1: float, v1: float) -> Face:
        """The sub-quadrilateral between (u0, v0) and (u1, v1)."""
        return Face(self.at(u0, v0), self.at(u1, v0), self.at(u1, v1), self.at(u0, v1))


class Box(NamedTuple):
    """An upright block: extent in x, y and z, and how far the top is drawn in along x and z."""

    x0: float
    x1: float
    y0: float
    y1: float
    z0: float
    z1: float
    inset_x: float = 0.0
    inset_z: float = 0.0


class Canvas:
    """The painter's canvas: shapes drawn later cover shapes drawn earlier.

    Arguments:
        camera: the projection, in canvas pixels.
        size: (width, height) of the canvas in pixels.
        rng: decides every colour.
        palette: colour name -> the colours a shape of that name may have (8-bit RGB).
        contrast: 0 (flat light) .. 1 (hard sun): how much darker the faces turned away from the light are.
        jitter: standard deviation of a shape's colour around its palette entry, in 8-bit steps.
    """

    def __init__(
        self,
        *,
        camera: Camera,
        size: tuple[int, int],
        rng: np.random.Generator,
        palette: Mapping[str, Sequence[Colour]],
        contrast: float,
        jitter: float,
    ) -> None:
        self.camera = camera
        self.rng = rng
        self.contrast = contrast
        self._palette = palette
        self._jitter = jitter
        self._image = Image.new("I", size, 0)
        self._draw = ImageDraw.Draw(self._image)
        self._colours: list[Colour] = [(0, 0, 0)]
        self._kinds: list[int] = [Kind.SKY]
        self._depths: list[float] = [math.inf]

    def colour(self, name: str) -> Colour:
        """One of the palette's colours of that name, jittered: brightness mostly, hue a little."""
        options = self._palette[name]
        base = options[int(self.rng.random() * len(options))]
        light, *tint = self.rng.standard_normal(4) * self._jitter
        return clip(*(c + light + 0.35 * t for c, t in zip(base, tint, strict=True)))

    def polygon(self, points: Iterable[Point], colour: Colour, kind: Kind, depth: float | None = None) -> None:
        """Paint a polygon; `depth` in metres, None for the ground, whose depth follows from the row."""
        self._draw.polygon([self.camera.project(p) for p in points], fill=self._number(colour, kind, depth))

    def disc(self, centre: Point, radius: float, colour: Colour, kind: Kind, squeeze: float = 1.0) -> None:
        """Paint an upright disc that faces the camera; `squeeze` foreshortens it along x."""
        u, v = self.camera.project(centre)
        ry = radius * self.camera.focal / max(centre[2], NEAREST_DEPTH)
        rx = ry * squeeze
        self._draw.ellipse((u - rx, v - ry, u + rx, v + ry), fill=self._number(colour, kind, centre[2]))

    def bar(self, start: Point, end: Point, width: float, colour: Colour, kind: Kind) -> None:
        """Paint a straight bar `width` metres thick between two points of one depth."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        norm = width / 2 / (math.hypot(dx, dy) or 1.0)
        ox, oy = -dy * norm, dx * norm
        corners = [
            (start[0] + ox, start[1] + oy, start[2]),
            (end[0] + ox, end[1] + oy, end[2]),
            (end[0] - ox, end[1] - oy, end[2]),
            (start[0] - ox, start[1] - oy, start[2]),
        ]
        self.polygon(corners, colour, kind, start[2])

    def screen_ellipse(self, box: tuple[float, float, float, float], colour: Colour, kind: Kind) -> None:
        """Paint an ellipse given in canvas pixels, for what rides with the camera."""
        self._draw.ellipse(box, fill=self._number(colour, kind, NEAREST_DEPTH))

    def box(self, box: Box, colour: Colour, kind: Kind) -> tuple[Face, Face | None]:
        """Paint the visible faces of a block; returns its near face and its visible flank."""
        x0, x1, y0, y1, z0, z1, dx, dz = box
        near = Face((x0, y0, z0), (x1, y0, z0), (x1 - dx, y1, z0 + dz), (x0 + dx, y1, z0 + dz))
        flank = self.flank(box)
        depth = (z0 + min(z1, z0 + 6)) / 2
        if flank is not None:
            lit = 1 - 0.45 * self.contrast if x0 > self.camera.x else 1 + 0.10 * self.contrast
            self.polygon(flank, shade(colour, lit), kind, depth)
        if y1 < self.camera.height:
            a, b, c, d = x0 + dx, x1 - dx, z0 + dz, z1 - dz
            top = [(a, y1, c), (b, y1, c), (b, y1, d), (a, y1, d)]
            self.polygon(top, shade(colour, 1 + 0.25 * self.contrast), kind, depth)
        self.polygon(near, shade(colour, 1 - 0.2 * self.contrast), kind, z0)
        return near, flank

    def flank(self, box: Box) -> Face | None:
        """The side of a block that the camera sees, near end first; None from straight behind."""
        x0, x1, y0, y1, z0, z1, dx, dz = box
        if x0 > self.camera.x:
            return Face((x0, y0, z0), (x0, y0, z1), (x0 + dx, y1, z1 - dz), (x0 + dx, y1, z0 + dz))
        if x1 < self.camera.x:
            return Face((x1, y0, z0), (x1, y0, z1), (x1 - dx, y1, z1 - dz), (x1 - dx, y1, z0 + dz))
        return None

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Look the tables up.

        Returns (numbers, colours, kinds, depths): shape numbers (h, w) of the canvas, and per shape number the
        colour (N, 3) float32, the official label id (N,) uint8 and the distance (N,) float32 in metres, NaN for
        the ground. Number 0 is the sky.
        """
        return (
            np.asarray(self._image),
            np.asarray(self._colours, np.float32),
            np.asarray(self._kinds, np.uint8),
            np.asarray(self._depths, np.float32),
        )

    def _number(self, colour: Colour, kind: Kind, depth: float | None) -> int:
        self._colours.append(colour)
        self._kinds.append(kind)
        self._depths.append(math.nan if depth is None else depth)
        return len(self._colours) - 1


def clip(red: float, green: float, blue: float) -> Colour:
    """Round to an 8-bit colour."""
    return (min(max(int(red), 0), 255), min(max(int(green), 0), 255), min(max(int(blue), 0), 255))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter (factor above 1) or darker."""
    return clip(*(c * factor for c in colour))


def ground(canvas: Canvas, x: tuple[float, float], z: tuple[float, float], colour: Colour, kind: Kind) -> None:
    """A rectangle on the ground."""
    (x0, x1), (z0, z1) = x, z
    canvas.polygon([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], colour, kind)
