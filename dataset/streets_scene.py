"""How a street of the embedded benchmark is laid out: its cross-section, what lines it and what moves in it.

Each placing function yields items, a distance and something to paint; `compose` paints them from far to near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from dataset import streets_objects as objects
from dataset.streets_canvas import NEAREST_DEPTH, SUPERSAMPLING, Box, Camera, Canvas, Face, Kind, ground, shade
from dataset.streets_objects import VEHICLES, Stance
from dataset.streets_styles import Range, Style

Item = tuple[float, Callable[[], None]]
"""Distance by which the painter sorts, and what to paint."""

LAST_LOT = 58.0
"""Metres; the frontages end here and the backdrop stands behind."""


class Side(NamedTuple):
    """One side of the street; distances from the road's middle, in metres."""

    sign: int
    walk: Range
    """Inner and outer edge of the sidewalk."""
    track: float | None
    """Middle of a tram track beyond the sidewalk."""
    front: float
    """Where the lots begin."""
    green: bool
    """Grass, not paving, between the buildings."""

    def x(self, distance: float) -> float:
        """Signed street coordinate of a distance on this side."""
        return self.sign * distance

    def span(self, inner: float, outer: float) -> Range:
        """Signed (low, high) of a strip between two distances."""
        a, b = self.sign * inner, self.sign * outer
        return min(a, b), max(a, b)


class Street(NamedTuple):
    """The plan that every placing function reads."""

    style: Style
    rng: np.random.Generator
    canvas: Canvas
    road: float
    """Half the road's width."""
    sides: tuple[Side, Side]
    crossing: Range | None
    """Near and far edge of a crossing street."""

    def has(self, kind: Kind) -> bool:
        """Draw whether this image is given the kind."""
        return bool(self.rng.random() < self.style.chances[kind])

    def number(self, kind: Kind) -> int:
        """Draw how many of the kind this image is given."""
        low, high = self.style.counts[kind]
        return int(self.rng.integers(low, high + 1))

    def side(self) -> Side:
        """Draw a side of the street."""
        return self.sides[int(self.rng.random() * 2)]


def uniform(rng: np.random.Generator, bounds: Range) -> float:
    """A uniform draw from a `Range`."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def compose(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> Canvas:
    """Plan a street and paint it, far things first."""
    width, height = (SUPERSAMPLING * edge for edge in size)
    road = uniform(rng, style.road_half_width)
    camera = Camera(
        x=uniform(rng, (-0.1, 0.45)) * road,
        height=uniform(rng, style.camera_height),
        focal=uniform(rng, style.focal) * width,
        centre=(0.5 + 0.08 * (2 * rng.random() - 1)) * width,
        horizon=uniform(rng, style.horizon) * height,
    )
    canvas = Canvas(
        camera=camera,
        size=(width, height),
        rng=rng,
        palette=style.palette,
        contrast=uniform(rng, style.sun),
        jitter=style.jitter,
    )
    street = plan(rng, style, canvas, road)
    pave(street)
    items = [*backdrop(street), *frontages(street), *traffic(street), *two_wheelers(street), *people(street)]
    items += [*trams(street), *furniture(street)]
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()
    if style.bonnet:
        rise = height * uniform(rng, (0.03, 0.09))
        box = (-0.1 * width, height - rise, 1.1 * width, height + 3 * rise)
        canvas.screen_ellipse(box, canvas.colour("bonnet"), Kind.EGO_VEHICLE)
    return canvas


def plan(rng: np.random.Generator, style: Style, canvas: Canvas, road: float) -> Street:
    """Draw the street's cross-section and whether a street crosses it."""
    tram_side = int(rng.random() * 2) if rng.random() < 0.55 * style.chances[Kind.TRAIN] else None
    sides = []
    for index, sign in enumerate((-1, 1)):
        verge = uniform(rng, (1.6, 4.0)) if rng.random() < style.chances[Kind.TERRAIN] else 0.0
        walk = (road, road + uniform(rng, style.sidewalk_width))
        track = walk[1] + 1.9 if tram_side == index else None
        front = walk[1] + (3.8 if track else 0.0) + verge
        sides.append(Side(sign, walk, track, front, bool(rng.random() < style.chances[Kind.TERRAIN])))
    crossing = None
    if rng.random() < style.cross_street:
        near = uniform(rng, (15.0, 21.0))
        crossing = (near, near + 8.0)
    return Street(style, rng, canvas, road, (sides[0], sides[1]), crossing)


def pave(street: Street) -> None:
    """The ground: yards, sidewalks with kerbs, grass, tracks, the road and its markings."""
    canvas, road = street.canvas, street.road
    depth = (NEAREST_DEPTH, 400.0)
    grass, paving, asphalt = (canvas.colour(name) for name in ("grass", "paving", "road"))
    for side in street.sides:
        yard = (grass, Kind.TERRAIN) if side.green else (paving, Kind.SIDEWALK)
        ground(canvas, side.span(side.front, 200), depth, *yard)
        ground(canvas, side.span(side.walk[1], side.front), depth, grass, Kind.TERRAIN)
        ground(canvas, side.span(*side.walk), depth, paving, Kind.SIDEWALK)
        kerb = side.span(side.walk[0] - 0.02, side.walk[0] + 0.22)
        ground(canvas, kerb, depth, shade(paving, 1.2), Kind.SIDEWALK)
        if side.track is not None:
            rails(street, side.span(side.track - 1.5, side.track + 1.5), depth)
    ground(canvas, (-road, road), depth, asphalt, Kind.ROAD)
    if street.crossing is not None:
        ground(canvas, (-200, 200), street.crossing, asphalt, Kind.ROAD)
    markings(street)


def rails(street: Street, x: Range, z: Range) -> None:
    """A tram's track bed along the street: ground that is neither road nor sidewalk."""
    canvas = street.canvas
    ground(canvas, x, z, canvas.colour("bed"), Kind.TERRAIN)
    for offset in (0.7, 2.2):
        ground(canvas, (x[0] + offset, x[0] + offset + 0.12), z, canvas.colour("rail"), Kind.TERRAIN)


def markings(street: Street) -> None:
    """A dashed middle line, edge lines, a zebra crossing before the crossing street."""
    canvas, road = street.canvas, street.road
    white = canvas.colour("marking")
    gap = street.crossing or (LAST_LOT, LAST_LOT)
    for dash in range(12):
        z = 3.0 + 4.5 * dash
        if not gap[0] - 4 < z < gap[1]:
            ground(canvas, (-0.1, 0.1), (z, z + 2.2), white, Kind.ROAD)
    for x in (-road + 0.35, road - 0.35):
        ground(canvas, (x - 0.07, x + 0.07), (NEAREST_DEPTH, gap[0] - 3.2), white, Kind.ROAD)
    if street.crossing is not None:
        for stripe in range(int(2 * road - 1)):
            x = -road + 0.6 + stripe
            ground(canvas, (x, x + 0.5), (gap[0] - 3, gap[0] - 0.6), white, Kind.ROAD)


def backdrop(street: Street) -> Iterator[Item]:
    """What closes the street far away: a row of buildings and tree tops."""
    rng, canvas = street.rng, street.canvas
    x = -48.0
    while x < 48:
        width = uniform(rng, (7, 15))
        if rng.random() < 0.6:
            box = Box(x, x + width, 0, uniform(rng, street.style.building_height), 72, 84)
            yield 90.0, partial(objects.building, canvas, box)
        else:
            yield 89.0, partial(objects.tree, canvas, x + width / 2, 70.0, uniform(rng, (8, 13)))
        x += width


def frontages(street: Street) -> Iterator[Item]:
    """Lots along both sides: prescribed walls and fences where they show best, the rest by the weights."""
    rng = street.rng
    lots = [(side, z) for side in street.sides for z in divide(street)]
    kinds = list(street.style.frontage)
    weights = np.cumsum(list(street.style.frontage.values()))
    chosen = [kinds[int(np.searchsorted(weights, rng.random() * weights[-1]))] for _ in lots]
    showing = [i for i, (side, z) in enumerate(lots) if 1.6 * side.front < z[1] and z[0] < 18]
    rng.shuffle(showing)
    for name, kind in (("wall", Kind.WALL), ("fence", Kind.FENCE)):
        if showing and street.has(kind):
            chosen[showing.pop()] = name
    for (side, z), name in zip(lots, chosen, strict=True):
        yield from LOTS[name](street, side, z)


def divide(street: Street) -> Iterator[Range]:
    """Cut a side into lots, leaving the crossing street open."""
    z = uniform(street.rng, (2.0, 5.0))
    crossing = street.crossing or (LAST_LOT, LAST_LOT)
    while z < LAST_LOT:
        if crossing[0] - 3 < z < crossing[1]:
            z = crossing[1]
        end = z + uniform(street.rng, (6.0, 12.0))
        if z < crossing[0] < end + 3:
            end = max(crossing[0], z + 1)
        yield z, end - 0.1
        z = end


def building_lot(street: Street, side: Side, z: Range, setback: float = 0.0) -> Iterator[Item]:
    """A building at (or behind) the front line."""
    height = uniform(street.rng, street.style.building_height)
    front = side.front + setback
    box = Box(*side.span(front, front + 12), 0, height, *z)
    yield z[1] + 0.2 * (setback > 0), partial(objects.building, street.canvas, box)


def behind(street: Street, side: Side, z: Range) -> Iterator[Item]:
    """What shows above a low front: a building further back, or trees."""
    if street.rng.random() < 0.5:
        yield from building_lot(street, side, z, uniform(street.rng, (5.0, 9.0)))
        return
    for depth in (z[0] + 0.5, (z[0] + z[1]) / 2):
        x = side.x(side.front + uniform(street.rng, (2.5, 5.0)))
        yield z[1] + 0.1, partial(objects.tree, street.canvas, x, depth, uniform(street.rng, (4.5, 7.5)))


def wall_lot(street: Street, side: Side, z: Range) -> Iterator[Item]:
    """A wall along the sidewalk that turns round the corner."""
    yield from behind(street, side, z)
    box = Box(*side.span(side.front, side.front + 11), 0, uniform(street.rng, (2.1, 3.0)), *z)
    yield z[1], partial(objects.wall, street.canvas, box)


def fence_lot(street: Street, side: Side, z: Range) -> Iterator[Item]:
    """A fence along the sidewalk that turns round the corner."""
    yield from behind(street, side, z)
    height, x = uniform(street.rng, (1.6, 2.3)), side.x(side.front)
    along = Face((x, 0, z[0]), (x, 0, z[1]), (x, height, z[1]), (x, height, z[0]))
    outer = side.x(side.front + 9)
    across = Face((x, 0, z[0]), (outer, 0, z[0]), (outer, height, z[0]), (x, height, z[0]))
    yield z[1], partial(objects.fence, street.canvas, along)
    yield z[1] - 0.01, partial(objects.fence, street.canvas, across)


def hedge_lot(street: Street, side: Side, z: Range) -> Iterator[Item]:
    """A hedge along the sidewalk."""
    yield from behind(street, side, z)
    box = Box(*side.span(side.front, side.front + 1.4), 0, uniform(street.rng, (1.3, 2.2)), *z)
    yield z[1], partial(objects.hedge, street.canvas, box)


def park_lot(street: Street, side: Side, z: Range) -> Iterator[Item]:
    """A lawn with trees."""
    lawn = partial(
        ground,
        street.canvas,
        side.span(side.front, side.front + 14),
        z,
        street.canvas.colour("grass"),
        Kind.TERRAIN,
    )
    yield z[1] + 0.3, lawn
    for tree in range(2):
        depth = z[0] + (0.3 + 0.5 * tree) * (z[1] - z[0])
        x = side.x(side.front + uniform(street.rng, (1.0, 7.0)))
        yield depth, partial(objects.tree, street.canvas, x, depth, uniform(street.rng, (4.0, 7.0)))


LOTS: Mapping[str, Callable[[Street, Side, Range], Iterator[Item]]] = {
    "building": building_lot,
    "wall": wall_lot,
    "fence": fence_lot,
    "hedge": hedge_lot,
    "park": park_lot,
}
"""Frontage name -> what stands on such a lot."""


def traffic(street: Street) -> Iterator[Item]:
    """Vehicles in the lanes, and across them where a street crosses."""
    rng, canvas = street.rng, street.canvas
    vehicles = [kind for kind in (Kind.TRUCK, Kind.BUS) if street.has(kind)]
    rng.shuffle(vehicles)
    cars = street.number(Kind.CAR)
    if street.crossing is not None:
        kind = vehicles.pop() if vehicles and rng.random() < 0.6 else Kind.CAR
        draw, length = VEHICLES[kind]
        x = canvas.camera.x + uniform(rng, (-7.0, 7.0)) - length / 2
        stance = Stance(x, street.crossing[0] + uniform(rng, (0.5, 4.0)), True, bool(rng.random() < 0.5))
        yield stance.z, partial(draw, canvas, stance)
    queue: list[Kind] = [*vehicles, *[Kind.CAR] * cars]
    lanes = [street.road - 1.2, -street.road + 1.2, -0.35 * street.road, 0.35 * street.road]
    next_z = [uniform(rng, bounds) for bounds in ((9.0, 15.0), (8.0, 14.0), (6.0, 11.0), (8.0, 14.0))]
    order = [int(i) for i in rng.permutation(4)]
    last = street.crossing[0] - 4 if street.crossing else 45.0
    for position, kind in enumerate(queue):
        lane = order[position % 4]
        draw, length = VEHICLES[kind]
        if next_z[lane] + length > last:
            continue
        stance = Stance(lanes[lane] + uniform(rng, (-0.2, 0.2)), next_z[lane], False, lane in (1, 2))
        yield stance.z, partial(draw, canvas, stance)
        next_z[lane] += length + uniform(rng, (1.5, 6.0))


def trams(street: Street) -> Iterator[Item]:
    """A train on the track beside the street, or crossing."""
    rng, canvas = street.rng, street.canvas
    draw, length = VEHICLES[Kind.TRAIN]
    for side in street.sides:
        if side.track is not None:
            stance = Stance(side.x(side.track), uniform(rng, (9.0, 16.0)), False, bool(rng.random() < 0.5))
            yield stance.z + length, partial(draw, canvas, stance)
            return
    if street.crossing is not None and rng.random() < 1.1 * street.style.chances[Kind.TRAIN]:
        side = street.side()
        x = uniform(rng, (-6.0, 1.0)) if side.sign > 0 else uniform(rng, (-1.0, 6.0)) - length
        stance = Stance(x, street.crossing[1] - 3.0, True, False)
        yield stance.z, partial(draw, canvas, stance)


def two_wheelers(street: Street) -> Iterator[Item]:
    """Riders at the road's edges; parked bicycles and motorcycles on the sidewalks."""
    rng, canvas = street.rng, street.canvas
    motor, pedal = street.has(Kind.MOTORCYCLE), street.has(Kind.BICYCLE)
    kinds = [kind for kind, wanted in ((Kind.MOTORCYCLE, motor), (Kind.BICYCLE, pedal)) if wanted]
    for _ in range(street.number(Kind.RIDER)):
        if not kinds:
            return
        z, kind = uniform(rng, (5.0, 11.0)), kinds[int(rng.random() * len(kinds))]
        x = canvas.camera.x + uniform(rng, (-0.55, 0.55)) * z
        x = min(max(x, -street.road - 1.5), street.road + 1.5)
        yield z, partial(objects.rider, canvas, x, z, turned(rng), kind)
    for kind in kinds:
        z = uniform(rng, (6.0, 11.0))
        side = street.side()
        for _ in range(int(rng.integers(1, 4))):
            draw = objects.motorcycle if kind == Kind.MOTORCYCLE else objects.bicycle
            yield z, partial(draw, canvas, side.x(uniform(rng, side.walk)), z, turned(rng))
            z += uniform(rng, (0.7, 1.4))


def turned(rng: np.random.Generator) -> float:
    """How a two-wheeler is turned: foreshortening along x with the heading's sign."""
    return uniform(rng, (0.55, 1.0)) * (1 if rng.random() < 0.5 else -1)


def people(street: Street) -> Iterator[Item]:
    """Pedestrians on the sidewalks, singly and in pairs, now and then on the road."""
    rng, canvas = street.rng, street.canvas
    number = street.number(Kind.PERSON)
    while number > 0:
        z, side = uniform(rng, (5.0, 13.0)), street.side()
        x = side.x(uniform(rng, side.walk)) if rng.random() < 0.8 else uniform(rng, (-0.7, 0.7)) * street.road
        for companion in range(2 if rng.random() < 0.4 else 1):
            depth = z + 0.2 * companion
            place = x + 0.75 * companion
            yield depth, partial(objects.person, canvas, place, depth, uniform(rng, (1.55, 1.9)))
            number -= 1


def furniture(street: Street) -> Iterator[Item]:
    """Lamps, traffic lights, signs, street trees and bins at the kerbs."""
    rng, canvas = street.rng, street.canvas
    near = (5.5, 15.0)
    for _ in range(street.number(Kind.POLE)):
        z, side = uniform(rng, near), street.side()
        yield z, partial(objects.lamp, canvas, side.x(side.walk[0] + 0.4), z, float(-side.sign))
    for draw, kind in (
        (objects.traffic_light, Kind.TRAFFIC_LIGHT),
        (objects.traffic_sign, Kind.TRAFFIC_SIGN),
    ):
        for _ in range(street.number(kind)):
            z, side = uniform(rng, near), street.side()
            yield z, partial(draw, canvas, side.x(side.walk[0] + uniform(rng, (0.2, 1.0))), z)
    for _ in range(street.number(Kind.VEGETATION)):
        z, side = uniform(rng, (8.0, 30.0)), street.side()
        x = side.x(side.walk[1] - 0.3)
        yield z, partial(objects.tree, canvas, x, z, uniform(rng, (4.0, 6.5)))
    if street.has(Kind.STATIC):
        z, side = uniform(rng, near), street.side()
        yield z, partial(objects.litter_bin, canvas, side.x(side.walk[1] - 0.5), z)
