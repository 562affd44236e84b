"""The tables of README.md and docs/ from docs/results, and README's picture from a demo.

    python -m benchmarks.readme                     tables
    python -m benchmarks.readme --demo runs/demo    and docs/adaptation.png with docs/results/demo_streets.json

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; what is between them is written anew.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import TABLES, Results
from utils.config import ConfigError, Parser
from utils.console import say
from utils.files import atomic_write
from utils.json_files import write_json
from utils.launch import launch

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/ladder.md", "docs/performance.md", "docs/reliability.md", "docs/translation.md")
PICTURE, SUMMARY = "adaptation.png", "summary.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages anew where they differ; copy the picture of a demo."""
    parser = Parser(description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="of a finished `make demo`")
    arguments = parser.parse_args(argv)
    if arguments.demo:
        copy_demo(arguments.demo)
    for name in PAGES:
        page = ROOT / name
        before = page.read_text(encoding="utf-8")
        after = filled(before, where=name)
        if after != before:
            with atomic_write(page) as temporary:
                temporary.write_text(after, encoding="utf-8")
        say(f"{name}: {'as it was' if after == before else 'written anew'}")


def copy_demo(demo: Path) -> None:
    """The picture, and what it is of. Raises ConfigError for a demo that is not finished."""
    for name in (PICTURE, SUMMARY):
        if not (demo / name).is_file():
            raise ConfigError(f"{demo}: there is no {name}; `make demo` writes it at its end")
    shutil.copyfile(demo / PICTURE, ROOT / "docs" / PICTURE)
    summary = json.loads((demo / SUMMARY).read_text(encoding="utf-8"))
    write_json(ROOT / "docs" / "results" / "demo_streets.json", summary)
    say(f"docs/{PICTURE} and docs/results/demo_streets.json: copied")


def filled(text: str, *, where: str, results: Results | None = None) -> str:
    """A page with all of its tables written anew. Raises ConfigError for the name of a table that there is not."""
    of = results or committed

    def table(match: re.Match[str]) -> str:
        make = TABLES.get(match["name"])
        if make is None:
            raise ConfigError(f"{where}: there is no table {match['name']!r}, only {', '.join(TABLES)}")
        try:
            return "\n".join((match["head"], *make(of), match["end"]))
        except KeyError as error:
            raise ConfigError(f"{where}: table {match['name']!r}: its results have no {error}") from error

    return re.sub(r"(?P<head><!-- table: (?P<name>\w+) -->)\n.*?(?P<end><!-- /table -->)", table, text, flags=re.DOTALL)


def committed(name: str) -> Mapping[str, Any]:
    """What a JSON below docs/results says. Raises ConfigError where it is not there."""
    file = ROOT / "docs" / "results" / f"{name}.json"
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; the page names the command that makes it")
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    launch(main)
