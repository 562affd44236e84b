"""The page that compares several runs: a table of them, IoU per class, learning curves together, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.diagnostics import Divergence
from utils.json_files import plain
from utils.metrics import mean_iou
from utils.report.data import Classes
from utils.report.features import divergence_table
from utils.report.markup import NONE, Child, Html, join, number, page, pairs, table, tag
from utils.report.page import curves
from utils.report.parts import (
    LABEL_SELECTED,
    NO_VALIDATION,
    class_colours,
    difference,
    duration,
    method,
    missing,
    named,
)
from utils.run_folder import RunRecord


def render(runs: Sequence[RunRecord], classes: Classes, looks: Mapping[str, Divergence], command: str) -> str:
    """The document; looks: by the labels of the runs, of those that could be looked at."""
    body = join(
        tag("h1", f"{len(runs)} runs compared"),
        tag("p", "The first run is what the others are compared with.", class_="note"),
        tag("h2", "Runs"),
        _runs(runs),
        tag("h2", "IoU per class"),
        _classes(runs, classes),
        tag("h2", "Learning curves"),
        curves(runs),
        tag("h2", "Distances"),
        _distances(runs, looks),
        tag("h2", "How they were made"),
        pairs((run.label, tag("code", run.manifest.get("command", "no manifest.json"))) for run in runs),
        tag("h3", "This page"),
        pairs([("command", tag("code", command))]),
    )
    return page(f"{len(runs)} runs compared", body, style=class_colours(classes))


def to_dict(runs: Sequence[RunRecord], looks: Mapping[str, Divergence]) -> dict[str, Any]:
    """The numbers of the page but those of the logs, unrounded."""
    return plain(
        {
            "runs": {
                run.label: {
                    "folder": run.folder,
                    "last": run.last or None,
                    "chosen_without_labels": run.choice or None,
                    "best_selected_on_target_labels": run.best or None,
                    "divergence": looks[run.label].summary() if run.label in looks else None,
                }
                for run in runs
            }
        }
    )


def _runs(runs: Sequence[RunRecord]) -> Html:
    first = runs[0].last.get("miou")
    rows = []
    for run in runs:
        last, result = run.last.get("miou"), run.result
        gain = None if last is None or first is None or run is runs[0] else last - first
        rows.append(
            [
                run.label,
                number(last),
                number(None) if gain is None else difference(gain),
                number(run.choice.get("miou")),
                number(run.best.get("miou")),
                result.get("steps", NONE),
                duration(result["seconds"]) if result else NONE,
                tag("span", method(run)),
            ]
        )
    head = [
        "run",
        "mIoU, last",
        "difference",
        "mIoU, chosen without labels",
        "mIoU, best *",
        "updates",
        "time",
        "trained with",
    ]
    lacking = [run.label for run in runs if not run.last]
    note = missing(f"{', '.join(lacking)}: {NO_VALIDATION}") if lacking else None
    return join(table(head, rows), tag("p", f"* {LABEL_SELECTED}.", class_="note"), note)


def _classes(runs: Sequence[RunRecord], classes: Classes) -> Html:
    columns = [run.iou(classes.names) for run in runs]
    absent = np.full(len(classes.names), np.nan)
    filled = [absent if column is None else column for column in columns]
    rows: list[list[Child]] = [
        [named(classes, index), *(number(float(column[index])) for column in filled)]
        for index in range(len(classes.names))
    ]
    rows.append(["mIoU", *(number(mean_iou(column)) for column in filled)])
    return table(["class", *(run.label for run in runs)], rows, foot=1)


def _distances(runs: Sequence[RunRecord], looks: Mapping[str, Divergence]) -> Html:
    lacking = [run.label for run in runs if run.label not in looks]
    note = missing(f"Not looked at: {', '.join(lacking)}; their own pages say why.") if lacking else None
    return join(divergence_table(looks) if looks else None, note)
