"""The pages' tables are those of the committed results, and say what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme, tables
from tests.conftest import ROOT, Script


def result(**rungs: tuple[float, float, int]) -> dict[str, Any]:
    """A ladder's: rung -> mean, paired difference, number of seeds."""
    of = {
        rung: {
            "last": {
                **{"mean": mean, "std": None, "gap_closed": {"mean": 50.0}},
                "difference_to_configured": {"mean": difference, "standard_error": 0.125, "n": n},
            }
        }
        for rung, (mean, difference, n) in rungs.items()
    }
    return {"scores": of, "budget": {"rung": 300, "warm_up": 200}}


def test_the_pages_hold_what_the_results_say() -> None:
    for name in readme.PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        assert "<!-- table: " in page
        assert readme.filled(page, where=name) == page, f"{name}: run `python -m benchmarks.readme`"


def test_a_table_takes_the_place_of_what_stood_there() -> None:
    page = "before\n<!-- table: parts -->\n| old |\n<!-- /table -->\nafter\n"
    ladders = {
        "ladder_streets": result(no_stage2=(1.0, -3.456, 3)),
        "ladder_camvid_day_to_dusk": result(no_stage2=(1.0, 0.5, 2)),
        "ladder_roads_epfl_to_massachusetts": result(),
    }
    lines = readme.filled(page, where="a page", results=ladders.__getitem__).splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == ("before", "<!-- table: parts -->", "<!-- /table -->", "after")
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[4:-2]}
    assert list(rows) == list(tables.PARTS.values())
    assert rows["without stage 2"] == ["-3.46 ± 0.12", "+0.50 ± 0.12 (2 seeds)", tables.NOT_MEASURED]
    assert rows["without matching"] == [tables.NOT_MEASURED] * 3


def test_mistakes_are_one_line(script: Script, tmp_path: Path) -> None:
    with pytest.raises(readme.ConfigError, match="a page: there is no table 'prats', only streets, photographs, parts"):
        readme.filled("<!-- table: prats -->\n<!-- /table -->\n", where="a page")
    code, _, errors = script("benchmarks.readme", "--demo", str(tmp_path))
    assert code == 2
    assert errors.strip().endswith("there is no adaptation.png; `make demo` writes it at its end")
