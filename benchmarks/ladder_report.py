"""The ladder on paper: one JSON object, a page of Markdown, a picture; all from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.ladder_scores import CHOICES
from benchmarks.rungs import BY_NAME, ORACLE, SOURCE_ONLY
from utils.report.charts import axis
from utils.report.markup import NONE, Html, join, tag
from utils.selection import CRITERIA, CRITERION

LAST, BEST, LABEL_FREE = CHOICES.values()
COLUMNS = (
    "rung",
    "last checkpoint",
    "gap closed",
    "against as configured",
    "chosen without labels",
    "best, chosen on target labels",
    "seeds",
    "minutes",
)
ROW, TOP, LEFT, WIDTH = 26, 54, 250, 860  # of the picture, in pixels
STYLE = """
svg { background: #fff; font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
text { fill: #1b1e24; } .soft { fill: #5b6370; } .grid { stroke: #dfe3e8; }
.bound { stroke: #5b6370; stroke-dasharray: 4 4; }
.last { fill: #1f5fbf; stroke: #1f5fbf; } .free { fill: none; stroke: #c2541a; stroke-width: 2; }
.best { fill: none; stroke: #5b6370; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  svg { background: #14171c; } text { fill: #e4e7ec; } .soft { fill: #9aa3b0; } .grid { stroke: #323843; }
  .last { fill: #6aa5ff; stroke: #6aa5ff; } .free { stroke: #ff9a5e; } .best, .bound { stroke: #9aa3b0; }
}
"""


def markdown(result: Mapping[str, Any], picture: str) -> str:
    """A page; picture: file name of the chart beside it."""
    seeds, budget = result["seeds"], result["budget"]
    metric = "mIoU" if result["metric"] == "miou" else f"IoU of {result['metric']}"
    warm_up = f" after {budget['warm_up']} of the shared warm-up" if budget["warm_up"] else ""
    state = "" if result["complete"] else "\n**Partial**: runs are missing; the same command goes on with them.\n"
    notes = [
        f"{metric} in percent on target val, mean ± standard deviation over seeds {_listed(seeds)}; every rung has "
        f"{budget['rung']} updates{warm_up}. Device: {_listed(result['devices'])}; torch {_listed(result['torch'])}.",
        *_by_device(result),
        "*Gap closed*: share of the way from source-only to the oracle, per seed, then averaged. "
        "*Against as configured*: paired difference over the seeds, ± its standard error. "
        f"*Chosen without labels*: by the criterion `{CRITERION}`. "
        "*Best* uses target labels, which an unsupervised method does not have: an upper bound.",
    ]
    rows = [_row(rung, result["scores"].get(name, {})) for name, rung in result["rungs"].items()]
    commands = ["```", result["command"], "```", "", f"Settings, logs and weights of every run: `{result['out']}`."]
    return "\n".join(
        [
            f"# The ladder on {result['recipe']}",
            state,
            *(f"{note}\n" for note in notes),
            *markdown_table(COLUMNS, rows),
            "",
            f"![mean and standard deviation of every rung]({picture})",
            "",
            *_selection(result["selection"]),
            "## Commands",
            "",
            *commands,
            "",
        ]
    )


def _by_device(result: Mapping[str, Any]) -> list[str]:
    """Which rungs are of which device, where there are several: a difference holds what each of them rounds, too."""
    if len(result["devices"]) < 2:
        return []
    rungs: dict[str, dict[str, None]] = {}
    for run in result["runs"]:
        rungs.setdefault(run["device"], {})[result["rungs"][run["rung"]]["title"]] = None
    of = "; ".join(f"{device}: {_listed(titles)}" for device, titles in rungs.items())
    return [f"Not all runs are of one device, and another one rounds otherwise: {of}."]


def _row(rung: Mapping[str, Any], scores: Mapping[str, Any]) -> list[str]:
    title = rung["title"] + (f' (the same runs as "{rung["same_as"]}")' if rung["same_as"] else "")
    if not scores:
        return [title, *[NONE] * (len(COLUMNS) - 1)]
    last, best, free = (scores[choice] for choice in (LAST, BEST, LABEL_FREE))
    difference = last["difference_to_configured"]
    return [
        title,
        plus_minus(last["mean"], last["std"]),
        plus_minus(last["gap_closed"]["mean"], last["gap_closed"]["std"], 0),
        plus_minus(difference["mean"], difference["standard_error"], signed=True),
        plus_minus(free["mean"], free["std"]),
        plus_minus(best["mean"], best["std"]),
        str(last["n"]),
        f"{scores['seconds']['mean'] / 60:.1f}",
    ]


def plus_minus(mean: float | None, error: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A number with its error, as far as they are known."""
    if mean is None:
        return NONE
    shown = round(mean, digits) + 0.0  # no -0.0
    text = f"{shown:+.{digits}f}" if signed else f"{shown:.{digits}f}"
    return text + ("" if error is None else f" ± {error:.{digits}f}")


def _selection(correlation: Mapping[str, Any]) -> list[str]:
    """How well the criteria do, if any run was looked at."""
    if not correlation:
        return []
    head = ("criterion", "what it is", "rank correlation within a run", "over all checkpoints", "lost to the best")
    rows = [
        [
            f"**`{name}`**" if name == CRITERION else f"`{name}`",
            CRITERIA[name],
            plus_minus(values["within_runs"]["mean"], values["within_runs"]["std"], 2),
            plus_minus(values["over_all_checkpoints"], None, 2),
            plus_minus(values["lost_to_best"]["mean"], values["lost_to_best"]["std"], 2),
        ]
        for name, values in correlation.items()
    ]
    of_last = next(iter(correlation.values()))["lost_by_last"]
    rows.append(["none", "the last checkpoint", "", "", plus_minus(of_last["mean"], of_last["std"], 2)])
    return ["## Choosing a checkpoint without labels", "", *markdown_table(head, rows), ""]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines; numbers to the right, what they are of to the left."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"


# ---- the picture ----


def chart(result: Mapping[str, Any]) -> str:
    """An SVG of its own: a row per rung, dot and bar for the last checkpoint's mean and standard deviation."""
    scored = [(BY_NAME[name].title, scores) for name, scores in result["scores"].items()]
    values = [
        scores[choice]["mean"] + sign * (scores[choice]["std"] or 0)
        for _, scores in scored
        for choice in CHOICES.values()
        for sign in (-1, 1)
        if scores[choice]["mean"] is not None
    ]
    height = TOP + ROW * len(scored) + 34
    scale = axis(values, LEFT, WIDTH - 30, count=6)
    bottom = height - 30
    grid = [
        join(
            tag("line", x1=f"{scale.at(tick):.1f}", x2=f"{scale.at(tick):.1f}", y1=TOP - 6, y2=bottom, class_="grid"),
            tag(
                "text", scale.text(tick), x=f"{scale.at(tick):.1f}", y=bottom + 18, text_anchor="middle", class_="soft"
            ),
        )
        for tick in scale.ticks
    ]
    bounds = [
        _upright(scale.at(result["scores"][name][LAST]["mean"]), bottom, "bound")
        for name in (SOURCE_ONLY, ORACLE)
        if name in result["scores"]
    ]
    rows = [_mark(title, scores, scale.at, TOP + ROW * (index + 0.5)) for index, (title, scores) in enumerate(scored)]
    metric = "mIoU" if result["metric"] == "miou" else f"IoU of {result['metric']}"
    partial = "" if result["complete"] else " (partial)"
    heading = f"{result['recipe']}: {metric} on target val, {len(result['seeds'])} seeds{partial}"
    drawn = tag(
        "svg",
        tag("style", Html(STYLE)),
        tag("rect", width="100%", height="100%", fill="none"),
        tag("text", heading, x=12, y=20, font_weight="600"),
        _legend(),
        grid,
        bounds,
        rows,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        width=WIDTH,
        height=height,
        role="img",
        aria_label=heading,
    )
    return drawn + "\n"


def _upright(x: float, bottom: float, class_: str) -> Html:
    return tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 6, y2=bottom, class_=class_)


def _legend() -> list[Html]:
    entries = (
        (12, "last", "last checkpoint, mean ± standard deviation"),
        (330, "free", "chosen without labels"),
        (520, "best", "best, chosen on target labels"),
    )
    return [
        join(_shape(kind, x + 6, 38), tag("text", text, x=x + 18, y=42, class_="soft")) for x, kind, text in entries
    ]


def _shape(kind: str, x: float, y: float) -> Html:
    if kind == "free":
        corners = f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"
        return tag("path", d=corners, class_=kind)
    return tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.5, class_=kind)


def _mark(title: str, scores: Mapping[str, Any], at: Any, y: float) -> Html:
    last = scores[LAST]
    name = tag("text", title, x=LEFT - 14, y=f"{y + 4:.1f}", text_anchor="end")
    deviation = last["std"] or 0.0
    bar = tag(
        "line",
        tag("title", f"{title}: {plus_minus(last['mean'], last['std'], 2)}"),
        x1=f"{at(last['mean'] - deviation):.1f}",
        x2=f"{at(last['mean'] + deviation):.1f}",
        y1=f"{y:.1f}",
        y2=f"{y:.1f}",
        class_="last",
        stroke_width=2,
    )
    marks = [
        _shape(kind, at(scores[choice]["mean"]), y)
        for kind, choice in (("best", BEST), ("free", LABEL_FREE), ("last", LAST))
        if scores[choice]["mean"] is not None and not math.isnan(scores[choice]["mean"])
    ]
    return join(name, bar, marks)
