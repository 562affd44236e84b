"""HTML that cannot forget to escape: text becomes markup in `tag` alone, and is escaped there unless it is markup.

Also the frame of a page: one file, style included, that fetches nothing.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

STYLE = Path(__file__).with_name("page.css")
_VOID = ("img", "meta", "br", "line", "rect", "circle", "path", "polyline")  # elements without content
NONE = "\N{EN DASH}"  # where there is no number
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup already; made by this module."""


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
"""What an element may hold: text, numbers, markup, nothing, or several of these."""


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. Children that are no `Html` are escaped, None left out, iterables unfolded; of the attributes `_`
    becomes `-`, a trailing one goes (class_), and those that are None or False are left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    if name in _VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """The children one after the other."""
    return Html("".join(_content(child) for child in children))


def _content(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return str(child)
    if isinstance(child, (str, int, float)):
        return html.escape(str(child))
    return join(*child)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
    return f' {name}="{html.escape(str(value))}"'


def page(title: str, body: Html, *, style: str = "") -> str:
    """A whole document; `style` is added to the common one. Its policy forbids the browser to fetch anything."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE.read_text(encoding="utf-8") + style)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", body), lang="en") + "\n"


def image(data: bytes, kind: str, *, alt: str, width: int) -> Html:
    """A picture inside the page; kind: `png` or `jpeg`."""
    encoded = base64.b64encode(data).decode("ascii")
    return tag("img", src=f"data:image/{kind};base64,{encoded}", alt=alt, title=alt, width=width)


def number(value: float | None, digits: int = 1, *, signed: bool = False, unit: str = "") -> Html:
    """A number rounded for reading, exact where the pointer rests; a dash for none."""
    if value is None or math.isnan(value):
        return tag("span", NONE, class_="none")
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return tag("data", text.replace("-", "\N{MINUS SIGN}") + unit, value=repr(float(value)), title=repr(float(value)))


def significant(value: float | None, digits: int = 3) -> Html:
    """A number of any size rounded to significant digits."""
    if value is None or math.isnan(value):
        return tag("span", NONE, class_="none")
    text = f"{value:#.{digits}g}".rstrip(".").replace("-", "\N{MINUS SIGN}")
    return tag("data", text, value=repr(float(value)), title=repr(float(value)))


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], *, class_: str = "", foot: int = 0) -> Html:
    """A table in a box of its own that scrolls; the first column names the rows. foot: as many last rows are sums."""
    listed = list(rows)
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            (tag("td", cell) for cell in row[1:]),
            class_=_foot(index, listed, foot),
        )
        for index, row in enumerate(listed)
    ]
    header = tag("tr", (tag("th", cell, scope="col") for cell in head))
    inner = tag("table", tag("thead", header), tag("tbody", body), class_=class_ or None)
    return tag("div", inner, class_="scroll")


def _foot(index: int, rows: Sequence[object], foot: int) -> str | None:
    return "sum" if index >= len(rows) - foot else None


def pairs(entries: Iterable[tuple[str, Child]]) -> Html:
    """Names and what they stand for, below each other."""
    return tag("dl", ((tag("dt", name), tag("dd", value)) for name, value in entries))
