"""How the benchmarks measure: a fast and a naive way to the same result, side by side on the same input.

A module of cases has `cases(*, quick, device)`, a generator of `Case`; `python -m benchmarks` runs them all.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SELF = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two ways to the same result on the same input.

    name: what is timed, with its unit, such as "alignment, released, an iteration".
    fast, naive: no arguments, run to completion; naive None: nothing to compare with.
    repeats, naive_repeats: how often each is timed (the median counts); fast runs once more before, to warm up.
    agree: raises AssertionError where the results of fast and naive differ; called once.
    """

    name: str
    fast: Callable[[], Any]
    naive: Callable[[], Any] | None = None
    repeats: int = 5
    naive_repeats: int = 1
    agree: Callable[[Any, Any], None] | None = None


@dataclass(frozen=True)
class Result:
    """What `measure` found. The fields are the keys of the JSON.

    fast_s, naive_s: median seconds of one call; ratio: naive_s / fast_s, how many times faster (both None without a
    naive way). peak_mb: MiB that `fast` needs: on the CPU what this process grows by while it runs (None where the
    system does not tell), on CUDA the most that is allocated, input included.
    """

    name: str
    fast_s: float
    naive_s: float | None
    ratio: float | None
    peak_mb: float | None
    device: str


def duration(seconds: float) -> str:
    """In the unit that fits: 12.3 s, 4.56 ms."""
    return f"{three_digits(seconds)} s" if seconds >= 0.9995 else f"{three_digits(seconds * 1000)} ms"


def three_digits(value: float) -> str:
    """At least three digits, never an exponent: 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def measure(case: Case, device: torch.device) -> Result:
    """Time both ways of a case and compare their results. AssertionError (from `case.agree`) where they differ."""
    case.fast()  # warms up: lazy imports, caches, compilation
    memory = _Memory(device)
    fast_s, fast_result = _median(case.fast, case.repeats, device)
    peak_mb = memory.peak_mb()
    naive_s = None
    if case.naive is not None:
        naive_s, naive_result = _median(case.naive, case.naive_repeats, device)
        _compare(case, fast_result, naive_result)
    ratio = None if naive_s is None else naive_s / fast_s
    return Result(case.name, fast_s, naive_s, ratio, peak_mb, device.type)


def _compare(case: Case, fast: Any, naive: Any) -> None:
    if case.agree is None:
        return
    try:
        case.agree(fast, naive)
    except AssertionError as error:
        raise AssertionError(f"{case.name}: fast and naive differ: {error}") from error


def _median(function: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, Any]:
    """Median seconds of a call, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        result = None  # the one before is freed first, as it would be in a loop of its own
        _synchronize(device)
        began = time.perf_counter()
        result = function()
        _synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Memory:
    """The most memory held since this object was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: float | None = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif (_SELF / "clear_refs").exists():
            _return_freed_memory()
            (_SELF / "clear_refs").write_text("5")  # the high-water mark falls to what is resident now (proc(5))
            self._before = _high_water_mb()

    def peak_mb(self) -> float | None:
        """MiB: all that was allocated on CUDA, growth of the resident set on the CPU; None if the system is silent."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return None if self._before is None else _high_water_mb() - self._before


def _return_freed_memory() -> None:
    """Give freed memory back to the system, else growth into it would not be seen. glibc only; others give it back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _high_water_mb() -> float:
    """The resident set at its largest, in MiB (Linux)."""
    lines = (_SELF / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
