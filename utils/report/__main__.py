"""Runs as pages: how they learnt, what they confuse, what their features look like, against a baseline.

    python -m utils.report runs/streets/step2          writes runs/streets/step2/report.html
    python -m utils.report runs/a runs/b runs/c        a page each, against runs/a, and runs/a/comparison.html
    python -m utils.report runs/b --baseline runs/a --out b.html

Every page is one file that needs no network; its numbers are beside it as JSON. A run's training ends with a report of
its own ([run] report); this command makes it again, with other baselines or more images. docs/report.md explains it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.config import Parser
from utils.console import say
from utils.flags import at_least_one, output_file
from utils.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, write the pages, say where they are."""
    arguments = _arguments(argv)
    from utils.report.write import write_reports  # only now, as in the training scripts: with torch

    out = Path(arguments.out) if arguments.out else None
    for path in write_reports(arguments.runs, baseline=arguments.baseline, out=out, images=arguments.images):
        say(f"report: {path}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run (--snapshot-dir)")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="what each run is compared with (default: the "
                        "first of several; of a single one the run that it started from)")  # fmt: skip
    parser.add_argument(
        "--out", type=output_file, default="", metavar="FILE", help="write the page (of several: the comparison) here"
    )
    parser.add_argument(
        "--images", type=at_least_one, default=16, metavar="N", help="images of each domain to look at (16)"
    )
    arguments = parser.parse_args(argv)
    if Path(arguments.out).suffix == ".json":
        parser.error(f"--out {arguments.out}: this is the page, .html; its numbers are written beside it as .json")
    return arguments


if __name__ == "__main__":
    launch(main)
