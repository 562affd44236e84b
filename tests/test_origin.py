"""Results say the command that makes them."""

from __future__ import annotations

import pytest

from benchmarks.origin import module_command


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("X.toml --seeds 3", "X.toml --seeds 3"),
        ("X.toml --report-only --seeds 3", "X.toml --seeds 3"),
        ("--known a.json X.toml", "X.toml"),
        ("--known=a.json X.toml", "X.toml"),
        ("X.toml --known a.json", "X.toml"),
    ],
)
def test_a_command_makes_its_result_from_nothing(given: str, said: str) -> None:
    assert module_command("benchmarks.ladder", given.split()) == f"python -m benchmarks.ladder {said}"
