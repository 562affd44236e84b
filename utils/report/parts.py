"""Small parts that several sections and pages of the report share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from utils.report.data import Classes
from utils.report.markup import Html, join, number, tag
from utils.run_folder import RunRecord

LABEL_SELECTED = "chosen on target labels: never compare it with a number that was not"
NO_VALIDATION = "The run was not validated: neither its manifest.json nor its log.jsonl has a score."


def missing(reason: str) -> Html:
    """What stands in the place of a part that cannot be shown."""
    return tag("p", reason, class_="missing")


def method(run: RunRecord) -> str:
    """What was trained, in a few words: the losses that count."""
    weights = run.config.to_dict()[run.section]["weights"]
    terms = " + ".join(name for name, weight in weights.items() if weight)
    stage = {"step1": "stage 1", "step2": "stage 2"}[run.section]
    return f"{stage}, {terms or 'no loss'}"


def duration(seconds: float) -> str:
    """A time in two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def difference(value: float, digits: int = 1) -> Html:
    """A signed number, coloured by whether it is a gain."""
    if math.isnan(value):
        return number(value)
    return tag(
        "span", number(value, digits, signed=True), class_="better" if value > 0 else "worse" if value < 0 else None
    )


def class_colours(classes: Classes) -> str:
    """Style: the palette as it is for swatches, and moved away from the page's ground for marks, in light and dark."""
    light = "".join(f".k{i}{{--k:{_mark(colour, dark=False)}}}" for i, colour in enumerate(classes.palette))
    dark = "".join(f".k{i}{{--k:{_mark(colour, dark=True)}}}" for i, colour in enumerate(classes.palette))
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}"


def _mark(colour: Sequence[int], *, dark: bool) -> str:
    """A colour, mixed with white on a dark ground, with black on a light one, until its luminance stands off."""
    rgb = np.array(colour, dtype=np.float64) / 255
    end = np.ones(3) if dark else np.zeros(3)
    for share in np.linspace(0, 1, 21):
        mixed = (1 - share) * rgb + share * end
        luminance = float(mixed**2.2 @ [0.2126, 0.7152, 0.0722])
        if (luminance > 0.16) if dark else (luminance < 0.45):
            break
    return "#" + "".join(f"{round(255 * value):02x}" for value in mixed)


def named(classes: Classes, index: int) -> Html:
    """A class's name after its colour."""
    colour = "rgb({},{},{})".format(*classes.palette[index])
    return join(tag("span", class_="swatch", style=f"background:{colour}"), classes.names[index])


def class_legend(classes: Classes, *, marks: bool = False) -> Html:
    """The classes' colours: those of label maps, or those that a map's marks have of them."""
    names = [
        join(tag("span", class_=f"swatch mark k{index}"), name) if marks else named(classes, index)
        for index, name in enumerate(classes.names)
    ]
    return tag("div", (tag("span", name) for name in names), class_="legend")


def bar(share: float) -> Html:
    """A bar from the middle to the right for a gain, to the left for a loss; share: -1..1."""
    if math.isnan(share):
        return tag("span", class_="bar")
    width = 50 * min(1.0, abs(share))
    left = 50.0 if share > 0 else 50 - width
    look = "better" if share > 0 else "worse"
    return tag("span", tag("u"), tag("i", class_=look, style=f"left:{left:.1f}%;width:{width:.1f}%"), class_="bar")
