"""Pictures and texts for TensorBoard: what they say of a matrix, and that a run leaves them there."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.test_engine import train
from utils.board import CELL, FULL, NONE, heatmap, pairs_text
from utils.diagnostics import PairChange

NAMES = ("road", "sky", "a long name")


def cells(picture: np.ndarray) -> np.ndarray:
    """(C, C, 3): the colour in the middle of every cell; the matrix stands in the lower right."""
    side, middle = CELL * len(NAMES), np.arange(len(NAMES)) * CELL + CELL // 2
    return picture[-side:, -side:][np.ix_(middle, middle)]


def test_a_heatmap_is_darker_for_more_and_grey_for_nothing() -> None:
    values = np.array([[0.0, 5.0, 10.0], [-1.0, 20.0, np.nan], [2.5, 7.5, 1.0]])
    picture = heatmap(values, NAMES, top=10)
    assert picture.dtype == np.uint8
    found = cells(picture).astype(int)
    assert (found[0, 0] == 255).all()
    assert (found[1, 0] == 255).all(), "below 0 is 0"
    assert (found[0, 2] == FULL).all()
    assert (found[1, 1] == FULL).all(), "above the top is the top"
    assert (found[1, 2] == NONE).all()
    assert (found[2, 0] > found[0, 1]).all()
    assert (found[0, 1] > found[2, 1]).all()


def test_a_matrix_of_zeros_is_white() -> None:
    assert (cells(heatmap(np.zeros((3, 3)), NAMES, top=0.0)) == 255).all()


def test_rows_and_columns_are_named() -> None:
    picture = heatmap(np.zeros((3, 3)), NAMES, top=1)
    rows, columns = picture[-CELL * 3 :, : -CELL * 3], picture[: -CELL * 3, -CELL * 3 :]
    for strips in (np.split(rows, 3, axis=0), np.split(columns, 3, axis=1)):  # both from the first class to the last
        ink = [(strip < 128).sum() for strip in strips]
        assert min(ink) > 0
        assert ink[2] > ink[0] > ink[1], "the longer name has more ink"


def test_pairs_are_a_table() -> None:
    text = pairs_text([PairChange(0, 1, 40.0, 10.04)], [PairChange(2, 0, 1.0, 3.0)], NAMES)
    assert text.splitlines()[2:] == [
        "| improved | road | sky | 40.0 | 10.0 |",
        "| worsened | a long name | road | 1.0 | 3.0 |",
    ]


@pytest.mark.usefixtures("one_thread")
def test_a_run_shows_matrices_and_what_became_of_confusions(world: Path, tmp_path: Path) -> None:
    stage: dict[str, Any] = {"num_steps": 2, "save_pred_every": 1}
    run: dict[str, Any] = {"device": "cpu", "num_workers": 0, "report": False}
    first = train(world, tmp_path / "first", step1=stage, run={**run, "tensorboard": True})
    shown = events(first)
    assert shown.Tags()["images"] == ["confusion"]
    assert not shown.Tags()["tensors"], "there was no run before"

    stage["restore_from"] = str(first)
    second = train(world, tmp_path / "second", step1=stage, run={**run, "tensorboard": True, "diagnostics": True})
    shown = events(second)
    kinds = ("", "source_", "target_")
    matrices = {f"divergence_{kind}{what}" for kind in kinds for what in ("distance", "cosine")}
    assert {"confusion", *matrices} <= set(shown.Tags()["images"])
    pictures = shown.Images("confusion")
    assert [picture.step for picture in pictures] == [1, 2]
    assert Image.open(io.BytesIO(pictures[-1].encoded_image_string)).size == (pictures[-1].width, pictures[-1].height)
    text = shown.Tensors("confusion_pairs/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("| | truth | taken for |")


def events(folder: Path) -> Any:
    """What TensorBoard would read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found
