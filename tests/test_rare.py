"""Rare-class sampling: the published distribution, pure in the position, exact over interruptions, off by default."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.corpora import DataError, Sample
from dataset.labels import train_id_decoding
from dataset.rare import SHOWN, RareFirst, class_pixels, class_probabilities
from tests.conftest import Script
from tests.test_engine import differences, state_of, train
from tests.worlds import own_settings, save_png, write_own, write_settings
from utils import datasets
from utils.config import build_config
from utils.prepared import rare_first

BRIEF = {"num_steps": 2, "save_pred_every": 1, "random_mirror": True, "weights": {"seg": 1.0}}


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the distribution ----


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=19), st.floats(0.01, 10))
def test_probabilities_follow_the_formula(pixels: list[int], temperature: float) -> None:
    if not any(pixels):
        with pytest.raises(ValueError, match="no class"):
            class_probabilities(np.array(pixels), temperature)
        return
    weights = [math.exp((1 - count / sum(pixels)) / temperature) if count else 0.0 for count in pixels]
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(class_probabilities(np.array(pixels), temperature), expected, rtol=1e-9)


def test_a_low_temperature_prefers_the_rare() -> None:
    pixels = np.array([900, 90, 10])
    sharp, flat = class_probabilities(pixels, 0.01), class_probabilities(pixels, 100.0)
    assert sharp[2] > 0.999
    np.testing.assert_allclose(flat, 1 / 3, atol=0.01)


def test_images_are_drawn_as_often_as_the_formula_says() -> None:
    """Against a naive sum over classes; image 3 has too few pixels of class 2 to show it."""
    pixels = np.array([[900, 100, 0], [500, 0, 500], [1000, 0, 0], [998, 1, 1]])
    shown = [[0, 1, 2, 3], [0], [1]]
    chances = class_probabilities(pixels.sum(axis=0), 0.5)
    expected = [sum(chances[c] / len(shown[c]) for c in range(3) if image in shown[c]) for image in range(4)]
    order = RareFirst(pixels, 0.5, seed=1)
    drawn = Counter(order(position) for position in range(20000))
    np.testing.assert_allclose([drawn[image] / 20000 for image in range(4)], expected, atol=0.01)


def test_a_class_that_no_image_shows_clearly_is_still_drawn() -> None:
    pixels = np.array([[100000, 0], [100000, 3], [100000, 0]])
    order = RareFirst(pixels, 0.01, seed=0)
    assert {order(position) for position in range(50)} == {1}


def test_the_share_from_which_a_class_is_shown_is_enough() -> None:
    pixels = np.array([[1997, 3], [1998, 2]])
    assert pixels[0, 1] / pixels[0].sum() == SHOWN
    order = RareFirst(pixels, 0.01, seed=0)
    assert {order(position) for position in range(50)} == {0}


def test_unlabelled_images_and_absent_classes_are_never_drawn() -> None:
    pixels = np.array([[0, 0, 0], [5, 0, 7]])
    order = RareFirst(pixels, 1.0, seed=0)
    assert {order(position) for position in range(50)} == {1}


def test_draws_depend_on_seed_stream_and_position_alone() -> None:
    pixels = np.eye(30, dtype=np.int64) + 1
    sequences = [
        tuple(map(RareFirst(pixels, 1.0, seed=seed, stream=stream), range(40)))
        for seed, stream in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(sequences)) == 3
    order = RareFirst(pixels, 1.0, seed=0)
    assert [order(position) for position in reversed(range(40))] == list(reversed(sequences[0]))


def test_which_image_comes_says_nothing_of_how_it_is_augmented() -> None:
    """Both are drawn from seed, stream and position; the augmentation's first number is the scale."""
    order = RareFirst(np.eye(10, dtype=np.int64), 1.0, seed=3)
    images = [order(position) for position in range(2000)]
    firsts = [np.random.default_rng([3, 0, position]).random() for position in range(2000)]
    assert abs(np.corrcoef(images, firsts)[0, 1]) < 0.08


# ---- counting ----


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_counted_per_label(world: Path, workers: int) -> None:
    labels = sorted((world / "labels").glob("s*.png"))
    samples = [Sample(path.name, world / "images" / path.name, path) for path in labels]
    counted = list(class_pixels(samples, train_id_decoding(4), workers=workers))
    for row, path in zip(counted, labels, strict=True):
        pixels = np.array(Image.open(path))
        assert not isinstance(row, DataError)
        assert row.tolist() == [int((pixels == category).sum()) for category in range(4)]


def test_ignored_pixels_count_for_no_class(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", np.array([[0, 255, 1, 1]], dtype=np.uint8))
    (row,) = class_pixels([Sample("a", tmp_path / "a.png", tmp_path / "a.png")], train_id_decoding(3))
    assert not isinstance(row, DataError)
    assert row.tolist() == [1, 2, 0]


# ---- in a run ----


def test_a_run_resumes_exactly_and_differs_from_the_plain_order(world: Path, tmp_path: Path) -> None:
    rare = {**BRIEF, "rare_classes": 0.05}
    whole = state_of(train(world, tmp_path / "whole", step1=rare))
    folder = train(world, tmp_path / "run", "step1", "--num-steps-stop", "1", step1=rare)
    train(world, folder, "step1", "--continue-train", step1=rare)
    assert differences(whole, state_of(folder)) == []
    assert differences(whole, state_of(train(world, tmp_path / "plain", step1=BRIEF)))
    with np.load(folder / "class_pixels.npz") as kept:
        assert kept["class_pixels"].shape == (5, 4)
        assert kept["class_pixels"].sum() == 5 * 64 * 48


def test_the_seed_of_the_run_decides_which_images_come(world: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        config = build_config(own_settings(world, run={"seed": seed}), where="test")
        stage = replace(config.step1, rare_classes=0.5, snapshot_dir=str(tmp_path))
        classes = datasets.class_table(config)
        source = datasets.source_dataset(config, stage, classes)
        order = rare_first(config, stage, source, classes, resumed=False)
        assert order is not None
        orders.append([order(position) for position in range(20)])
    assert orders[0] != orders[1]


def test_off_counts_nothing(world: Path, tmp_path: Path) -> None:
    folder = train(world, tmp_path / "run", step1={**BRIEF, "rare_classes": 0.0})
    assert not (folder / "class_pixels.npz").exists()


def test_an_unreadable_label_is_said_and_its_image_left_out(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files may be skipped; else it is refused by name."""
    write_own(tmp_path, images=12)
    (tmp_path / "labels" / "s3.png").write_bytes(b"no image")
    stage = {**own_settings(tmp_path)["step1"], **BRIEF, "rare_classes": 0.05}
    path = write_settings(tmp_path / "c.toml", own_settings(tmp_path, step1=stage))
    monkeypatch.chdir(tmp_path)
    code, _, errors = script("train_step1.py", "--config", str(path))
    assert code == 2
    assert "s3.png" in errors
    folder = ("--snapshot-dir", "skipped")
    code, output, errors = script("train_step1.py", "--config", str(path), *folder, "--override", "run.bad_files=skip")
    assert code == 0, errors
    assert "s3.png" in output
    assert "never drawn" in output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rare_classes", -0.1),
        ("mask_block", 0),
        ("mask_ratio", 1.5),
        ("teacher_momentum", -1.0),
        ("teacher_threshold", 2.0),
    ],
)
def test_settings_beyond_their_range_are_refused(
    key: str, value: float, script: Script, tmp_path: Path, world: Path
) -> None:
    path = write_settings(tmp_path / "c.toml", own_settings(world, step1={key: value}))
    code, _, errors = script("train_step1.py", "--config", str(path))
    assert code == 2
    assert f"[step1] {key} must" in errors
