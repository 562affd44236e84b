"""Sections on what is inside the networks: maps of features, distances, banks and AIM's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from utils.diagnostics import AT_SNAPSHOTS, Divergence, Plane
from utils.metrics import Scores
from utils.report.charts import Cloud, Hues, LineChart, MatrixChart, PointMap, StripChart
from utils.report.data import Classes, Look, Missing, Report
from utils.report.markup import Html, join, significant, table, tag
from utils.report.parts import class_legend, missing, named
from utils.run_folder import RunRecord

SUMMARY = {  # key of Divergence.summary -> what it says, better when
    "ratio": ("ratio: distance between classes / within a class", "higher"),
    "inter_cosine": ("cosine between classes, source and target", "lower"),
    "inter_cosine_target": ("cosine between classes, within the target", "lower"),
    "intra_cosine": ("cosine within a class, source and target", "higher"),
    "inter": ("distance between classes, source and target", ""),
    "inter_target": ("distance between classes, within the target", ""),
    "intra": ("distance within a class, source and target", ""),
    "spread_source": ("regions to their own centroid, source", ""),
    "spread_target": ("regions to their own centroid, target", ""),
}


# ---- features ----


def features(report: Report) -> Html:
    """Maps of region features before and after."""
    if isinstance(report.look, Missing):
        return missing(report.look.reason)
    planes = report.planes()
    names = report.classes.names
    spots = np.concatenate([points for _, _, plane in planes for points in plane.points])
    window = _window(spots)
    shared = len(planes) == 1 or planes[0][2].explained is planes[1][2].explained
    maps = [_map(label, look, plane, names, window).draw() for label, look, plane in planes]
    cut = "truth" if report.by_truth else "the networks' predictions (the target has no validation labels)"
    explained = "; ".join(
        f"{'both' if shared and len(planes) > 1 else label}: {100 * sum(plane.explained):.0f} % of the variance"
        for label, _, plane in (planes[:1] if shared else planes)
    )
    note = (
        f"Mean features of stuff regions and instances in {report.images} images of each domain, cut by {cut}, in the "
        "plane of the first two principal components. Circles: source. Triangles: target. Large marks: the means over "
        "all pixels of a class; the line between them is the gap that adaptation has to close. A name is "
        "the target mark's that it stands beside, or that a thin line leads to, with a dot at its end; (source): the "
        "source mark's, where the target shows nothing of the class. "
        + ("One basis for both maps, each network's features centred on their own mean; " if shared else "")
        + f"{explained}. A point beyond the frame sits on its edge."
    )
    lacks = missing(report.baseline_look.reason) if isinstance(report.baseline_look, Missing) else None
    legend = class_legend(report.classes, marks=True)
    return join(tag("p", note, class_="note"), legend, tag("div", maps, class_="wide"), lacks)


def _window(spots: np.ndarray) -> tuple[float, float, float]:
    """Middle and reach of a square that holds all points (R, 2) but the outermost hundredth."""
    low, high = np.quantile(spots, [0.005, 0.995], axis=0)
    x, y = ((low + high) / 2).tolist()
    return x, y, float((high - low).max()) * 0.54 or 1.0


def _map(label: str, look: Look, plane: Plane, names: Sequence[str], window: tuple[float, float, float]) -> PointMap:
    clouds = []
    for regions, points in zip((look.source, look.target), plane.points, strict=True):
        centroids = np.full((len(names), 2), np.nan)
        for category in np.unique(regions.category):
            own = regions.category == category
            centroids[category] = np.average(points[own], axis=0, weights=regions.area[own])
        clouds.append(Cloud(points[regions.whole], regions.category[regions.whole], centroids))
    return PointMap(label, clouds[0], clouds[1], names, window)


# ---- distances ----


def distances(report: Report) -> Html:
    """Does separation grow, does aggregation shrink?"""
    if isinstance(report.look, Missing):
        return missing(report.look.reason)
    looks: dict[str, Divergence] = {}
    if report.baseline and not isinstance(report.baseline_look, Missing):
        looks[report.baseline.label] = report.baseline_look.divergence
    looks[report.run.label] = report.look.divergence
    note = (
        "d is the mean absolute difference over the feature channels. Distances grow with the features, which every "
        "training stretches as it likes, so two networks compare by the ratio and the cosines."
    )
    return join(
        tag("p", note, class_="note"),
        divergence_table(looks),
        tag("h3", "Per class"),
        _gap_table(looks, report.classes),
        _matrices(looks, report.classes.names),
        _divergence_curves(report.run),
    )


def divergence_table(looks: Mapping[str, Divergence]) -> Html:
    """The summaries of several networks, a column each."""
    summaries = [look.summary() for look in looks.values()]
    rows = [
        [what, *(significant(summary[key]) for summary in summaries), tag("span", better, class_="none")]
        for key, (what, better) in SUMMARY.items()
    ]
    return table(["mean over classes or pairs of classes", *looks, "better"], rows)


def _gap_table(looks: Mapping[str, Divergence], classes: Classes) -> Html:
    columns = [column for look in looks.values() for column in (look.gap, look.spread_source, look.spread_target)]
    kinds = ("source to target", "spread, source", "spread, target")
    head = ["class", *(f"{label}: {kind}" if len(looks) > 1 else kind for label in looks for kind in kinds)]
    rows = [
        [named(classes, index), *(significant(float(column[index])) for column in columns)]
        for index in range(len(classes.names))
    ]
    return table(head, rows)


class _Kind(NamedTuple):
    """Matrices between the centroids of two domains: their names in `Divergence`, whose rows and columns they have."""

    distance: str
    cosine: str
    rows: str
    columns: str


_ACROSS = _Kind("distance", "cosine", "source", "target")
_WITHIN = (
    _Kind("source_distance", "source_cosine", "source", "source"),
    _Kind("target_distance", "target_cosine", "target", "target"),
)


def _matrices(looks: Mapping[str, Divergence], names: Sequence[str]) -> Html:
    """Across the domains, and within each where the page is unfolded; all of them coloured on the same scales."""
    kinds = (_ACROSS, *_WITHIN)
    far = _scale([getattr(look, kind.distance) for look in looks.values() for kind in kinds])
    alike = _scale([getattr(look, kind.cosine) for look in looks.values() for kind in kinds])

    def drawn(kind: _Kind) -> Html:
        charts = []
        draw = partial(MatrixChart, names=names, rows=kind.rows, columns=kind.columns)
        for label, look in looks.items():
            distance, cosine = getattr(look, kind.distance), getattr(look, kind.cosine)
            charts += [
                draw(f"{label}: d", distance, text=_short, strength=far(distance)),
                draw(f"{label}: cosine, in hundredths", cosine, text=_hundredths, strength=alike(cosine)),
            ]
        return tag("div", (chart.draw() for chart in charts), class_="wide")

    folded = tag("details", tag("summary", "The same within the source and within the target"), map(drawn, _WITHIN))
    return join(drawn(_ACROSS), folded)


def _scale(matrices: Sequence[Scores]) -> Callable[[Scores], Scores]:
    """From the lowest to the highest entry of all: 0.04..1."""
    stacked = np.stack(matrices)
    low, high = float(np.nanmin(stacked, initial=np.inf)), float(np.nanmax(stacked, initial=-np.inf))
    return lambda values: 0.04 + 0.96 * (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def _short(value: float) -> str:
    """At most three characters."""
    if value >= 0.995:
        return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
    return f"{value:.2f}".removeprefix("0")


def _hundredths(value: float) -> str:
    """A cosine in hundredths, no point: three characters at most."""
    return f"{round(100 * value)}".replace("-", "\N{MINUS SIGN}")


def _divergence_curves(run: RunRecord) -> Html:
    keys = run.keys("divergence/")
    if not keys:
        return missing("Over the updates they are not known: the run was trained without [run] diagnostics = true.")
    titles = {key: SUMMARY[key.removeprefix("divergence/")][0] for key in keys}
    charts = [LineChart(title, {run.label: run.series(key)}).draw() for key, title in titles.items()]
    note = f"Of {AT_SNAPSHOTS} images of each domain, or all where there are fewer: not those of the tables above."
    return join(tag("h3", "Over the updates"), tag("p", note, class_="note"), tag("div", charts, class_="charts"))


# ---- memory ----


def memory(report: Report) -> Html:
    """Bank fill, what the filter lets in, and AIM's weights over time."""
    run, names = report.run, report.classes.names
    banks, weights, accepted = (
        {name: series for name in names if (series := run.series(f"{key}/{name}"))}
        for key in ("bank", "aim", "accepted")
    )
    charts: list[Html] = []
    if not banks:
        return missing("Nothing was logged yet of banks and AIM's weights.")
    if any(value for series in banks.values() for _, value in series):
        charts.append(
            StripChart("Filled slots of each class's bank, in percent", banks, _fraction, lambda value: value).draw()
        )
    else:
        charts.append(missing("Nothing entered the banks: no loss of this run needs them."))
    if weights:
        key = Hues("above 1: more than the average class", "below 1: less")
        charts.append(StripChart("AIM's weight of each thing class", weights, _weight, _weight_strength, key).draw())
    elif run.stage.aim == "adaptive":
        charts.append(missing("No weights of AIM yet: no instance has met a full bank of its class."))
    else:
        charts.append(missing(f"No weights of AIM: the run has aim = {run.stage.aim!r}, only 'adaptive' has any."))
    if accepted:
        title = "Share of each class's source regions that enter its bank, in percent; white: it had none"
        charts.append(StripChart(title, accepted, _fraction, lambda value: 0.08 + 0.92 * value).draw())
    overall = run.series("loss/accepted")
    chart = LineChart("share of source regions that enter the banks", {run.label: overall}, share=True)
    return join(tag("div", charts, class_="wide"), tag("div", chart.draw(), class_="charts") if overall else None)


def _weight(value: float) -> str:
    return f"{value:.2f}"


def _weight_strength(value: float) -> float:
    """The full hue at twice, or at half, the average."""
    return math.log2(max(value, 0.5))


def _fraction(value: float) -> str:
    return f"{100 * value:.0f} %"
