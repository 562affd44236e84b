"""Runs that are killed and resumed end as if nothing had happened; the long form is `make soak`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.kill import Stand, start_server, torture


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    start_server()


@pytest.mark.parametrize(
    ("section", "ways"),
    [("step1", ["inside a write", "at once"]), ("step2", ["inside a write", "SIGTERM"])],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path, section: str, ways: list[str]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stand = Stand.make(tmp_path, section)
    assert torture(stand, "killed", ways, random.Random(seed)) == [], f"seed {seed}, {stand.tally}"
    print(stand.tally)
