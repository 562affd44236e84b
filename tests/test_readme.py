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
    described = {rung: {"title": rung, "same_as": None} for rung in rungs}
    return {"complete": True, "rungs": described, "scores": of, "budget": {"rung": 300, "warm_up": 200}}


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
        "ladder_roads_epfl_to_massachusetts": result(no_mixed=(1.0, 0.0, 3)),
    }
    ladders["ladder_roads_epfl_to_massachusetts"]["rungs"]["no_mixed"]["same_as"] = "as configured"
    lines = readme.filled(page, where="a page", results=ladders.__getitem__).splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == ("before", "<!-- table: parts -->", "<!-- /table -->", "after")
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[4:-2]}
    assert list(cells) == list(tables.PARTS.values())
    assert cells["without stage 2"] == ["-3.46 ± 0.12", "+0.50 ± 0.12 (2 seeds)", tables.NOT_MEASURED]
    assert cells["without ClassMix"] == [tables.NOT_MEASURED, tables.NOT_MEASURED, "not in it"]
    assert cells["without matching"] == [tables.NOT_MEASURED] * 3


def timed(name: str, fast: float, naive: float) -> dict[str, Any]:
    return {"name": name, "fast_s": fast, "naive_s": naive, "ratio": naive / fast}


def rows(table: str, results: dict[str, Any]) -> list[str]:
    """Those of a table below its head."""
    return tables.TABLES[table](results.__getitem__)[2:]


def test_figures_are_of_one_thing_and_in_their_unit() -> None:
    made = [timed(figure.case, 0.002 * figure.calls, 0.5 * figure.calls) for figure in tables.SPEED]
    for row, figure in zip(rows("speed", {"benchmarks_cpu": {"results": made}}), tables.SPEED, strict=True):
        assert row == f"| {figure.title} | 2 ms | {figure.plain}, 500 ms | 250 |"


def test_the_alignment_has_a_row_per_mode_and_loop() -> None:
    made = [timed("alignment, stage 2 released / re-pooled per pair", 0.08, 96.64)]
    expected = "| stage 2 released | 80 ms | pooled again for each pair, 96.6 s | 1208 |"
    assert rows("alignment", {"alignment_cpu": {"results": made}}) == [expected]


def test_a_stream_is_one_row() -> None:
    found = {"images": 9, "wall_ms": 22.04, "processor_ms": 26.0, "peak_mb": 583.4, "before_mb": 532.0}
    assert rows("stream", {"stream_cpu": found}) == ["| 9 | 22.0 ms | 26.0 ms | 583 MiB | 532 MiB |"]


def test_shares_of_an_update_sum_to_all_of_it() -> None:
    names = [name for listed in tables.PARTS_OF_AN_UPDATE.values() for name in listed]
    seconds = dict.fromkeys(names, 1.0) | {"data": 2.0}
    found = {"seconds": seconds, "use": {"operations": 6.36e12}, "peak_memory_mb": 8469.2}
    made = rows("profile", dict.fromkeys(tables.PROFILES, found))
    shares = [float(row.split(" | ")[1].rstrip("%")) for row in made[:-2]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert made[-3] == "| everything else | {0} | {0} |".format(f"{2 / (len(names) + 2):.1%}")
    assert made[-2:] == [
        "| operations | 6.4 TFLOP | 6.4 TFLOP |",
        "| peak memory of the process | 8469 MiB | 8469 MiB |",
    ]


def test_pages_claim_nothing_that_results_deny() -> None:
    outcomes = {"SIGINT: saved": 2, "inside a write: killed": 11}
    soaked = {"wrong": [], "kills": {"outcomes": outcomes}}
    assert rows("soak", {"soak": soaked}) == ["| SIGINT | saved | 2 |", "| inside a write | killed | 11 |"]
    with pytest.raises(readme.ConfigError, match="1 faults were found"):
        rows("soak", {"soak": soaked | {"wrong": ["a run differs"]}})
    with pytest.raises(readme.ConfigError, match=r"ladder_streets\.json is partial"):
        rows("streets", {"ladder_streets": result() | {"complete": False}})


def test_mistakes_are_one_line(script: Script, tmp_path: Path) -> None:
    with pytest.raises(readme.ConfigError, match="a page: there is no table 'prats', only streets, photographs, parts"):
        readme.filled("<!-- table: prats -->\n<!-- /table -->\n", where="a page")
    with pytest.raises(readme.ConfigError, match="no such file; the page names the command"):
        readme.committed("nothing")
    nothing: dict[str, Any] = {}
    with pytest.raises(readme.ConfigError, match="a page: table 'soak': its results have no 'soak'"):
        readme.filled("<!-- table: soak -->\n<!-- /table -->\n", where="a page", results=nothing.__getitem__)
    code, _, errors = script("benchmarks.readme", "--demo", str(tmp_path))
    assert code == 2
    assert errors.strip().endswith("there is no adaptation.png; `make demo` writes it at its end")
