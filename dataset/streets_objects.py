"""What stands in a street of the embedded benchmark: one drawing function per kind of object, in metres."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dataset.streets_canvas import Box, Canvas, Colour, Face, Kind, Point, ground, shade

# ---- beside the road ----


def building(canvas: Canvas, box: Box) -> None:
    """A block of flats: rows of windows on the faces that show, a shop floor, a cornice."""
    rng = canvas.rng
    body, glass = canvas.colour("facade"), canvas.colour("window")
    for face in canvas.box(box, body, Kind.BUILDING):
        if face is None:
            continue
        height = box.y1 - box.y0
        columns = min(max(round(face.run / 2.8), 1), 5)
        floors = min(max(round(height / 3.1), 2), 6)
        depth = box.z0 + 1
        canvas.polygon(face.part(0, 0, 1, 0.7 / floors), shade(body, 0.72), Kind.BUILDING, depth)
        canvas.polygon(face.part(0, 1 - 0.12 / floors, 1, 1), shade(body, 1.18), Kind.BUILDING, depth)
        tall = 0.45 + 0.2 * rng.random()
        for column in range(columns):
            for floor in range(floors):
                u, v = (column + 0.25) / columns, (floor + 0.22) / floors
                pane = face.part(u, v, u + 0.5 / columns, v + (tall if floor else 0.42) / floors)
                canvas.polygon(pane, shade(glass, 0.75 + 0.5 * rng.random()), Kind.BUILDING, depth)


def wall(canvas: Canvas, box: Box) -> None:
    """A free-standing wall: joints between its panels and a light coping."""
    colour = canvas.colour("wall")
    for face in canvas.box(box, colour, Kind.WALL):
        if face is None:
            continue
        panels = max(round(face.run / 2.2), 1)
        for panel in range(1, panels):
            u = panel / panels
            joint = face.part(u - 0.06 / panels, 0, u + 0.06 / panels, 1)
            canvas.polygon(joint, shade(colour, 0.6), Kind.WALL, box.z0)
        canvas.polygon(face.part(0, 0.88, 1, 1), shade(colour, 1.25), Kind.WALL, box.z0)


def fence(canvas: Canvas, face: Face) -> None:
    """A fence of uprights and two rails; what shows between them is fence too, as in Cityscapes."""
    colour, gap = canvas.colour("fence"), canvas.colour("fence_gap")
    depth = face.bottom_start[2]
    canvas.polygon(face, gap, Kind.FENCE, depth)
    bars = min(max(round(face.run / 0.45), 3), 22)
    for bar in range(bars):
        u = (bar + 0.5) / bars
        canvas.polygon(face.part(u - 0.2 / bars, 0, u + 0.2 / bars, 1), colour, Kind.FENCE, depth)
    for v in (0.12, 0.82):
        canvas.polygon(face.part(0, v, 1, v + 0.12), shade(colour, 0.85), Kind.FENCE, depth)


def tree(canvas: Canvas, x: float, z: float, height: float) -> None:
    """A trunk and a crown of overlapping tufts, dark below and light above."""
    rng = canvas.rng
    trunk = 0.38 * height
    canvas.bar((x, 0, z), (x, trunk + 0.6, z), 0.07 * height, canvas.colour("trunk"), Kind.VEGETATION)
    leaf = canvas.colour("leaf")
    tufts = 9
    for tuft in range(tufts):
        rise = tuft / (tufts - 1)
        spread = 0.26 * height * (1.05 - 0.75 * rise)
        centre = (x + spread * (2 * rng.random() - 1), trunk + (0.12 + 0.72 * rise) * (height - trunk), z)
        radius = height * (0.13 + 0.06 * rng.random())
        canvas.disc(centre, radius, shade(leaf, 0.7 + 0.5 * rise), Kind.VEGETATION, squeeze=1.25)


def hedge(canvas: Canvas, box: Box) -> None:
    """A clipped hedge with tufts along its top."""
    leaf = canvas.colour("leaf")
    canvas.box(box, leaf, Kind.VEGETATION)
    run = box.z1 - box.z0
    for tuft in range(6, -1, -1):
        centre = ((box.x0 + box.x1) / 2, box.y1 - 0.1, box.z0 + run * tuft / 7)
        bright = 0.8 + 0.4 * canvas.rng.random()
        canvas.disc(centre, 0.45, shade(leaf, bright), Kind.VEGETATION, squeeze=1.6)


def lamp(canvas: Canvas, x: float, z: float, inward: float) -> None:
    """A street lamp whose arm reaches `inward` (+1 to the right, -1 to the left)."""
    colour = canvas.colour("pole")
    height = 5.0 + 1.5 * canvas.rng.random()
    canvas.bar((x, 0, z), (x, height, z), 0.26, colour, Kind.POLE)
    canvas.bar((x, height, z), (x + 1.5 * inward, height + 0.25, z), 0.16, colour, Kind.POLE)
    canvas.bar((x + inward, height + 0.1, z), (x + 1.7 * inward, height + 0.2, z), 0.3, shade(colour, 1.3), Kind.POLE)


def traffic_light(canvas: Canvas, x: float, z: float) -> None:
    """A mast with a three-lamp housing, one lamp lit."""
    rng = canvas.rng
    foot = 2.2 + 0.6 * rng.random()
    canvas.bar((x, 0, z), (x, foot + 0.3, z), 0.22, canvas.colour("pole"), Kind.POLE)
    housing = canvas.colour("light_housing")
    canvas.bar((x, foot, z), (x, foot + 1.5, z), 0.72, housing, Kind.TRAFFIC_LIGHT)
    lit = int(rng.random() * 3)
    for lamp_index, lamp_colour in enumerate(((60, 225, 110), (250, 180, 40), (240, 60, 45))):
        glow = lamp_colour if lamp_index == lit else shade(lamp_colour, 0.35)
        canvas.disc((x, foot + 0.3 + 0.45 * lamp_index, z), 0.2, glow, Kind.TRAFFIC_LIGHT)


def traffic_sign(canvas: Canvas, x: float, z: float) -> None:
    """A post with a round, triangular, square or diamond plate."""
    height = 2.3 + 0.6 * canvas.rng.random()
    canvas.bar((x, 0, z), (x, height, z), 0.18, canvas.colour("pole"), Kind.POLE)
    kind, centre = Kind.TRAFFIC_SIGN, (x, height, z)
    red, white, blue, yellow = (canvas.colour(f"sign_{name}") for name in ("red", "white", "blue", "yellow"))
    form = int(canvas.rng.random() * 4)
    if form == 0:
        canvas.disc(centre, 0.55, red, kind)
        canvas.disc(centre, 0.38, white, kind)
    elif form == 1:
        for size, colour in ((0.72, red), (0.45, white)):
            corners = [
                (x - size, height - 0.55 * size, z),
                (x + size, height - 0.55 * size, z),
                (x, height + size, z),
            ]
            canvas.polygon(corners, colour, kind, z)
    elif form == 2:
        for size, colour in ((0.5, white), (0.42, blue)):
            canvas.bar((x, height - size, z), (x, height + size, z), 2 * size, colour, kind)
        canvas.bar((x, height - 0.2, z), (x, height + 0.25, z), 0.18, white, kind)
    else:
        for size, colour in ((0.66, white), (0.5, yellow)):
            corners = [
                (x - size, height, z),
                (x, height - size, z),
                (x + size, height, z),
                (x, height + size, z),
            ]
            canvas.polygon(corners, colour, kind, z)


def litter_bin(canvas: Canvas, x: float, z: float) -> None:
    """A litter bin: "static" in Cityscapes, ignored in training and scores."""
    canvas.box(Box(x - 0.3, x + 0.3, 0, 1.0, z, z + 0.5, 0.05), canvas.colour("bin"), Kind.STATIC)


# ---- people and two-wheelers ----


def person(canvas: Canvas, x: float, z: float, height: float) -> None:
    """A pedestrian in mid-stride."""
    rng, kind, s = canvas.rng, Kind.PERSON, height / 1.75
    top, trousers, skin = canvas.colour("cloth"), canvas.colour("trousers"), canvas.colour("skin")
    stride = (0.08 + 0.2 * rng.random()) * s
    hip, neck = 0.88 * s, 1.47 * s
    for foot, tone in ((-stride, 0.8), (stride, 1.0)):
        canvas.bar((x, hip, z), (x + foot, 0, z), 0.21 * s, shade(trousers, tone), kind)
    canvas.bar((x - 0.25 * s, neck - 0.08, z), (x - 0.33 * s, hip - 0.05, z), 0.14 * s, shade(top, 0.8), kind)
    torso = [
        (x - 0.23 * s, hip - 0.1, z),
        (x + 0.23 * s, hip - 0.1, z),
        (x + 0.29 * s, neck, z),
        (x - 0.29 * s, neck, z),
    ]
    canvas.polygon(torso, top, kind, z)
    canvas.bar((x + 0.25 * s, neck - 0.08, z), (x + 0.35 * s, hip, z), 0.14 * s, shade(top, 0.9), kind)
    canvas.disc((x, 1.62 * s, z), 0.17 * s, canvas.colour("hair"), kind)
    canvas.disc((x, 1.58 * s, z), 0.135 * s, skin, kind)


def bicycle(canvas: Canvas, x: float, z: float, reach: float) -> None:
    """A bicycle seen from the side; `reach` in -1..1 is the foreshortening along x, its sign the heading."""
    kind, colour = Kind.BICYCLE, canvas.colour("bicycle")
    tyre, spokes = canvas.colour("tyre"), canvas.colour("spokes")
    for wheel in (-0.55, 0.55):
        centre = (x + wheel * reach, 0.37, z)
        canvas.disc(centre, 0.39, tyre, kind, squeeze=abs(reach))
        canvas.disc(centre, 0.29, spokes, kind, squeeze=abs(reach))
    rear, front, pedal = (x - 0.55 * reach, 0.37, z), (x + 0.55 * reach, 0.37, z), (x - 0.08 * reach, 0.36, z)
    saddle, head = (x - 0.22 * reach, 0.92, z), (x + 0.4 * reach, 0.95, z)
    for start, end in (
        (rear, pedal),
        (rear, saddle),
        (saddle, pedal),
        (pedal, head),
        (saddle, head),
        (front, head),
    ):
        canvas.bar(start, end, 0.11, colour, kind)
    canvas.bar((x - 0.36 * reach, 0.98, z), (x - 0.1 * reach, 0.98, z), 0.11, tyre, kind)
    canvas.bar((x + 0.28 * reach, 1.08, z), (x + 0.5 * reach, 1.04, z), 0.1, tyre, kind)


def motorcycle(canvas: Canvas, x: float, z: float, reach: float) -> None:
    """A motorcycle seen from the side: fat wheels, a tank, a seat, a lamp."""
    kind, colour, tyre = Kind.MOTORCYCLE, canvas.colour("motorcycle"), canvas.colour("tyre")
    for wheel in (-0.72, 0.72):
        centre = (x + wheel * reach, 0.36, z)
        canvas.disc(centre, 0.38, tyre, kind, squeeze=max(abs(reach), 0.4))
        canvas.disc(centre, 0.16, canvas.colour("metal"), kind, squeeze=max(abs(reach), 0.4))

    def body(*points: tuple[float, float]) -> list[Point]:
        return [(x + u * reach, v, z) for u, v in points]

    canvas.polygon(body((-0.5, 0.3), (0.4, 0.25), (0.45, 0.7), (-0.4, 0.72)), canvas.colour("engine"), kind, z)
    canvas.polygon(body((-0.95, 0.8), (-0.85, 1.0), (-0.1, 0.88), (-0.1, 0.62), (-0.6, 0.6)), shade(tyre, 1.3), kind, z)
    canvas.polygon(body((-0.25, 0.65), (-0.15, 1.02), (0.42, 1.1), (0.66, 0.72), (0.3, 0.5)), colour, kind, z)
    canvas.bar((x + 0.72 * reach, 0.36, z), (x + 0.45 * reach, 1.05, z), 0.13, canvas.colour("metal"), kind)
    canvas.polygon(body((0.42, 1.0), (0.72, 0.95), (0.5, 1.4), (0.4, 1.38)), shade(colour, 1.15), kind, z)
    canvas.disc((x + 0.66 * reach, 0.93, z), 0.12, (250, 240, 200), kind)


def rider(canvas: Canvas, x: float, z: float, reach: float, vehicle: Kind) -> None:
    """A two-wheeler with somebody on it; the person is a rider, the vehicle keeps its own class."""
    motor = vehicle == Kind.MOTORCYCLE
    (motorcycle if motor else bicycle)(canvas, x, z, reach)
    kind, top, trousers = Kind.RIDER, canvas.colour("jacket"), canvas.colour("trousers")
    seat, lift = (x - 0.25 * reach, 0.95, z), (0.0 if motor else 0.08)
    knee = (x + 0.14 * reach, 0.78 + lift, z)
    foot = (x - 0.05 * reach, 0.38, z)
    neck = (x + (0.1 if motor else 0.16) * reach, 1.55 + lift, z)
    hand = (x + 0.44 * reach, 1.1, z)
    canvas.bar(seat, knee, 0.24, trousers, kind)
    canvas.bar(knee, foot, 0.2, shade(trousers, 0.85), kind)
    canvas.bar((seat[0], 0.9, z), neck, 0.5, top, kind)
    canvas.bar((neck[0], neck[1] - 0.12, z), hand, 0.17, shade(top, 0.85), kind)
    head = (neck[0] + 0.06 * reach, neck[1] + 0.2, z)
    canvas.disc(head, 0.2, canvas.colour("helmet"), kind)
    canvas.disc((head[0] + 0.07 * reach, head[1] - 0.05, z), 0.11, canvas.colour("skin"), kind)


# ---- vehicles ----


class Stance(NamedTuple):
    """Where a vehicle stands: middle of its nearest edge, and how it is turned."""

    x: float
    z: float
    across: bool
    """Its side faces the camera (crossing traffic) instead of its end."""
    oncoming: bool
    """Its front, not its rear, is the end that shows."""

    def box(self, length: tuple[float, float], y: tuple[float, float], width: float, inset: float = 0.0) -> Box:
        """The block between `length[0]` and `length[1]` metres from the near end, centred over the width."""
        if self.across:
            return Box(self.x + length[0], self.x + length[1], *y, self.z, self.z + width, inset, inset * 0.4)
        return Box(
            self.x - width / 2,
            self.x + width / 2,
            *y,
            self.z + length[0],
            self.z + length[1],
            inset * 0.4,
            inset,
        )

    def end_and_side(self, faces: tuple[Face, Face | None]) -> tuple[Face | None, Face | None]:
        """Sort a box's (near, flank) faces into the vehicle's end and side."""
        near, flank = faces
        return (flank, near) if self.across else (near, flank)


def car(canvas: Canvas, stance: Stance) -> None:
    """A car: body, tapering cabin with glass, lamps, wheels."""
    kind, colour, glass = Kind.CAR, canvas.colour("car"), canvas.colour("glass")
    tall = 1.45 + 0.3 * canvas.rng.random() ** 2
    shadow(canvas, stance, 4.3, 1.85)
    underside(canvas, stance, kind, (0.05, 4.25), 1.8)
    body = stance.box((0, 4.3), (0.3, 0.92), 1.85, 0.06)
    cabin = stance.box((0.35, 3.2), (0.9, tall), 1.74, 0.42)
    end, side = stance.end_and_side(canvas.box(body, colour, kind))
    screen, doors = stance.end_and_side(canvas.box(cabin, shade(colour, 1.05), kind))
    if screen is not None:
        canvas.polygon(screen.part(0.08, 0.08, 0.92, 0.86), glass, kind, stance.z)
    if doors is not None:
        canvas.polygon(doors.part(0.08, 0.08, 0.47, 0.86), glass, kind, stance.z)
        canvas.polygon(doors.part(0.53, 0.08, 0.92, 0.86), glass, kind, stance.z)
    lamps(canvas, end, kind, stance.oncoming, 0.5)
    wheels(canvas, side, kind, (0.19, 0.8), 0.34)


def bus(canvas: Canvas, stance: Stance) -> None:
    """A bus: one long block, a band of windows with pillars, a lit board over the windscreen."""
    kind, colour, glass = Kind.BUS, canvas.colour("bus"), canvas.colour("glass")
    length, width, height = 9.5, 2.6, 3.2
    shadow(canvas, stance, length, width)
    underside(canvas, stance, kind, (0.1, length - 0.1), width - 0.1)
    end, side = stance.end_and_side(canvas.box(stance.box((0, length), (0.35, height), width, 0.05), colour, kind))
    if side is not None:
        windows(canvas, side, kind, glass, (0.45, 0.82), 6)
        canvas.polygon(side.part(0, 0.3, 1, 0.36), shade(colour, 0.6), kind, stance.z)
    if end is not None:
        canvas.polygon(end.part(0.08, 0.4, 0.92, 0.8), glass, kind, stance.z)
        canvas.polygon(end.part(0.2, 0.85, 0.8, 0.96), canvas.colour("board"), kind, stance.z)
    lamps(canvas, end, kind, stance.oncoming, 0.2)
    wheels(canvas, side, kind, (0.2, 0.75), 0.48)


def truck(canvas: Canvas, stance: Stance) -> None:
    """A lorry: a tall windowless load box on a chassis and a lower cab at the front end."""
    kind, colour, cab_colour = Kind.TRUCK, canvas.colour("load"), canvas.colour("cab")
    length, width, cab_length = 7.5, 2.6, 1.9
    shadow(canvas, stance, length, width)
    underside(canvas, stance, kind, (0.1, length - 0.1), width - 0.2, 0.95)

    def load(span: tuple[float, float]) -> Face | None:
        end, side = stance.end_and_side(canvas.box(stance.box(span, (0.9, 3.7), width), colour, kind))
        load_marks(canvas, end, side, colour)
        return end

    def cab(span: tuple[float, float]) -> Face | None:
        box = stance.box(span, (0.45, 2.7), width - 0.2, 0.15)
        end, side = stance.end_and_side(canvas.box(box, cab_colour, kind))
        cab_marks(canvas, end if stance.oncoming else None, side)
        return end

    # The farther block first: it is whichever end of the lorry does not show.
    if stance.oncoming:
        load((cab_length + 0.25, length))
        end = cab((0.0, cab_length))
    else:
        cab((length - cab_length, length))
        end = load((0.0, length - cab_length - 0.25))
    lamps(canvas, end, kind, stance.oncoming, 0.12)
    frame = stance.box((0, length), (0.0, 1.0), width)
    x0, x1, z = frame.x0, frame.x1, frame.z0
    across = Face((x0, 0, z), (x1, 0, z), (x1, 1, z), (x0, 1, z))
    wheels(canvas, across if stance.across else canvas.flank(frame), kind, (0.14, 0.3, 0.84), 0.5)


def cab_marks(canvas: Canvas, front: Face | None, side: Face | None) -> None:
    """Windscreen and grille (if the front shows) and door window of a lorry's cab."""
    glass = canvas.colour("glass")
    if front is not None:
        depth = front.bottom_start[2]
        canvas.polygon(front.part(0.08, 0.5, 0.92, 0.9), glass, Kind.TRUCK, depth)
        canvas.polygon(front.part(0.2, 0.12, 0.8, 0.36), canvas.colour("engine"), Kind.TRUCK, depth)
    if side is not None:
        canvas.polygon(side.part(0.25, 0.5, 0.75, 0.85), glass, Kind.TRUCK, side.bottom_start[2])


def load_marks(canvas: Canvas, rear: Face | None, side: Face | None, colour: Colour) -> None:
    """The rear doors' joint, the sill and the sign panel of a load box."""
    if rear is not None:
        canvas.polygon(rear.part(0.47, 0, 0.53, 1), shade(colour, 0.6), Kind.TRUCK, rear.bottom_start[2])
    if side is not None:
        depth = side.bottom_start[2]
        canvas.polygon(side.part(0, 0, 1, 0.1), shade(colour, 0.55), Kind.TRUCK, depth)
        canvas.polygon(side.part(0.1, 0.35, 0.9, 0.6), canvas.colour("cab"), Kind.TRUCK, depth)


def train(canvas: Canvas, stance: Stance) -> None:
    """A tram on rails: long, no wheels in sight, doors, a stripe, a pantograph."""
    kind, colour, stripe = Kind.TRAIN, canvas.colour("train"), canvas.colour("train_stripe")
    length, width, height = 21.0, 2.7, 3.6
    shadow(canvas, stance, length, width)
    roof = stance.box((0.8, length - 0.8), (height, height + 0.35), width - 0.6)
    canvas.box(roof, shade(colour, 0.55), kind)
    skirt = stance.box((0.2, length), (0.08, 0.45), width - 0.1)
    canvas.box(skirt, canvas.colour("engine"), kind)
    end, side = stance.end_and_side(canvas.box(stance.box((0, length), (0.4, height), width, 0.18), colour, kind))
    glass = canvas.colour("glass")
    for face in (end, side):
        if face is not None:
            canvas.polygon(face.part(0, 0.06, 1, 0.3), stripe, kind, stance.z)
    if side is not None:
        windows(canvas, side, kind, glass, (0.48, 0.84), 11)
        for door in (0.12, 0.38, 0.64, 0.9):
            canvas.polygon(side.part(door - 0.02, 0.05, door + 0.02, 0.86), stripe, kind, stance.z)
    if end is not None:
        canvas.polygon(end.part(0.1, 0.42, 0.9, 0.88), glass, kind, stance.z)
        canvas.polygon(end.part(0.44, 0.12, 0.56, 0.22), (250, 245, 210), kind, stance.z)


def shadow(canvas: Canvas, stance: Stance, length: float, width: float) -> None:
    """The dark patch under a vehicle, part of the road."""
    frame = stance.box((-0.25, length + 0.25), (0, 0), width + 0.5)
    colour = shade(canvas.colour("road"), 0.75 - 0.35 * canvas.contrast)
    ground(canvas, (frame.x0, frame.x1), (frame.z0 - 0.15, frame.z1), colour, Kind.ROAD)


def underside(
    canvas: Canvas, stance: Stance, kind: Kind, length: tuple[float, float], width: float, top: float = 0.4
) -> None:
    """The dark chassis between a vehicle's body and the road, tyres of the visible end included."""
    tyre = canvas.colour("tyre")
    near, _ = canvas.box(stance.box(length, (0.18, top), width), shade(tyre, 0.9), kind)
    if not stance.across:
        for u in (0.04, 0.78):
            low = near.part(u, 0, u + 0.18, 1)
            foot = Face((low[0][0], 0, low[0][2]), (low[1][0], 0, low[1][2]), low[2], low[3])
            canvas.polygon(foot, tyre, kind, stance.z)


def windows(canvas: Canvas, face: Face, kind: Kind, glass: Colour, v: tuple[float, float], count: int) -> None:
    """A band of windows along a vehicle's side."""
    for index in range(count):
        u = (index + 0.1) / count
        canvas.polygon(face.part(u, v[0], u + 0.8 / count, v[1]), glass, kind, face.bottom_start[2])


def lamps(canvas: Canvas, end: Face | None, kind: Kind, oncoming: bool, v: float) -> None:
    """Head lamps or tail lamps, and a number plate."""
    if end is None:
        return
    colour: Colour = (255, 248, 215) if oncoming else (205, 25, 25)
    depth = end.bottom_start[2]
    for u in (0.05, 0.77):
        canvas.polygon(end.part(u, v, u + 0.18, v + 0.22), colour, kind, depth)
    canvas.polygon(end.part(0.37, 0.1, 0.63, 0.25), (225, 225, 215), kind, depth)


def wheels(canvas: Canvas, side: Face | None, kind: Kind, along: Sequence[float], radius: float) -> None:
    """Wheels as discs in the plane of a vehicle's visible side; `along` in fractions of its length."""
    if side is None:
        return
    tyre, hub = canvas.colour("tyre"), canvas.colour("metal")
    for u in along:
        for size, colour in ((radius, tyre), (0.5 * radius, hub)):
            around = (side.at(u + size * c / side.run, 0) for c, _ in CIRCLE)
            rim = [(x, radius + size * s, z) for (x, _, z), (_, s) in zip(around, CIRCLE, strict=True)]
            canvas.polygon(rim, colour, kind, side.bottom_start[2])


CIRCLE = tuple((math.cos(2 * math.pi * i / 12), math.sin(2 * math.pi * i / 12)) for i in range(12))
"""Twelve points of the unit circle."""

VEHICLES: Mapping[Kind, tuple[Callable[[Canvas, Stance], None], float]] = {
    Kind.CAR: (car, 4.3),
    Kind.TRUCK: (truck, 7.5),
    Kind.BUS: (bus, 9.5),
    Kind.TRAIN: (train, 21.0),
}
"""Vehicle kind -> its drawing function and its length in metres."""
