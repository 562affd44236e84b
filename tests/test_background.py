"""Threads that change nothing but the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import files
from utils.background import in_background, write_png

PICTURE = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slow_for_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number**2

    assert list(in_background(slow_for_even, range(20), workers=workers)) == [number**2 for number in range(20)]
    assert list(in_background(slow_for_even, [], workers=workers)) == []


def test_items_are_read_here_and_no_more_than_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(30):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    for given_back, _ in enumerate(in_background(abs, items(), workers=2)):
        assert len(taken) <= given_back + 1 + 4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_error_is_raised_here_and_the_rest_is_dropped(workers: int) -> None:
    done: list[int] = []

    def refuse_seven(number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        done.append(number)
        return number

    received: list[int] = []

    def receive() -> None:
        for result in in_background(refuse_seven, range(1000), workers=workers):
            received.append(result)

    with pytest.raises(ValueError, match="seven"):
        receive()
    assert received == list(range(7))
    assert len(done) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("background")]


def test_who_stops_early_waits_for_what_has_begun() -> None:
    results = in_background(abs, range(1000), workers=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("background")]


def test_a_png_holds_what_was_given(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "a.png", PICTURE)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


def test_a_full_disk_is_named_with_its_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"):
        list(in_background(lambda name: write_png(tmp_path / name, PICTURE), ["a.png", "b.png"], workers=1))
    assert list(tmp_path.iterdir()) == []
