"""The forms in which scores are written: golden lines, and every number of the report in each of them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from utils import tables
from utils.evaluation import Bootstrap, Evaluation, ScoreReport

NAMES = ("road", "sky", "car")
SUBSETS = {"3": (0, 1, 2), "2": (0, 1), "vehicles": (2,)}


@pytest.fixture
def report() -> ScoreReport:
    """Two images; class `car` is predicted and never true."""
    evaluation = Evaluation(NAMES, SUBSETS, boundary_ratio=0.1)
    truth = np.repeat(np.array([0, 1], np.uint8), 8).reshape(2, 8)
    prediction = truth.copy()
    prediction[0, :3] = 2
    evaluation.update(prediction, truth)
    evaluation.update(truth, truth)
    return evaluation.report(Bootstrap(samples=50, seed=3))


def rows_of(markdown: str) -> list[list[str]]:
    """The cells of every Markdown row."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_console_form_names_every_protocol(report: ScoreReport) -> None:
    text = tables.format_report(report)
    lines = text.splitlines()
    assert lines[0].split() == ["class", "IoU", "interval", "precision", "recall", "boundary", "IoU"]
    low, high = report.iou[0][1:]
    assert lines[1] == f"road    81.25   [{low:.2f}, {high:.2f}]     100.00   81.25         81.25"
    assert lines[3] == "car      0.00      [0.00, 0.00]       0.00       -          0.00"
    assert lines[5].split()[:2] == ["mean", "60.42"]
    spelled = [line[6:].split("]")[-1].strip() for line in lines[7:15]]
    assert spelled[:6] == [
        "mIoU over all 3 classes",
        "mIoU over 2 of 3 classes; pixels of other classes count as false positives (BDL, DAFormer)",
        "mIoU over 2 of 3 classes; pixels of other classes are left out first (ProDA)",
        "mIoU over vehicles (1 of 3 classes); pixels of other classes count as false positives (BDL, DAFormer)",
        "mIoU over vehicles (1 of 3 classes); pixels of other classes are left out first (ProDA)",
        "pixel accuracy",
    ]
    assert "over 32 labelled pixels of 2 images. Boundaries are 10 %" in text
    assert "95 %, from 50 bootstrap samples of the images (seed 3)" in text


def test_without_confidence_the_table_says_where_calibration_comes_from(report: ScoreReport) -> None:
    (line,) = [line for line in tables.format_report(report).splitlines() if "calibration" in line]
    assert line.split()[0] == "-"
    assert "evaluate_cityscapes.py --in-memory" in line


def test_markdown_holds_the_same_cells_as_the_console(report: ScoreReport) -> None:
    markdown, text = tables.format_markdown(report), tables.format_report(report)
    rows = rows_of(markdown.split("| truth, % of row")[0])
    assert rows[0] == ["class", "IoU", "interval", "precision", "recall", "boundary IoU"]
    assert {len(row) for row in rows} == {6, 3}
    flat = " ".join(text.split())
    for row in rows:
        if not row[0].startswith("---") and row[0] != "measure":
            order = row if len(row) == 6 else [*row[1:], row[0]]
            assert " ".join(cell for cell in order if cell) in flat


def test_markdown_says_where_each_class_went(report: ScoreReport) -> None:
    rows = rows_of("|" + tables.format_markdown(report).split("| truth, % of row")[1])[2:]
    counts = report.confusion.counts
    for name, cells, row in zip(report.names, rows, counts, strict=True):
        expected = [f"{100 * count / row.sum():.2f}" if row.sum() else "-" for count in row]
        assert cells == [name, *expected]


def test_a_name_with_a_bar_keeps_its_markdown_row() -> None:
    evaluation = Evaluation(["a|b"])
    evaluation.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert "| a\\|b | 100.00 |" in tables.format_markdown(evaluation.report())


def test_csv_holds_every_number_unrounded(report: ScoreReport) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.format_csv(report))))
    written = {(row["measure"], row["name"]): row for row in rows}
    assert len(written) == len(rows)
    expected = report.to_dict()

    def number(cell: str) -> float | None:
        return float(cell) if cell else None

    for measure in ("iou", "precision", "recall"):
        assert {name: number(written[measure, name]["value"]) for name in NAMES} == expected[measure]
    assert {n: number(written["boundary_iou", n]["value"]) for n in NAMES} == expected["boundary_iou"]["iou"]
    for name in NAMES:
        row = written["iou", name]
        assert [number(row["low"]), number(row["high"])] == expected["bootstrap"]["iou"][name]
    assert number(written["miou", "3"]["value"]) == expected["miou"]
    for protocol in ("2", "vehicles"):
        for way in ("outside_counted", "outside_ignored"):
            row = written[f"miou_{way}", protocol]
            assert number(row["value"]) == expected["protocols"][protocol][way]
            assert [number(row["low"]), number(row["high"])] == expected["bootstrap"]["protocols"][protocol][way]
    assert number(written["pixel_accuracy", ""]["value"]) == expected["pixel_accuracy"]
    assert number(written["ece", ""]["value"]) is None


def test_publish_prints_and_writes(report: ScoreReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.publish(report, csv_file=str(tmp_path / "new" / "s.csv"), markdown_file=str(tmp_path / "s.md"))
    printed = capsys.readouterr().out
    historical = tables.format_historical(report.names, report.confusion.iou())
    assert printed == f"{historical}\n{tables.format_report(report)}\n"
    assert (tmp_path / "new" / "s.csv").read_text(encoding="utf-8") == tables.format_csv(report)
    assert (tmp_path / "s.md").read_text(encoding="utf-8") == tables.format_markdown(report)
    tables.publish(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "s.md"]


def test_the_report_of_nothing_has_no_numbers() -> None:
    report = Evaluation(NAMES, SUBSETS).report()
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["miou"] is None
    assert "nan" not in tables.format_report(report) + tables.format_markdown(report) + tables.format_csv(report)


# ---- IoUs alone ----


def test_table() -> None:
    table = tables.format_table(NAMES, np.array([91.804, 100.0, math.nan]), {"2": (0, 2)})
    assert table.splitlines() == [
        "class                IoU",
        "road               91.80",
        "sky               100.00",
        "car                    -",
        "------------------------",
        "mIoU               95.90",
        "mIoU (2 classes)   91.80",
    ]


def test_columns() -> None:
    columns = {"a": {"road": 50.0, "sky": None, "car": 25.0}, "stage 2": {"road": 100.0, "sky": 1.0, "car": None}}
    assert tables.format_columns(NAMES, columns).splitlines() == [
        "class       a  stage 2",
        "road   50.00   100.00",
        "sky        -     1.00",
        "car    25.00        -",
        "----------------------",
        "mIoU   37.50    50.50",
    ]


def test_historical_lines() -> None:
    text = tables.format_historical(NAMES, np.array([91.804, 48.0, math.nan]))
    assert text.splitlines() == ["===>road:\t91.8", "===>sky:\t48.0", "===>car:\tnan", "===> mIoU: 69.9"]


@pytest.mark.parametrize("function", [tables.format_table, tables.format_historical])
def test_a_name_for_every_class(function) -> None:
    with pytest.raises(ValueError, match="3 class names for 2 classes"):
        function(NAMES, np.zeros(2))
