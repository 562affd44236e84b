"""The tables of README.md and docs/ladder.md from docs/results, and README's picture from a demo.

    python -m benchmarks.readme                     tables
    python -m benchmarks.readme --demo runs/demo    and docs/adaptation.png with docs/results/demo_streets.json

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; what is between them is written anew.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ladder_report import LAST, markdown_table, plus_minus
from benchmarks.rungs import CONFIGURED, ORACLE, SOURCE_ONLY
from utils.build import MISTAKES
from utils.config import ConfigError, Parser
from utils.files import atomic_write
from utils.log import say, write_json
from utils.runtime import launch

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/ladder.md")
PICTURE, SUMMARY = "adaptation.png", "summary.json"
NOT_MEASURED = "not measured"

STREETS = {
    SOURCE_ONLY: "source-only",
    "control": "source-only, target's batch-norm statistics",
    "sim": "SIM, Lab translation",
    "released": "BAFFT as released, Lab translation",
    "paper": "BAFFT as in the paper, Lab translation",
    CONFIGURED: "`configs/streets.toml`: matching, Lab translation, ClassMix",
    "isia_aim": "the same, with ISIA and AIM",
    "no_alignment": "the same, without matching",
    "no_image_level": "the same, without translation",
    "no_stage2": "the same, without pseudo labels",
    "modern": "one stage: teacher, ClassMix, masked images, rare classes, ISIA and AIM",
    ORACLE: "oracle, on the target's labels",
}
PHOTOGRAPHS = {  # recipe -> what is scored on what
    "camvid_day_to_dusk": "CamVid day -> dusk, mIoU, {updates} updates of 4 images",
    "roads_epfl_to_massachusetts": "Aerial roads, EPFL -> Massachusetts, IoU of road, {updates} updates of 2 tiles",
}
RECIPES = {"streets": "streets", "camvid_day_to_dusk": "CamVid", "roads_epfl_to_massachusetts": "roads"}
PARTS = {
    "no_image_level": "without translated images",
    "no_stage2": "without stage 2",
    "no_alignment": "without matching",
    "with_adversary": "with the adversary",
    "isia_aim": "with ISIA and AIM in stage 2",
}

Results = Callable[[str], Mapping[str, Any]]


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
        return "\n".join((match["head"], *make(of), match["end"]))

    return re.sub(r"(?P<head><!-- table: (?P<name>\w+) -->)\n.*?(?P<end><!-- /table -->)", table, text, flags=re.DOTALL)


def committed(recipe: str) -> Mapping[str, Any]:
    """A ladder's results."""
    return json.loads((ROOT / "docs" / "results" / f"ladder_{recipe}.json").read_text(encoding="utf-8"))


def streets(of: Results) -> list[str]:
    """A row per rung."""
    scores = of("streets")["scores"]
    return markdown_table(
        ("", "mIoU", "of the gap"), [[title, *_score(scores, rung)] for rung, title in STREETS.items()]
    )


def photographs(of: Results) -> list[str]:
    """A row per recipe."""
    rows = []
    for recipe, title in PHOTOGRAPHS.items():
        result = of(recipe)
        updates = result["budget"]["rung"] + result["budget"]["warm_up"]
        ours, share = _score(result["scores"], CONFIGURED)
        low, high = (_score(result["scores"], rung)[0] for rung in (SOURCE_ONLY, ORACLE))
        rows.append([title.format(updates=updates), low, ours, high, share])
    return markdown_table(("", "source-only", "adapted", "oracle", "of the gap"), rows)


def parts(of: Results) -> list[str]:
    """A row per part of the method, a column per recipe: the paired difference to the recipe."""
    scores = {recipe: of(recipe)["scores"] for recipe in RECIPES}
    rows = [[title, *(_difference(scores[recipe], rung) for recipe in RECIPES)] for rung, title in PARTS.items()]
    return markdown_table(("", *RECIPES.values()), rows)


def _score(scores: Mapping[str, Any], rung: str) -> tuple[str, str]:
    if rung not in scores:
        return NOT_MEASURED, NOT_MEASURED
    last = scores[rung][LAST]
    return plus_minus(last["mean"], last["std"]), plus_minus(last["gap_closed"]["mean"], None, 0) + " %"


def _difference(scores: Mapping[str, Any], rung: str) -> str:
    if rung not in scores:
        return NOT_MEASURED
    difference = scores[rung][LAST]["difference_to_configured"]
    seeds = "" if difference["n"] > 2 else f" ({difference['n']} seeds)"
    return plus_minus(difference["mean"], difference["standard_error"], 2, signed=True) + seeds


TABLES = {"streets": streets, "photographs": photographs, "parts": parts}


if __name__ == "__main__":
    launch(main, MISTAKES)
