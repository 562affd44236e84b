"""Charts as inline SVG: lines, matrices, strips over time, a map of points. Colours are the style sheet's, so that they
follow light and dark.

Everything is drawn on a surface of some size in CSS pixels. On a narrower page lines, strips and maps shrink while they
stay legible (page.css), then their box scrolls; a matrix keeps its size and scrolls beside its row names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from utils.report.markup import Child, Html, join, tag
from utils.report.names import placed

Series = Sequence[tuple[float, float]]
Matrix = npt.NDArray[np.float64]

MOST_POINTS = 200  # of a line; a longer one is drawn from the means of as many stretches
COLOURS = 8  # that the style sheet has for lines
_DOTTED = 30  # points to a line, up to which each has a dot
_LEFT = 52  # where the lines begin, right of the ticks' labels
_CHARACTER = 6.4  # width of a character of a small label
_NAME_CHARACTER = 7.0  # of a map's names, which are larger


def _svg(width: float, height: float, *children: Child, **attributes: object) -> Html:
    return tag("svg", *children, viewBox=f"0 0 {width:g} {height:g}", width=width, height=height, **attributes)


def _scrolled(width: float, height: float, *children: Child, label: str) -> Html:
    return tag("div", _svg(width, height, *children, role="img", aria_label=label), class_="scroll")


def _text(x: float, y: float, text: str, *, anchor: str = "start", class_: str = "label", **attributes: object) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_, **attributes)


# ---- lines ----


class Axis(NamedTuple):
    """Values low..high over a stretch of the surface, and where its ticks are."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    step: float

    def text(self, tick: float) -> str:
        """A tick's label: with as many digits as the step asks for, in powers of ten where those are many."""
        digits = -_magnitude(self.step)
        if digits <= 5:
            text = f"{tick:.{max(0, digits)}f}"
        else:
            text = f"{tick:.{_magnitude(max(abs(self.low), abs(self.high))) + digits}e}".replace("e-0", "e-")
        return text.replace("-", "\N{MINUS SIGN}")

    def at(self, value: float) -> float:
        """Where a value lies on the surface."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


TINY = 1e-90  # below it a number is 0: halves of the smallest ones are


def axis(values: Sequence[float], start: float, stop: float, *, count: int = 4) -> Axis:
    """An axis over all of the values, from tick to tick of 1, 2 or 5 times a power of ten."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(largest, TINY):  # flat, but for rounding
        low, high = (low - largest / 2, high + largest / 2) if largest > TINY else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** _magnitude(rough)
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= rough), power * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, stop, ticks, step)


def _magnitude(value: float) -> int:
    """The power of ten that a number begins at."""
    return math.floor(math.log10(value) + 1e-9)


def thinned(series: Series, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: the means of equally many neighbours each."""
    points = [(x, y) for x, y in series if math.isfinite(y)]
    if len(points) <= most:
        return points
    return [tuple(part.mean(axis=0).tolist()) for part in np.array_split(np.array(points), most)]


@dataclass(frozen=True)
class LineChart:
    """Lines over the updates of a run, each under its name; references: levels to compare with.

    order: names in the order of their colours, so that several charts of the same names share them; those of the
    lines unless given. share: values are within 0..1, and all of it is shown.
    """

    title: str
    lines: Mapping[str, Series]
    references: Mapping[str, float] = field(default_factory=dict)
    order: Sequence[str] = ()
    share: bool = False
    width: int = 390
    height: int = 200

    def draw(self) -> Html:
        """Title, chart, and a legend where there is more than one thing to tell apart."""
        lines = {name: thinned(series) for name, series in self.lines.items()}
        x = axis([0.0, *(point[0] for line in lines.values() for point in line)], _LEFT, self.width - 12)
        heights = [point[1] for line in lines.values() for point in line] + list(self.references.values())
        y = axis([0.0, 1.0] if self.share else heights, self.height - 24, 10)
        drawn = join(
            self._grid(x, y),
            (self._reference(level, y, self._look(name)) for name, level in self.references.items()),
            (_line(line, x, y, self._look(name)) for name, line in lines.items()),
        )
        looks = {name: self._look(name) for name in lines}
        looks |= {name: f"reference {self._look(name)}" for name in self.references}
        return tag(
            "figure",
            tag("figcaption", self.title),
            _scrolled(self.width, self.height, drawn, label=self.title),
            _legend(looks) if len(looks) > 1 or self.order else None,
        )

    def _look(self, name: str) -> str:
        """The style of a name: one of the colours, dashed where they begin again."""
        names = [*(self.order or self.lines), *self.references]
        turn, colour = divmod(names.index(name), COLOURS)
        return f"s{colour}" + (" again" if turn else "")

    def _grid(self, x: Axis, y: Axis) -> Html:
        right = self.width - 12
        rows = [
            join(
                tag("line", x1=_LEFT, x2=right, y1=f"{y.at(tick):.1f}", y2=f"{y.at(tick):.1f}", class_="grid"),
                _text(_LEFT - 6, y.at(tick) + 4, y.text(tick), anchor="end"),
            )
            for tick in y.ticks
        ]
        bottom = self.height - 24
        columns = [_text(x.at(tick), bottom + 16, x.text(tick), anchor="middle") for tick in _apart(x)]
        return join(rows, columns)

    def _reference(self, level: float, y: Axis, look: str) -> Html:
        height = f"{y.at(level):.1f}"
        return tag("line", x1=_LEFT, x2=self.width - 12, y1=height, y2=height, class_=f"reference {look}")


def _apart(x: Axis) -> list[float]:
    """The ticks whose labels do not touch."""
    kept: list[float] = []
    end = -math.inf
    for tick in x.ticks:
        half = len(x.text(tick)) * _CHARACTER / 2
        if x.at(tick) - half > end + 6:
            kept.append(tick)
            end = x.at(tick) + half
    return kept


def _line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, look: str) -> Html:
    places = [(f"{x.at(step):.1f}", f"{y.at(value):.1f}") for step, value in points]
    path = tag("polyline", points=" ".join(",".join(place) for place in places), class_=f"line {look}")
    if len(points) > _DOTTED:
        return path
    dots = [
        tag("circle", tag("title", f"{step:g}: {value:.6g}"), cx=place[0], cy=place[1], r=3, class_=f"dot {look}")
        for (step, value), place in zip(points, places, strict=True)
    ]
    return join(path, dots)


def _legend(looks: Mapping[str, str]) -> Html:
    """What the colours and dashes of a chart's lines, or the hues of its cells, mean."""
    return tag(
        "div", (tag("span", tag("i", class_=f"key {look}"), name) for name, look in looks.items()), class_="legend"
    )


# ---- matrices ----


class Hues(NamedTuple):
    """What the two hues of cells mean."""

    plus: str
    minus: str


def _hues(key: Hues | None) -> Html | None:
    return _legend({key.plus: "plus", key.minus: "minus"}) if key else None


@dataclass(frozen=True)
class MatrixChart:
    """A square of numbers, one row and column per class.

    text: what a cell says. strength (C, C): how strongly each is coloured, -1..1; below 0 in the other hue. key: what
    the hues mean, where there are two.
    """

    title: str
    values: Matrix
    names: Sequence[str]
    text: Callable[[float], str]
    strength: Matrix
    rows: str
    columns: str
    key: Hues | None = None

    @property
    def cell(self) -> int:
        """The side of a cell: two matrices of the classes of Cityscapes fit side by side."""
        return 30 if len(self.names) <= 12 else 24

    def draw(self) -> Html:
        """The matrix with its names: column names above, turned; row names on a surface of their own to the left, which
        stays in sight where the other is scrolled."""
        longest = max(map(len, self.names))
        left = longest * _CHARACTER + 14
        top = longest * _CHARACTER * 0.72 + 16
        middles = [(index + 0.5) * self.cell for index in range(len(self.names))]
        ends = (middle + len(name) * _CHARACTER * 0.75 for middle, name in zip(middles, self.names, strict=True))
        width, height = round(max(self.cell * len(self.names), *ends) + 4), round(top + self.cell * len(self.names) + 4)
        named = list(zip(middles, self.names, strict=True))
        rows = [_text(left - 6, top + middle + 4, name, anchor="end") for middle, name in named]
        columns = [_turned(middle, top - 6, name) for middle, name in named]
        cells = [self._cell(row, column, top) for row, column in np.ndindex(*self.values.shape)]
        caption = tag("figcaption", self.title, tag("small", f" rows: {self.rows}; columns: {self.columns}"))
        label = f"{self.title}, rows: {self.rows}, columns: {self.columns}"
        drawn = (_svg(round(left), height, rows, class_="rows"), _svg(width, height, columns, cells))
        box = tag("div", drawn, class_="scroll", role="img", aria_label=label)
        return tag("figure", caption, box, _hues(self.key), class_="matrix")

    def _cell(self, row: int, column: int, top: float) -> Html:
        value = float(self.values[row, column])
        x, y = column * self.cell, top + row * self.cell
        side = self.cell - 1
        if math.isnan(value):
            return tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=side, height=side, class_="void")
        strength = float(np.clip(self.strength[row, column], -1, 1))
        hue = "minus" if strength < 0 else "plus"
        title = tag("title", f"{self.names[row]} → {self.names[column]}: {value:.6g}")
        ground = tag(
            "rect",
            title,
            x=f"{x:.1f}",
            y=f"{y:.1f}",
            width=side,
            height=side,
            class_=hue,
            fill_opacity=f"{abs(strength):.3f}",
        )
        return join(ground, _text(x + side / 2, y + side / 2 + 4, self.text(value), anchor="middle", class_="cell"))


def _turned(x: float, y: float, text: str) -> Html:
    return _text(x, y, text, transform=f"rotate(-45 {x:.1f} {y:.1f})")


# ---- strips ----


@dataclass(frozen=True)
class StripChart:
    """A row of coloured cells over time for each name, and the last number; strength: of a value, as the cells of a
    `MatrixChart` have, and key as there."""

    title: str
    rows: Mapping[str, Series]
    text: Callable[[float], str]
    strength: Callable[[float], float]
    key: Hues | None = None
    cells: int = 48
    width: int = 560

    def draw(self) -> Html:
        """The strips with names to the left and last values to the right."""
        left = max(map(len, self.rows), default=0) * _CHARACTER + 14
        steps = [step for series in self.rows.values() for step, _ in series]
        height = 20 * len(self.rows) + 24
        places = self._places
        strips = [self._strip(index, name, left, places) for index, name in enumerate(self.rows)]
        bottom = height - 8
        ends = join(
            _text(left, bottom, f"update {min(steps, default=0):g}"),
            _text(self.width - 52, bottom, f"{max(steps, default=0):g}", anchor="end"),
        )
        drawn = _scrolled(self.width, height, strips, ends, label=self.title)
        return tag("figure", tag("figcaption", self.title), drawn, _hues(self.key), class_="strips")

    @property
    def _places(self) -> dict[float, int]:
        """Which cell each update belongs to: those of all rows, in at most `cells` groups of equally many."""
        steps = sorted({step for series in self.rows.values() for step, _ in series})
        groups = np.array_split(np.array(steps), min(self.cells, max(1, len(steps))))
        return {step: place for place, group in enumerate(groups) for step in group.tolist()}

    def _strip(self, index: int, name: str, left: float, places: Mapping[float, int]) -> Html:
        """A cell is the mean of its updates' values, and none where there are none."""
        y = 20 * index
        label = _text(left - 6, y + 14, name, anchor="end")
        known = [(at, value) for at, value in self.rows[name] if math.isfinite(value)]
        if not known:
            return label
        groups = {place: np.array(list(part)) for place, part in groupby(known, lambda point: places[point[0]])}
        points = [(place, *part.mean(axis=0).tolist()) for place, part in groups.items()]
        step = (self.width - 52 - left) / (1 + max(places.values()))
        cells = [
            tag(
                "rect",
                tag("title", f"{name}, update {at:.0f}: {value:.4g}"),
                x=f"{left + place * step:.2f}",
                y=y + 1,
                width=f"{step:.2f}",
                height=18,
                class_="minus" if self.strength(value) < 0 else "plus",
                fill_opacity=f"{min(1.0, abs(self.strength(value))):.3f}",
            )
            for place, at, value in points
        ]
        frame = tag("rect", x=f"{left:.1f}", y=y + 1, width=f"{self.width - 52 - left:.1f}", height=18, class_="frame")
        last = known[-1][1]
        return join(label, cells, frame, _text(self.width - 46, y + 14, self.text(last), class_="label value"))


# ---- a map of points ----


class Cloud(NamedTuple):
    """The points of one domain: places (R, 2), class of each (R,), centroids (C, 2), NaN where a class is absent."""

    places: Matrix
    category: npt.NDArray[np.int64]
    centroids: Matrix


@dataclass(frozen=True)
class PointMap:
    """Regions of both domains in a plane: source circles, target triangles, in the colours of their classes; a line
    leads from each class's source centroid to its target centroid, which bears its name.

    window: the middle (x, y) and half the side of what is shown, the same for maps that are compared; what lies beyond
    sits on the border.
    """

    title: str
    source: Cloud
    target: Cloud
    names: Sequence[str]
    window: tuple[float, float, float]
    side: int = 560

    def draw(self) -> Html:
        """The map."""
        points = [
            self._mark(place, category, domain, "point")
            for domain, cloud in (("source", self.source), ("target", self.target))
            for place, category in zip(cloud.places, cloud.category, strict=True)
        ]
        frame = tag("rect", x=0.5, y=0.5, width=self.side - 1, height=self.side - 1, class_="frame")
        drawn = _scrolled(self.side, self.side, frame, points, self._links(), self._names(), label=self.title)
        return tag("figure", tag("figcaption", self.title), drawn, class_="map")

    def at(self, place: npt.NDArray[np.float64]) -> tuple[float, float]:
        """A place of the plane on the surface."""
        *middle, reach = self.window
        x, y = np.clip((np.asarray(place) - middle) / reach, -1, 1)
        half = self.side / 2
        return half + x * (half - 10), half - y * (half - 10)

    def _mark(self, place: npt.NDArray[np.float64], category: int, domain: str, class_: str) -> Html:
        x, y = self.at(place)
        size = 7.0 if class_ == "centroid" else 3.5
        look = f"{class_} k{category}"
        title = tag("title", f"{self.names[category]}, {domain}")
        if domain == "source":
            return tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size * 0.9, class_=look)
        corners = f"M{x:.1f} {y - 1.2 * size:.1f}l{1.1 * size:.1f} {2 * size:.1f}h{-2.2 * size:.1f}z"
        return tag("path", title, d=corners, class_=look)

    def _links(self) -> list[Html]:
        drawn = []
        for category, (start, end) in enumerate(zip(self.source.centroids, self.target.centroids, strict=True)):
            if not (np.isnan(start).any() or np.isnan(end).any()):
                (x1, y1), (x2, y2) = self.at(start), self.at(end)
                places = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
                drawn.append(tag("line", class_="link", **places))
            for domain, centroid in (("source", start), ("target", end)):
                if not np.isnan(centroid).any():
                    drawn.append(self._mark(centroid, category, domain, "centroid"))
        return drawn

    def _names(self) -> list[Html]:
        """A name at each target centroid, or at the source's where the target lacks the class, which it says then. A
        line leads from a name that stands further off to its mark."""
        ends = {category: end for category, end in enumerate(self._ends()) if not np.isnan(end).any()}
        texts = [self._called(category) for category in ends]
        marks = [self.at(place) for cloud in (self.source, self.target) for place in _known(cloud.centroids)]
        widths = [len(text) * _NAME_CHARACTER for text in texts]
        boxes = placed([self.at(end) for end in ends.values()], widths, marks, self.side)
        drawn = [_text(*box.baseline, text, class_="name") for text, box in zip(texts, boxes, strict=True)]
        return [*(_leader(*box.line) for box in boxes if box.line), *drawn]

    def _ends(self) -> Matrix:
        return np.where(np.isnan(self.target.centroids), self.source.centroids, self.target.centroids)

    def _called(self, category: int) -> str:
        lacking = np.isnan(self.target.centroids[category]).any()
        return f"{self.names[category]} (source)" if lacking else self.names[category]


def _known(centroids: Matrix) -> Matrix:
    """Those of the classes that are not absent."""
    return centroids[~np.isnan(centroids).any(axis=1)]


def _leader(start: tuple[float, float], stop: tuple[float, float]) -> Html:
    """A thin line that ends in a dot in the middle of a mark."""
    (x1, y1), (x2, y2) = start, stop
    return join(
        tag("line", class_="leader", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}"),
        tag("circle", cx=f"{x2:.1f}", cy=f"{y2:.1f}", r=1.7, class_="leader"),
    )
