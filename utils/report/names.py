"""Where the names on a map of points stand: beside their marks where there is room, else at the end of a line to them.

Places are (x, y) in pixels of the surface, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Place = tuple[float, float]

HEIGHT = 14.0  # of a line of text
_BESIDE = 9.0  # pixels between a mark's middle and a name beside it
_STEP = 12.0  # pixels between the rings of places tried further off
_DIRECTIONS = tuple((math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)) for turn in range(16))
_MARK = 6.0  # pixels around a mark's middle that a name should leave free
# What keeps a name from a place, in pixels that it would rather move instead; the third: its line is too short to see.
_OUTSIDE, _ON_NAME, _SHORT, _ON_LINE, _ON_MARK = 1e6, 1e5, 80.0, 60.0, 30.0


class Box(NamedTuple):
    """A name's box; the name belongs to the mark at `spot`, and a line leads there unless that is plain to see."""

    left: float
    top: float
    width: float
    spot: Place
    led: bool

    @property
    def baseline(self) -> Place:
        """Where the text begins."""
        return self.left, self.top + HEIGHT - 3.5

    def nearest(self, place: Place) -> Place:
        """The box's point closest to a place."""
        x = min(max(place[0], self.left), self.left + self.width)
        return x, min(max(place[1], self.top), self.top + HEIGHT)

    def gap(self, place: Place) -> float:
        """How far away a place is."""
        return math.dist(self.nearest(place), place)

    @property
    def line(self) -> tuple[Place, Place] | None:
        """From the name to its mark, if one leads there."""
        return (self.nearest(self.spot), self.spot) if self.led else None

    def touches(self, other: Box) -> bool:
        """Whether two names would run into each other."""
        apart = self.left >= other.left + other.width + 4 or other.left >= self.left + self.width + 4
        return not apart and abs(self.top - other.top) < HEIGHT

    def crosses(self, other: Box) -> bool:
        """Whether the line of one runs through the other's line or name."""
        lines = [box.line for box in (self, other)]
        if lines[0] and lines[1] and _cross(*lines[0], *lines[1]):
            return True
        return any(line is not None and box.struck(line) for line, box in zip(lines, (other, self), strict=True))

    def struck(self, line: tuple[Place, Place]) -> bool:
        """Whether a line runs through the name: through one of the diagonals of its box."""
        right, bottom = self.left + self.width, self.top + HEIGHT
        falling, rising = ((self.left, self.top), (right, bottom)), ((self.left, bottom), (right, self.top))
        return _cross(*line, *falling) or _cross(*line, *rising)


def placed(spots: Sequence[Place], widths: Sequence[float], marks: Sequence[Place], side: float) -> list[Box]:
    """A box for each name, in the order of `spots`, the marks they belong to; no two touch, none leaves the square
    surface that it fits on. marks: all that names keep off, `spots` among them."""
    crowded = sorted(range(len(spots)), key=lambda index: sum(math.dist(spots[index], mark) for mark in marks))
    boxes: dict[int, Box] = {}
    for index in crowded:  # those in a crowd first: others find room nearby later, too
        boxes[index] = _best(spots[index], widths[index], list(boxes.values()), marks, side)
    return [boxes[index] for index in range(len(spots))]


def _best(spot: Place, width: float, taken: Sequence[Box], marks: Sequence[Place], side: float) -> Box:
    """The place that costs least; the nearest ones are tried first, until going further costs more than is to gain."""
    best, least = None, math.inf
    for distance, box in _around(spot, width, marks, side):
        if best is not None and distance >= least:
            break
        cost = distance + _cost(box, taken, marks, side)
        if cost < least:
            best, least = box, cost
    assert best is not None
    return best


def _around(spot: Place, width: float, marks: Sequence[Place], side: float) -> Iterator[tuple[float, Box]]:
    """Boxes around a mark and their distances, those beside it first, to its right before any other."""
    distance = _BESIDE
    while distance < 1.5 * side:
        for x, y in _DIRECTIONS:
            middle = spot[0] + x * distance + _pushed(x, width), spot[1] + y * distance + _pushed(y, HEIGHT)
            box = Box(middle[0] - width / 2, middle[1] - HEIGHT / 2, width, spot, led=distance > _BESIDE)
            yield distance, box._replace(led=box.led or _mistaken(box, marks))
        distance += _STEP


def _mistaken(box: Box, marks: Sequence[Place]) -> bool:
    """Whether a name is as close to another mark as to its own."""
    own = box.gap(box.spot)
    return any(box.gap(mark) <= own + 1 for mark in marks if mark != box.spot)


def _pushed(share: float, length: float) -> float:
    """By how much the middle of a box moves so that its edge is as far away as its direction says."""
    return math.copysign(min(1.0, 2 * abs(share)), share) * length / 2


def _cost(box: Box, taken: Sequence[Box], marks: Sequence[Place], side: float) -> float:
    outside = box.left < 2 or box.top < 2 or box.left + box.width > side - 2 or box.top + HEIGHT > side - 2
    others = [mark for mark in marks if mark != box.spot]
    return (
        _OUTSIDE * outside
        + _ON_NAME * any(box.touches(other) for other in taken)
        + _SHORT * (box.led and box.gap(box.spot) <= _BESIDE)
        + _ON_LINE * sum(box.crosses(other) for other in taken)
        + _ON_MARK * sum(box.gap(mark) < _MARK for mark in others)
    )


def _cross(start: Place, stop: Place, other_start: Place, other_stop: Place) -> bool:
    """Whether two stretches cross."""
    return _left(start, stop, other_start) != _left(start, stop, other_stop) and _left(
        other_start, other_stop, start
    ) != _left(other_start, other_stop, stop)


def _left(start: Place, stop: Place, place: Place) -> bool:
    """Whether a place is on the left of the way from start to stop."""
    return (stop[0] - start[0]) * (place[1] - start[1]) > (stop[1] - start[1]) * (place[0] - start[0])
