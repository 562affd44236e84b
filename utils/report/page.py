"""The page of one run: scores, curves, examples, confusions, features, distances, memory, pseudo labels, provenance.

Reads a `Report`; computes nothing but what it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utils.diagnostics import PairChange
from utils.metrics import Scores, mean_iou, row_percent
from utils.report.charts import Hues, LineChart, MatrixChart, StripChart
from utils.report.data import Classes, Gallery, Missing, Report
from utils.report.features import distances, features, memory
from utils.report.markup import Child, Html, join, number, page, pairs, significant, table, tag
from utils.report.parts import (
    LABEL_SELECTED,
    NO_VALIDATION,
    bar,
    class_colours,
    class_legend,
    difference,
    duration,
    method,
    missing,
    named,
)
from utils.run_folder import RunRecord

NO_BASELINE = "Nothing to compare with: name a baseline with --baseline RUN."


def render(report: Report) -> str:
    """The document."""
    sections: Mapping[str, tuple[str, Callable[[Report], Html]]] = {
        "scores": ("Scores", scores),
        "curves": ("Learning curves", lambda given: curves([given.run], given.baseline)),
        "examples": ("Examples", examples),
        "confusions": ("Confusions", confusions),
        "features": ("Features", features),
        "distances": ("Distances", distances),
        "memory": ("Banks and AIM", memory),
        "pseudo": ("Pseudo labels", pseudo),
        "made": ("How it was made", made),
    }
    title = f"{report.run.label}: {method(report.run)}"
    body = join(
        tag("h1", title),
        tag("p", str(report.run.folder), class_="note"),
        tiles(report),
        tag("nav", (tag("a", heading, href=f"#{key}") for key, (heading, _) in sections.items())),
        (join(tag("h2", heading, id=key), build(report)) for key, (heading, build) in sections.items()),
    )
    return page(title, body, style=class_colours(report.classes))


# ---- head ----


def tiles(report: Report) -> Html:
    """The numbers one looks for first."""
    run, after, before = report.run, report.iou, report.baseline_iou
    entries: list[tuple[Child, str]] = []
    if after is not None:
        entries.append((number(mean_iou(after)), "mIoU, last checkpoint"))
    if after is not None and before is not None and report.baseline:
        entries.append((difference(mean_iou(after) - mean_iou(before)), f"against {report.baseline.label}"))
    if run.choice:
        what = f"update {run.choice['step']}, chosen without labels by {run.choice['criterion']}"
        entries.append((number(run.choice["miou"]), what))
    if run.best:
        entries.append(
            (number(run.best["miou"]), f"best, at update {run.best['step']} ({LABEL_SELECTED.split(':')[0]})")
        )
    if run.result:
        entries += [
            (duration(run.result["seconds"]), f"{run.result['steps']} updates, {run.manifest.get('device', '')}"),
            (number(run.result["peak_memory_mb"] / 1024, unit=" GiB"), "peak memory"),
        ]
    drawn = [tag("div", tag("b", value), tag("span", what, class_="what"), class_="tile") for value, what in entries]
    going = None if run.manifest else missing("There is no manifest.json: the run goes on, or was interrupted.")
    return join(tag("div", drawn, class_="tiles"), going)


# ---- scores ----


def scores(report: Report) -> Html:
    """IoU per class against the baseline."""
    after, before = report.iou, report.baseline_iou
    if after is None:
        return missing(NO_VALIDATION)
    classes = report.classes
    if before is None:
        reason = f"{report.baseline.label} has no validation to compare with." if report.baseline else NO_BASELINE
        rows: list[list[Child]] = [[named(classes, index), number(value)] for index, value in enumerate(after)]
        return join(
            missing(reason), table(["class", report.run.label], [*rows, ["mIoU", number(mean_iou(after))]], foot=1)
        )
    scale = max(1.0, float(np.nanmax(np.abs(after - before), initial=0)))
    rows = [
        [named(classes, index), *_compared(float(old), float(new), scale)]
        for index, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    means = [["mIoU", *_compared(mean_iou(before), mean_iou(after), scale)]]
    for name, ids in classes.subsets.items():
        if len(ids) < len(classes.names):
            means.append([f"mIoU over {name}", *_compared(mean_iou(before, ids), mean_iou(after, ids), scale)])
    assert report.baseline is not None
    head = ["class", report.baseline.label, report.run.label, "difference", ""]
    return _scores(table(head, [*rows, *means], foot=len(means)), report)


def _scores(drawn: Html, report: Report) -> Html:
    """The table, and beside it how each class came there."""
    note = "IoU in percent on target val, last checkpoints. A class absent from truth and prediction shows a dash."
    history = {name: series for name in report.classes.names if len(series := report.run.series(f"iou/{name}")) > 1}
    strips = StripChart("IoU of each class over the validations", history, _percent, lambda value: value / 100)
    return join(tag("p", note, class_="note"), tag("div", drawn, strips.draw() if history else None, class_="wide"))


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _compared(before: float, after: float, scale: float) -> list[Child]:
    gain = after - before
    return [number(before), number(after), difference(gain), bar(gain / scale)]


# ---- curves ----


def curves(runs: Sequence[RunRecord], baseline: RunRecord | None = None) -> Html:
    """mIoU, learning rates and every loss of one or several runs over their updates."""
    if not any(run.log for run in runs):
        return missing("There is no log.jsonl, or nothing in it.")
    losses = dict.fromkeys(key for run in runs for key in run.keys("loss/") if key != "loss/accepted")
    levels = {f"{baseline.label}, last": baseline.last["miou"]} if baseline and baseline.last else {}
    scored = _chart("mIoU on target val", runs, "miou", levels)
    charts = [scored] if scored.lines else []
    charts += [_chart(f"loss: {key.removeprefix('loss/')}", runs, key) for key in losses]
    if len(runs) == 1:
        rates = {"network": "learning_rate", "discriminator": "learning_rate_D"}
        charts.append(LineChart("learning rates", {name: runs[0].series(key) for name, key in rates.items()}))
    else:
        charts.append(_chart("learning rate of the network", runs, "learning_rate"))
    note = (
        "Losses before their weights, against the number of updates; a line of more than 200 logged values shows the "
        "means of 200 stretches."
    )
    lacking = None if scored.lines else missing(NO_VALIDATION)
    return join(tag("p", note, class_="note"), lacking, tag("div", (chart.draw() for chart in charts), class_="charts"))


def _chart(title: str, runs: Sequence[RunRecord], key: str, levels: Mapping[str, float] | None = None) -> LineChart:
    """A key of the log, a line per run that has it."""
    lines = {run.label: series for run in runs if (series := run.series(key))}
    return LineChart(title, lines, levels or {}, order=[run.label for run in runs] if len(runs) > 1 else ())


# ---- examples ----


def examples(report: Report) -> Html:
    """Images with truth, predictions, confidence and pseudo labels."""
    if isinstance(report.galleries, Missing):
        return missing(report.galleries.reason)
    confidence = tag(
        "p",
        "Confidence: 0",
        tag("span", class_="ramp", style="background:linear-gradient(90deg,#440154,#3b528b,#21918c,#5ec962,#fde725)"),
        "1. Black in a label map: no label.",
        class_="note",
    )
    drawn = [
        join(tag("h3", gallery.title), table(["", *gallery.columns], _gallery_rows(gallery), class_="examples"))
        for gallery in report.galleries
    ]
    return join(class_legend(report.classes), confidence, drawn)


def _gallery_rows(gallery: Gallery) -> list[list[Child]]:
    """Each picture with its column's heading, for pages too narrow to show the pictures in columns."""
    headings = [tag("small", column, class_="column") for column in gallery.columns]
    return [
        [name.replace("_", "_\u200b"), *map(join, headings, pictures)]  # names may break there
        for name, pictures in gallery.rows
    ]


# ---- confusions ----


def confusions(report: Report) -> Html:
    """The confusion matrix, its difference to the baseline's, and the pairs that changed most."""
    after = report.run.confusion
    if after is None:
        return missing(f"{report.run.label} has no confusion.json: {NO_VALIDATION}" if report.iou is None else OLD_RUN)
    names = report.classes.names
    charts = [_confusion_chart(f"{report.run.label}, in percent of each true class", row_percent(after)[:, :-1], names)]
    before = report.baseline.confusion if report.baseline else None
    if before is None:
        reason = NO_BASELINE if report.baseline is None else f"{report.baseline.label}: {OLD_RUN}"
        return join(tag("div", charts[0].draw()), missing(reason))
    change = (row_percent(after) - row_percent(before))[:, :-1]
    assert report.baseline is not None
    charts.append(_change_chart(f"{report.run.label} minus {report.baseline.label}, in points", change, names))
    pair_tables = [
        tag("div", tag("h3", heading), _pair_table(pairs_, report.classes))
        for heading, pairs_ in zip(("Improved most", "Worsened most"), report.pairs or ([], []), strict=True)
    ]
    return join(
        tag("div", (chart.draw() for chart in charts), class_="wide"),
        tag("div", pair_tables, class_="wide"),
    )


OLD_RUN = "no confusion.json in the run's folder; it is written with every validation."


def _confusion_chart(title: str, shares: Scores, names: Sequence[str]) -> MatrixChart:
    return MatrixChart(title, shares, names, _whole, shares / 100, rows="truth", columns="prediction")


def _change_chart(title: str, change: Scores, names: Sequence[str]) -> MatrixChart:
    """Coloured by what is better: more on the diagonal, less anywhere else."""
    better = np.where(np.eye(len(names), dtype=bool), change, -change)
    key = Hues("better: more on the diagonal, less beside it", "worse: less on the diagonal, more beside it")
    return MatrixChart(title, change, names, _signed, better / 30, rows="truth", columns="prediction", key=key)


def _whole(value: float) -> str:
    return f"{value:.0f}" if value >= 0.5 else ""


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 0.5 else ""


def _pair_table(changed: Sequence[PairChange], classes: Classes) -> Html:
    if not changed:
        return tag("p", "None.", class_="note")
    rows = [
        [
            join(named(classes, pair.truth), " taken for ", named(classes, pair.predicted)),
            number(pair.before),
            number(pair.after),
            tag("span", number(pair.change, signed=True), class_="better" if pair.change < 0 else "worse"),
        ]
        for pair in changed
    ]
    return table(["% of the true class", "before", "after", "change"], rows)


# ---- pseudo labels ----


def pseudo(report: Report) -> Html:
    """How good the pseudo labels are that the run was given."""
    given = report.pseudo
    if isinstance(given, Missing):
        return missing(given.reason)
    classes, columns = report.classes, given.columns
    rows = [
        [
            named(classes, index),
            significant(given.thresholds.get(name)),
            *(number(float(column[index])) for column in columns.values()),
        ]
        for index, name in enumerate(classes.names)
    ]
    means = ["mean", number(None), *(number(mean_iou(column)) for column in columns.values())]
    note = (
        f"Against the truth of {given.images} target training images, read for this page alone. Precision: of the "
        "pixels labelled as the class, those that are of it. Coverage: of the class's pixels, those with any label. "
        "Right: of the class's pixels, those labelled as it. In percent."
    )
    return join(tag("p", note, class_="note"), table(["class", "threshold", *columns], [*rows, means], foot=1))


# ---- how it was made ----


def made(report: Report) -> Html:
    """Commands, versions, inputs and settings."""
    records = [record for record in (report.run, report.baseline) if record]
    parts = [_provenance(record) for record in records]
    return join(parts, tag("h3", "This page"), pairs([("command", tag("code", report.command))]))


def _provenance(run: RunRecord) -> Html:
    """One run's manifest and configuration."""
    manifest = run.manifest
    if not manifest:
        return join(tag("h3", run.label), missing("no manifest.json"), _settings(run))
    entries: list[tuple[str, Child]] = [
        ("folder", tag("code", str(run.folder))),
        ("command", tag("code", manifest.get("command"))),
        ("commit", manifest.get("commit") or "not in git"),
        ("device", manifest.get("device")),
        ("Python", f"{manifest.get('python')} on {manifest.get('platform')}"),
        (
            "packages",
            ", ".join(f"{name} {version}" for name, version in (manifest.get("packages") or {}).items() if version),
        ),
    ]
    for name, value in (manifest.get("inputs") or {}).items():
        entries.append((name, _input(value)))
    return join(tag("h3", run.label), pairs(entries), _settings(run))


def _input(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {entry}" for key, entry in value.items())
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _settings(run: RunRecord) -> Html:
    return tag("details", tag("summary", "config.toml, everything resolved"), tag("pre", run.config_text))
