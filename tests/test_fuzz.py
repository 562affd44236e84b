"""The ordinary share of the random cases; the long form is `make soak`."""

from __future__ import annotations

import pytest

from tests.fuzz import CASES


@pytest.mark.parametrize("name", CASES)
def test_random_input(name: str) -> None:
    CASES[name].run(CASES[name].count)


def test_there_are_enough() -> None:
    assert sum(case.count for case in CASES.values()) >= 2000
