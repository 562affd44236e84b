"""What people see of a run while it goes on: lines and bars. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_QUIET_INTERVAL = 10.0  # seconds between updates of a progress bar that nobody watches


def say(text: str) -> None:
    """Print a line at once, above any progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    description: str | None = None,
    unit: str = "it",
    shown: bool = True,
) -> tqdm:
    """A tqdm bar with the time left, on standard error; plain and rare lines where that is no terminal."""
    watched = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not shown,
        dynamic_ncols=watched,
        ascii=not watched,
        mininterval=0.5 if watched else _QUIET_INTERVAL,
    )
