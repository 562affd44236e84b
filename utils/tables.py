"""Scores as people read them: historical lines, console tables, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.console import say
from utils.evaluation import Protocol, Score, ScoreReport
from utils.files import atomic_write
from utils.metrics import Scores, Subsets, check_names, iou_array, mean_iou, row_percent

NO_ANSWER = "255"  # the last column of a confusion matrix
COLUMNS = ("class", "IoU", "interval", "precision", "recall", "boundary IoU")


# ---- a report ----


class _Line(NamedTuple):
    """A number of the whole: `measure` and `name` for machines, `spelled` for people."""

    measure: str
    name: str
    score: Score
    spelled: str


def publish(report: ScoreReport, *, csv_file: str = "", markdown_file: str = "") -> None:
    """Print a report, and write the files whose names are given."""
    say(format_historical(report.names, report.confusion.iou()))  # the lines that people's own scripts read
    say(format_report(report))
    for path, write in ((csv_file, format_csv), (markdown_file, format_markdown)):
        if path:
            _write(path, write(report))


def format_report(report: ScoreReport) -> str:
    """For the console: a line per class, the means with their protocols in words, and how it was counted."""
    rows = [COLUMNS, *_class_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines = [(_digits(line.score.value), _interval(line.score), line.spelled) for line in _lines(report)]
    width = max(len(interval) for _, interval, _ in lines)
    means = [f"{value:>6}  {interval:<{width}}  {spelled}" for value, interval, spelled in lines]
    rule = "-" * len(table[0])
    return "\n".join([*table[:-1], rule, table[-1], "", *means, "", *_footnotes(report)])


def format_markdown(report: ScoreReport) -> str:
    """The same as Markdown tables, and the confusion matrix."""
    head = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    classes = [_pipes(row) for row in (*head, *_class_rows(report))]
    lines = [(line.spelled, _digits(line.score.value), _interval(line.score)) for line in _lines(report)]
    means = [_pipes(row) for row in (("measure", "%", "interval"), ("---", "---:", "---:"), *lines)]
    return "\n".join([*classes, "", *means, "", *_footnotes(report), "", *_confusion_table(report), ""])


def format_csv(report: ScoreReport) -> str:
    """One number a row: measure, name, value, low, high; unrounded, empty where there is none."""
    confusion = report.confusion
    measures = {
        "precision": confusion.precision(),
        "recall": confusion.recall(),
        "boundary_iou": report.boundary.iou,
    }
    rows = [("iou", name, *map(_exact, score)) for name, score in zip(report.names, report.iou, strict=True)]
    for measure, values in measures.items():
        rows += [(measure, name, _exact(value), "", "") for name, value in zip(report.names, values, strict=True)]
    rows += [(line.measure, line.name, *map(_exact, line.score)) for line in _lines(report)]
    for true, counts in zip(report.names, confusion.counts.tolist(), strict=True):
        named = zip((*report.names, NO_ANSWER), counts, strict=True)
        rows += [("confusion", f"{true} > {predicted}", str(count), "", "") for predicted, count in named]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("measure", "name", "value", "low", "high"), *rows])
    return text.getvalue()


def _confusion_table(report: ScoreReport) -> list[str]:
    """Markdown: where the pixels of each true class (row) went, in percent of them."""
    counts = report.confusion.counts
    shares = row_percent(counts)
    head = ("truth, % of row", *report.names, NO_ANSWER)
    rows = [(name, *map(_digits, share)) for name, share in zip(report.names, shares.tolist(), strict=True)]
    return [_pipes(row) for row in (head, ("---", *["---:"] * (len(head) - 1)), *rows)]


def _class_rows(report: ScoreReport) -> list[tuple[str, ...]]:
    """The cells of every class, and of the means over the classes."""
    confusion = report.confusion
    columns = (confusion.precision(), confusion.recall(), report.boundary.iou)
    rows = [
        (name, _digits(score.value), _interval(score), *(_digits(column[index]) for column in columns))
        for index, (name, score) in enumerate(zip(report.names, report.iou, strict=True))
    ]
    means = [_digits(mean_iou(column)) for column in columns]
    return [*rows, ("mean", _digits(report.miou.value), _interval(report.miou), *means)]


def _lines(report: ScoreReport) -> Iterator[_Line]:
    """The numbers that concern no single class."""
    number = len(report.names)
    yield _Line("miou", str(number), report.miou, f"mIoU over all {number} classes")
    for protocol in report.protocols:
        if len(protocol.ids) < number:
            yield from _protocol_lines(protocol, number)
    yield _Line("pixel_accuracy", "", _plain(report.confusion.pixel_accuracy()), "pixel accuracy")
    yield _Line("mean_accuracy", "", _plain(report.mean_accuracy), "mean accuracy (the mean of the recalls)")
    yield _Line("mean_boundary_iou", "", _plain(mean_iou(report.boundary.iou)), "mean boundary IoU")
    if report.calibration is None:
        remedy = "expected calibration error: not in PNGs; run evaluate_cityscapes.py --in-memory"
        yield _Line("ece", "", _plain(float("nan")), remedy)
    else:
        yield _Line("ece", "", _plain(report.calibration.ece), "expected calibration error (0 is best)")


def _protocol_lines(protocol: Protocol, number: int) -> Iterator[_Line]:
    share = f"{len(protocol.ids)} of {number} classes"
    title = f"mIoU over {share}" if protocol.name == str(len(protocol.ids)) else f"mIoU over {protocol.name} ({share})"
    counted = f"{title}; pixels of other classes count as false positives (BDL, DAFormer)"
    ignored = f"{title}; pixels of other classes are left out first (ProDA)"
    yield _Line("miou_outside_counted", protocol.name, protocol.counted, counted)
    yield _Line("miou_outside_ignored", protocol.name, protocol.ignored, ignored)


def _footnotes(report: ScoreReport) -> list[str]:
    bootstrap = report.bootstrap
    return [
        f"All in percent, over {int(report.confusion.counts.sum())} labelled pixels of {report.images} images. "
        f"Boundaries are {100 * report.boundary.ratio:g} % of the image's diagonal wide.",
        f"Intervals: {bootstrap.level} %, from {bootstrap.samples} bootstrap samples of the images "
        f"(seed {bootstrap.seed}).",
    ]


def _plain(value: float) -> Score:
    """A number without an interval."""
    return Score(value, float("nan"), float("nan"))


def _digits(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _interval(score: Score) -> str:
    return "" if np.isnan(score.low) else f"[{score.low:.2f}, {score.high:.2f}]"


def _exact(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))


def _pipes(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _write(path: str | os.PathLike[str], text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# ---- IoUs alone ----


def format_table(names: Sequence[str], iou: Scores, subsets: Subsets | None = None) -> str:
    """A table with one line per class and one per mean, percent with two digits; `-` for an absent class.

    `subsets`: as `Protocol.counted` means them.
    """
    check_names(names, iou)
    rows = [*zip(names, iou.tolist(), strict=True)]
    means = [("mIoU", mean_iou(iou))]
    means += [(f"mIoU ({key} classes)", mean_iou(iou, ids)) for key, ids in (subsets or {}).items()]
    width = max(len(name) for name, _ in [*rows, *means])
    lines = [f"{'class':<{width}}     IoU"]
    lines += [_table_line(name, value, width) for name, value in rows]
    lines += ["-" * (width + 8)]
    lines += [_table_line(name, value, width) for name, value in means]
    return "\n".join(lines)


def format_columns(names: Sequence[str], columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """A table with one line per class and one column per result: title -> class name -> IoU in percent or None."""
    arrays = {title: iou_array(names, iou) for title, iou in columns.items()}
    rows = [(name, [array[index] for array in arrays.values()]) for index, name in enumerate(names)]
    means = ("mIoU", [mean_iou(array) for array in arrays.values()])
    width = max(len(name) for name in (*names, "mIoU"))
    cells = [max(len(title), 6) for title in arrays]

    def line(name: str, values: Sequence[str]) -> str:
        return "  ".join([f"{name:<{width}}", *(f"{v:>{w}}" for v, w in zip(values, cells, strict=True))])

    def numbers(values: Sequence[float]) -> list[str]:
        return [_digits(value) for value in values]

    head = line("class", list(arrays))
    body = [line(name, numbers(values)) for name, values in rows]
    return "\n".join([head, *body, "-" * len(head), line(means[0], numbers(means[1]))])


def format_historical(names: Sequence[str], iou: Scores) -> str:
    """The lines that AdaptSegNet's family of IoU scripts prints (and people's own scripts read)."""
    check_names(names, iou)
    lines = [f"===>{name}:\t{round(value, 2)}" for name, value in zip(names, iou.tolist(), strict=True)]
    return "\n".join([*lines, f"===> mIoU: {round(mean_iou(iou), 2)}"])


def _table_line(name: str, value: float, width: int) -> str:
    return f"{name:<{width}}  {_digits(value):>6}"
