"""The benchmarks of pseudo labels and scoring, at a size that shows whether both ways agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import pseudo_labels, scoring

CPU = torch.device("cpu")


def test_every_way_to_pseudo_labels_gives_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_labels, "SIZE", (64, 128))
    monkeypatch.setattr(pseudo_labels, "GRID", (9, 17))
    names = []
    for case in pseudo_labels.cases(quick=True, device=CPU):
        fast = case.fast()
        if case.naive is not None and case.agree is not None:
            case.agree(fast, case.naive())
        names.append(case.name)
    assert len(names) == len(set(names)) == 8


def test_a_stream_is_followed_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_labels, "SIZE", (64, 128))
    found = pseudo_labels.follow(10, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{index}.png" for index in range(10))
    assert found["wall_ms"] > 0
    assert found["peak_mb"] >= found["before_mb"] > 0


def test_every_way_to_a_confusion_matrix_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SIZE", (64, 128))
    compared = set()
    for case in scoring.cases(quick=True, device=CPU):
        fast = case.fast()
        assert case.naive is not None
        naive = case.naive()
        if case.agree is not None:
            case.agree(fast, naive)
            compared.add(case.name.rpartition(" / ")[2].partition(",")[0])
    assert {"as published", "1"} <= compared
