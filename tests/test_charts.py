"""Charts and markup: well-formed, escaped, and where the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.report.charts import MOST_POINTS, Cloud, LineChart, MatrixChart, PointMap, StripChart, axis, thinned
from utils.report.markup import STYLE as STYLE_SHEET
from utils.report.markup import Html, join, number, significant, table, tag

STYLE = STYLE_SHEET.read_text(encoding="utf-8")
HOSTILE = "<script>alert('x')</script>&\""


def elements(html: Html, name: str, class_: str = "") -> list[ET.Element]:
    """The elements of a drawing; it must be well-formed XML."""
    return [one for one in ET.fromstring(html).iter(name) if class_ in (one.get("class") or "").split() or not class_]


# ---- markup ----


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
@settings(max_examples=50, deadline=None)
def test_whatever_text_goes_in_comes_out_as_text(text: str) -> None:
    made = ET.fromstring(tag("p", text, title=text))
    assert ((made.text or ""), made.get("title"), len(made)) == (text, text, 0)


def test_attributes_are_escaped_and_absent_ones_left_out() -> None:
    made = ET.fromstring(tag("i", class_="a", aria_label=HOSTILE, id=None, hidden=False))
    assert made.attrib == {"class": "a", "aria-label": HOSTILE}


def test_join_unfolds_iterables_and_escapes_what_is_no_markup() -> None:
    assert join("<", [tag("b", "x"), None, 3]) == "&lt;<b>x</b>3"


def test_numbers_are_rounded_and_keep_their_value() -> None:
    made = ET.fromstring(number(-1.26, signed=True))
    assert (made.text, made.get("value")) == ("\N{MINUS SIGN}1.3", "-1.26")
    assert ET.fromstring(number(float("nan"))).text == ET.fromstring(number(None)).text == "\N{EN DASH}"
    assert [ET.fromstring(significant(value)).text for value in (0.6, 12.345, 123.4)] == ["0.600", "12.3", "123"]


def test_a_table_scrolls_in_its_own_box_and_marks_sums() -> None:
    made = ET.fromstring(table(["class", "IoU"], [["a", "1"], ["mean", "2"]], foot=1))
    assert made.get("class") == "scroll"
    assert [row.get("class") for row in made.iter("tr")] == [None, None, "sum"]


# ---- lines ----


@example([5e-324], 0.0)
@example([-1e-91, 1e-91], 0.0)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-10, 10))
@settings(max_examples=100, deadline=None)
def test_an_axis_holds_all_values_between_its_ends(values: list[float], start: float) -> None:
    made = axis(values, start, start + 100)
    rounding = 1e-6 * max(1, *map(abs, values))
    assert made.low <= min(values) + rounding
    assert made.high >= max(values) - rounding
    assert 2 <= len(made.ticks) <= 12
    texts = [made.text(tick) for tick in made.ticks]
    assert len(set(texts)) == len(texts)


@given(st.integers(1, 2000))
@settings(max_examples=30, deadline=None)
def test_thinning_keeps_the_mean_of_equal_stretches(count: int) -> None:
    points = thinned([(step, step * 0.5) for step in range(count)])
    assert len(points) == min(count, MOST_POINTS)
    assert all(value == pytest.approx(step * 0.5) for step, value in points)


def test_a_higher_value_is_drawn_higher() -> None:
    dots = elements(LineChart("t", {"a": [(1, 0.1), (2, 0.9)]}).draw(), "circle")
    assert float(dots[0].get("cx", 0)) < float(dots[1].get("cx", 0))
    assert float(dots[0].get("cy", 0)) > float(dots[1].get("cy", 0))


def test_charts_of_the_same_runs_share_their_colours() -> None:
    order = ["first", "second"]
    (line,) = elements(LineChart("t", {"second": [(1, 1.0)]}, order=order).draw(), "polyline")
    assert line.get("class") == "line s1"


def test_the_legend_shows_a_reference_dashed_as_it_is_drawn() -> None:
    drawn = LineChart("t", {"a": [(1, 1.0)]}, {"before": 0.5}).draw()
    (line,) = elements(drawn, "line", "reference")
    assert [one.get("class") for one in elements(drawn, "i", "key")] == ["key s0", f"key {line.get('class')}"]
    assert re.search(r"\.key\.reference \{[^}]*repeating-linear-gradient", STYLE)


def test_the_axis_of_a_share_is_0_to_1() -> None:
    drawn = LineChart("t", {"a": [(1, 1.0), (2, 1.0)]}, share=True).draw()
    ticks = [one.text for one in elements(drawn, "text") if one.get("text-anchor") == "end"]
    assert (ticks[0], ticks[-1]) == ("0.0", "1.0")


def test_an_empty_chart_is_a_chart() -> None:
    assert elements(LineChart("t", {}).draw(), "svg")
    assert elements(StripChart("t", {}, str, float).draw(), "svg")


# ---- matrices, strips, maps ----


def test_a_matrix_has_a_cell_for_each_number_and_none_for_nan() -> None:
    values = np.array([[0.2, -0.9], [np.nan, 1.0]])
    drawn = MatrixChart("m", values, ["a", HOSTILE], lambda v: f"{v:.1f}", values, rows="r", columns="c").draw()
    assert [one.get("class") for one in elements(drawn, "rect")] == ["plus", "minus", "void", "plus"]
    assert [one.text for one in elements(drawn, "text", "cell")] == ["0.2", "-0.9", "1.0"]
    assert "<script" not in drawn


def test_the_rows_of_a_matrix_are_named_beside_what_scrolls() -> None:
    names = ["a", "longer"]
    drawn = MatrixChart("m", np.eye(2), names, lambda v: f"{v:.0f}", np.eye(2), rows="r", columns="c").draw()
    rows, cells = elements(drawn, "svg")
    assert rows.get("class") == "rows"
    assert [one.text for one in rows.iter("text")] == names
    assert rows.get("height") == cells.get("height")
    tops = {float(one.get("y", 0)) for one in cells.iter("rect")}
    assert [any(top < float(one.get("y", 0)) - 4 < top + 30 for top in tops) for one in rows.iter("text")] == [True] * 2
    assert re.search(r"svg\.rows \{ position: sticky; left: 0;", STYLE)


def themes() -> dict[str, dict[str, str]]:
    """The style sheet's variables in light and in dark."""
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", one)) for one in re.findall(r":root \{(.*?)\}", STYLE, re.S))
    return {"light": light, "dark": {**light, **dark}}


def fill(theme: dict[str, str], class_: str) -> np.ndarray:
    """The (R, G, B) that the style sheet fills a class with."""
    (name,) = re.findall(rf"svg \.{class_} \{{[^}}]*fill: var\(--(\w+)\)", STYLE)
    return rgb(theme[name])


def rgb(colour: str) -> np.ndarray:
    """(R, G, B) of a #rrggbb."""
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=float)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Of two colours, as WCAG 2 defines it."""
    shares = np.stack([one, other]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((high + 0.05) / (low + 0.05))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_cell_of_a_matrix_is_legible(theme: str) -> None:
    colours = themes()[theme]
    values = np.linspace(-1, 1, 19 * 19).reshape(19, 19)
    drawn = MatrixChart("m", values, ["a"] * 19, lambda v: f"{v:.1f}", values, rows="r", columns="c").draw()
    grounds, texts = elements(drawn, "rect"), elements(drawn, "text", "cell")
    assert {one.get("class") for one in texts} == {"cell"}
    worst = 21.0
    for ground in grounds:
        share = float(ground.get("fill-opacity", 1))
        mixed = share * fill(colours, ground.get("class", "")) + (1 - share) * rgb(colours["ground"])
        worst = min(worst, contrast(mixed, fill(colours, "cell")))
    assert worst >= 4.5


def test_a_strip_ends_with_its_last_number() -> None:
    series = [(step, step / 100) for step in range(1, 101)]
    drawn = StripChart("s", {"a": series}, lambda v: f"{v:.2f}", lambda v: v, cells=10).draw()
    assert len(elements(drawn, "rect", "plus")) == 10
    assert [one.text for one in elements(drawn, "text", "value")] == ["1.00"]


def test_rows_of_strips_share_their_time() -> None:
    """A class that was seen late has its cells late."""
    rows = {"always": [(step, 1.0) for step in range(20)], "late": [(step, 1.0) for step in range(15, 20)], "never": []}
    drawn = StripChart("s", rows, str, lambda v: v, cells=4).draw()
    cells = elements(drawn, "rect", "plus")
    assert len(cells) == 4 + 1
    assert cells[4].get("x") == cells[3].get("x")


def test_a_map_shows_source_as_circles_and_target_as_triangles() -> None:
    source = Cloud(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0, 1]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    target = Cloud(np.array([[9.0, 0.0]]), np.array([0]), np.array([[9.0, 0.0], [np.nan, np.nan]]))
    chart = PointMap("m", source, target, ["a", "b"], (0.0, 0.0, 1.0))
    drawn = chart.draw()
    assert len(elements(drawn, "circle", "point")) == 2
    assert len(elements(drawn, "path", "point")) == 1
    assert len(elements(drawn, "line", "link")) == 1  # of class a alone: b has no target
    assert {one.text for one in elements(drawn, "text", "name")} == {"a", "b (source)"}  # where b has its only mark
    assert chart.at(np.array([9.0, 0.0])) == chart.at(np.array([1.0, 0.0]))  # beyond the window: on its edge


@example(38, 18)  # no room anywhere near: a name beside its mark, and closer to another
@given(st.integers(0, 200), st.integers(2, 19))
@settings(max_examples=40, deadline=None)
def test_the_names_of_a_map_touch_no_other_and_each_says_whose_it_is(seed: int, classes: int) -> None:
    spots = np.random.default_rng(seed).normal(size=(2, classes, 2)) * 0.3
    source, target = (Cloud(one, np.arange(classes), one) for one in spots)
    chart = PointMap("m", source, target, [f"class {index}" for index in range(classes)], (0.0, 0.0, 1.0))
    drawn = chart.draw()
    boxes = [
        (float(one.get("x", 0)), float(one.get("y", 0)), len(one.text or "") * 7)
        for one in elements(drawn, "text", "name")
    ]
    for index, (left, y, width) in enumerate(boxes):
        assert min(left, y - 10.5) >= 0 <= chart.side - max(left + width, y + 3.5)
        for other_left, other_y, other_width in boxes[:index]:
            apart = left >= other_left + other_width or other_left >= left + width
            assert apart or abs(y - other_y) >= 13.9
    marks = np.array([chart.at(spot) for spot in spots.reshape(-1, 2)])
    led = {(one.get("cx"), one.get("cy")) for one in elements(drawn, "circle", "leader")}
    for (left, y, width), own in zip(boxes, marks[classes:], strict=True):
        gaps = np.hypot(*np.maximum(0, np.maximum([left, y - 10.5] - marks, marks - [left + width, y + 3.5])).T)
        nearest = marks[gaps.argmin()]
        assert (nearest == own).all() or (f"{own[0]:.1f}", f"{own[1]:.1f}") in led
    assert len(led) < classes or classes < 4  # lines are for those in a crowd
