"""Translation on the fly: every way against the naive ones, what they keep, which style is drawn, and whole runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks import naive_translation
from dataset.corpora import DataError, Sample
from dataset.labels import train_id_decoding
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Augment
from dataset.translation import (
    METHODS,
    Colours,
    Fourier,
    Histogram,
    Translator,
    band,
    drawn_images,
    fda,
    histogram_match,
    lab_transfer,
    method_named,
)
from tests.conftest import Script
from tests.test_engine import differences, state_of, train
from tests.worlds import own_settings, write_own, write_settings
from utils import datasets
from utils.checkpoint import CheckpointError
from utils.config import TRANSLATIONS, ConfigError, build_config
from utils.prepared import translator

KINDS = ("noise", "smooth", "grey", "constant", "black", "white")
SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))
SEEDS = st.integers(0, 10**6)
ALL = pytest.mark.parametrize("name", METHODS)


pytestmark = pytest.mark.usefixtures("one_thread")


def picture(seed: int, size: tuple[int, int], kind: str = "noise", *, span: tuple[int, int] = (0, 255)) -> np.ndarray:
    """An image of `size` (H,W) with values in `span`."""
    rng = np.random.default_rng(seed)
    low, high = span
    if kind in ("constant", "black", "white"):
        value = {"constant": rng.integers(low, high + 1, 3), "black": np.zeros(3), "white": np.full(3, 255)}[kind]
        return np.broadcast_to(value, (*size, 3)).astype(np.uint8)
    if kind == "smooth":
        coarse = Image.fromarray(rng.integers(low, high + 1, (4, 5, 3), dtype=np.uint8))
        return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR))
    pixels = rng.integers(low, high + 1, (*size, 3), dtype=np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if kind == "grey" else pixels


def translate(name: str, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    ways: dict[str, Callable[..., np.ndarray]] = {
        "fda": partial(fda, beta=0.2),
        "lab": lab_transfer,
        "histogram": histogram_match,
    }
    return ways[name](source, target)


# ---- against the naive ways ----


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.floats(0, 0.499), st.sampled_from(KINDS), st.sampled_from(KINDS), SEEDS)
def test_fda_is_the_exchange_in_the_whole_transform(
    size: tuple[int, int], other: tuple[int, int], beta: float, kind: str, style: str, seed: int
) -> None:
    source, target = picture(seed, size, kind), picture(seed + 1, other, style)
    expected = naive_translation.fda(source, target, band(size, beta)).clip(0, 255)
    assert np.abs(fda(source, target, beta=beta) - expected).max() <= 0.5 + 1e-2  # rounded


def test_fda_of_many_strips_is_the_exchange_in_the_whole_transform() -> None:
    source, target = picture(0, (301, 250)), picture(1, (128, 199), "smooth")
    translated = fda(source, target, beta=0.03)
    expected = naive_translation.fda(source, target, 7).clip(0, 255)
    assert np.abs(translated - expected).max() <= 0.5 + 1e-2
    assert np.abs(translated.astype(int) - source).max() > 5


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from(KINDS), st.sampled_from(KINDS), SEEDS)
def test_lab_is_the_papers(size: tuple[int, int], other: tuple[int, int], kind: str, style: str, seed: int) -> None:
    source, target = picture(seed, size, kind), picture(seed + 1, other, style)
    expected = naive_translation.lab(source, target).clip(0, 255)
    assert np.abs(lab_transfer(source, target) - expected).max() <= 0.5 + 0.1  # rounded; float32


def test_lab_of_a_large_image_takes_its_statistics_from_a_grid() -> None:
    source, target = picture(0, (700, 900), "smooth"), picture(1, (500, 1000), "smooth")
    expected = naive_translation.lab(source, target).clip(0, 255)
    assert np.abs(lab_transfer(source, target) - expected).max() <= 3


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from(KINDS), st.sampled_from(KINDS), SEEDS)
def test_histograms_are_matched_as_by_sorting(
    size: tuple[int, int], other: tuple[int, int], kind: str, style: str, seed: int
) -> None:
    source, target = picture(seed, size, kind), picture(seed + 1, other, style)
    np.testing.assert_array_equal(histogram_match(source, target), naive_translation.histogram(source, target))


def test_histograms_with_a_few_pixels_far_out_are_matched_as_by_sorting() -> None:
    """Of a million pixels a handful is bright: their places lie closer together than single precision tells."""
    source, target = picture(0, (1052, 1914), span=(0, 29)), picture(1, (720, 1280), span=(50, 69))
    source[0, :5], target[0, :3] = [[100], [130], [180], [220], [255]], [[120], [180], [255]]
    np.testing.assert_array_equal(histogram_match(source, target), naive_translation.histogram(source, target))


# ---- what they keep ----


@ALL
@settings(max_examples=60, deadline=None)
@given(SIDES, st.sampled_from(KINDS), SEEDS)
def test_a_target_that_is_the_source_changes_nothing(name: str, size: tuple[int, int], kind: str, seed: int) -> None:
    source = picture(seed, size, kind)
    assert np.abs(translate(name, source, source.copy()).astype(int) - source).max() <= 1


@settings(max_examples=30, deadline=None)
@given(SIDES, SEEDS)
def test_fda_of_every_frequency_changes_nothing_either(size: tuple[int, int], seed: int) -> None:
    source = picture(seed, size)
    fourier = Fourier(max(size))
    assert np.abs(fourier.apply(source, fourier.describe(source)).astype(int) - source).max() <= 1


@ALL
@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from(KINDS), st.sampled_from(KINDS), SEEDS)
def test_any_two_images_give_an_image(
    name: str, size: tuple[int, int], other: tuple[int, int], kind: str, style: str, seed: int
) -> None:
    """Sizes, numbers, and grey from grey. The source is not written to."""
    source, target = picture(seed, size, kind), picture(seed + 1, other, style)
    before = source.copy()
    translated = translate(name, source, target)
    assert (translated.shape, translated.dtype) == (source.shape, np.uint8)
    np.testing.assert_array_equal(source, before)
    if kind in ("grey", "black", "white") and style in ("grey", "black", "white"):
        assert np.ptp(translated.astype(int), axis=2).max() <= (1 if name == "lab" else 0)


def test_fda_keeps_phases_and_the_energy_outside_the_window() -> None:
    """Of images without clipping, to what rounding to whole levels does to a coefficient."""
    source, target = picture(0, (48, 64), "smooth", span=(90, 160)), picture(1, (40, 56), "smooth", span=(90, 160))
    before, wanted, after = (
        np.fft.fft2(image, axes=(0, 1)) / image[..., 0].size
        for image in (source, target, fda(source, target, beta=0.1))
    )
    low = np.ix_(range(-4, 5), range(-4, 5))
    phase = before[low] / np.abs(before[low])
    np.testing.assert_allclose(after[low], np.abs(wanted[low]) * phase, atol=0.05)
    assert np.abs(np.abs(wanted[low]) - np.abs(before[low])).max() > 1
    outside = np.ones((48, 64), bool)
    outside[low] = False
    np.testing.assert_allclose(after[outside], before[outside], atol=0.05)


def test_fda_of_beta_0_exchanges_the_mean_alone() -> None:
    source, target = picture(0, (30, 20), span=(80, 120)), picture(1, (9, 11), span=(100, 180))
    shift = target.mean(axis=(0, 1)) - source.mean(axis=(0, 1))
    assert np.abs(fda(source, target, beta=0.0) - (source + shift)).max() <= 0.5 + 1e-3


def test_fda_takes_a_resized_target_for_the_same_style() -> None:
    """Frequencies are those of the image, amplitudes those of a pixel."""
    image = Image.fromarray(picture(0, (60, 80), "smooth"))
    large, small = (np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for size in ((160, 120), (80, 60)))
    np.testing.assert_allclose(Fourier(3).describe(large), Fourier(3).describe(small), atol=0.8)


def test_lab_gives_the_targets_statistics() -> None:
    source, target = picture(0, (40, 50), span=(80, 160)), picture(1, (30, 60), "smooth", span=(90, 150))
    translated = Colours().describe(lab_transfer(source, target))
    np.testing.assert_allclose(translated, Colours().describe(target), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("target", [picture(1, (40, 70), "smooth", span=(20, 90)), picture(1, (40, 70)) // 128 * 255])
def test_a_histogram_becomes_the_targets_and_order_stays(target: np.ndarray) -> None:
    source = picture(0, (60, 50))
    translated = histogram_match(source, target)
    counts = [Histogram().describe(image).cumsum(axis=0) for image in (translated, target, source)]
    shares = [count / count[-1] for count in counts]
    assert np.abs(shares[0] - shares[1]).max() < 0.01 < 0.3 < np.abs(shares[2] - shares[1]).max()
    assert set(np.unique(translated)) <= set(np.unique(target))
    for channel in range(3):
        order = np.argsort(source[..., channel], axis=None, kind="stable")
        assert (np.diff(translated[..., channel].ravel()[order].astype(int)) >= 0).all()


def test_a_level_that_many_pixels_share_becomes_a_common_one() -> None:
    """A white half of the source: the middle of the target's brighter half, not its brightest pixel."""
    source = np.repeat(np.array([[0, 255]], np.uint8), 50, axis=1)[..., None].repeat(3, axis=2)
    target = np.arange(101, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert np.unique(histogram_match(source, target)).tolist() == [25, 75]


@pytest.fixture
def opencv_threads() -> Iterator[Callable[[int], None]]:
    """Sets OpenCV's threads, until the test is over."""
    before = cv2.getNumThreads()
    yield cv2.setNumThreads
    cv2.setNumThreads(before)


@ALL
def test_the_threads_of_this_process_change_no_bit(name: str, opencv_threads: Callable[[int], None]) -> None:
    method = method_named(name, beta=0.05, size=(900, 700))
    source, target = picture(0, (700, 900)), picture(1, (690, 880), "smooth")
    found = []
    for threads in (1, 2, 3):
        opencv_threads(threads)
        with threadpool_limits(threads):
            style = method.describe(target)
            found.append(style.tobytes() + method.apply(source, style).tobytes())
    assert len(set(found)) == 1


def test_the_band_is_a_share_of_the_shorter_side() -> None:
    assert [band(size, 0.01) for size in ((1280, 720), (720, 1280), (64, 48))] == [7, 7, 0]
    assert method_named("fda", beta=0.05, size=(1280, 720)) == Fourier(36)
    with pytest.raises(ValueError, match="unknown method 'cyclegan'"):
        method_named("cyclegan", beta=0.0, size=(1, 1))


# ---- which style ----


@given(st.integers(1, 50), st.integers(0, 60), SEEDS)
def test_the_seed_draws_images_each_once(number: int, count: int, seed: int) -> None:
    drawn = drawn_images(number, count, seed=seed)
    assert drawn == drawn_images(number, count, seed=seed) == sorted(set(drawn))
    assert set(drawn) <= set(range(number))
    assert len(drawn) == (min(count, number) or number)


def test_another_seed_draws_other_images() -> None:
    assert drawn_images(1000, 10, seed=0) != drawn_images(1000, 10, seed=1)


def styles(name: str, count: int = 4) -> tuple[Any, np.ndarray]:
    method = method_named(name, beta=0.1, size=(20, 16))
    return method, np.stack([method.describe(picture(seed, (16, 20))) for seed in range(count)])


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_a_position_draws_whether_and_which(probability: float) -> None:
    translator = Translator(*styles("lab"), probability=probability)
    drawn = [translator.draw((7, 0, position)) for position in range(2000)]
    assert drawn == [translator.draw((7, 0, position)) for position in range(2000)]
    counts = Counter(drawn)
    assert counts[None] == pytest.approx(2000 * (1 - probability), abs=100)
    assert all(counts[style] == pytest.approx(500 * probability, abs=100) for style in range(4))
    assert drawn != [translator.draw((8, 0, position)) for position in range(2000)] or not probability


@ALL
def test_a_copy_in_another_process_does_the_same(name: str) -> None:
    translator = Translator(*styles(name))
    copy = pickle.loads(pickle.dumps(translator))
    image = picture(9, (12, 18))
    np.testing.assert_array_equal(copy(image, (1, 2, 3)), translator(image, (1, 2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        translator.styles[:] = 0


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for index in range(4):
        image, label = tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"
        Image.fromarray(picture(index, (24, 30), "smooth")).save(image)
        Image.fromarray(picture(index, (24, 30), span=(0, 3))[..., 0]).save(label)
        made.append(Sample(image.name, image, label))
    return made


@ALL
@pytest.mark.parametrize("scale", [False, True])
def test_images_are_translated_before_the_same_augmentation(name: str, scale: bool, samples: list[Sample]) -> None:
    translator = Translator(*styles(name))
    ways: dict[str, Any] = {"decoding": train_id_decoding(4), "size": (20, 16), "seed": 3, "stream": 1}
    augment = Augment(mirror=True, scale=scale)
    plain = SegmentationDataset(samples, augment=augment, **ways)
    translated = SegmentationDataset(samples, augment=augment, **ways)
    translated.translate = translator
    for position in range(8):
        before, after = plain[position, position % 4], translated[position, position % 4]
        assert torch.equal(before.label, after.label)  # the draws of the augmentation are the same
        assert not torch.equal(before.image, after.image)
        source: Image.Image = Image.open(samples[position % 4].image)
        source = source if scale else source.resize((20, 16), Image.Resampling.BICUBIC)
        own = Image.fromarray(translator(np.asarray(source), (3, 1, position)))
        expected, _ = augment(own, np.zeros((24, 30), np.uint8), (20, 16), np.random.default_rng([3, 1, position]))
        np.testing.assert_array_equal(after.image.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_never_translated_is_as_stored(samples: list[Sample]) -> None:
    ways: dict[str, Any] = {"decoding": train_id_decoding(4), "size": (20, 16)}
    never = SegmentationDataset(samples, **ways)
    never.translate = Translator(*styles("fda"), probability=0.0)
    plain = SegmentationDataset(samples, **ways)
    assert all(torch.equal(never[index].image, plain[index].image) for index in range(4))


# ---- settings ----


def test_the_settings_name_the_methods() -> None:
    assert ("none", *METHODS) == TRANSLATIONS
    off = build_config(own_settings(Path("data")), where="here").translation
    assert (off.method, off.beta, off.styles, off.probability) == ("none", 0.01, 200, 1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"method": "fdaa"},
            r"\[translation\] method is 'fdaa'; choose one of none, fda, lab, histogram \(did you mean fda\?\)",
        ),
        ({"beta": 0.6}, r"\[translation\] beta must lie in 0..0.5, not 0.6"),
        ({"beta": float("nan")}, "beta must lie in"),
        ({"styles": -1}, "styles must be at least 0, not -1"),
        ({"probability": 1.5}, r"probability must lie in 0..1, not 1.5"),
        ({"methode": "fda"}, "unknown key 'methode'"),
    ],
)
def test_a_wrong_setting_is_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(own_settings(Path("data"), translation=keys), where="here")


# ---- runs ----

EVENTFUL = {  # source-only: the styles are all that is read of the target
    **{"weights": {"seg": 1.0}, "statistics": "source", "random_mirror": True, "random_scale": True},
    **{"num_steps": 4, "save_pred_every": 2},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of one's own; the target's training images have no labels."""
    root = tmp_path_factory.mktemp("world")
    write_own(root)
    for path in (root / "labels").glob("t*.png"):
        path.unlink()
    return root


def settings_of(name: str, **keys: Any) -> dict[str, Any]:
    return {"step1": EVENTFUL, "translation": {"method": name, "beta": 0.1, "styles": 3, **keys}}


@pytest.fixture(scope="module")
def straight(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run without an interruption for each method, and one without translation."""
    folder = tmp_path_factory.mktemp("straight")
    return {name: train(world, folder / name, **settings_of(name)) for name in TRANSLATIONS}


@pytest.mark.parametrize(("name", "workers"), [("fda", 2), ("lab", 0), ("histogram", 1)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    name: str, workers: int, world: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    """Styles and images by processes first, without any after the interruption, are those of the straight run."""
    run = {**own_settings(world)["run"], "num_workers": workers}
    folder = train(world, tmp_path / "run", "step1", "--num-steps-stop", "2", run=run, **settings_of(name))
    kept = (folder / "styles.npz").read_bytes()
    if workers:
        (folder / "styles.npz").rename(folder / "first.npz")  # then they are made again, and are the same
    train(world, folder, "step1", "--continue-train", **settings_of(name))
    assert differences(state_of(straight[name]), state_of(folder)) == []
    assert (folder / "log.jsonl").read_text() == (straight[name] / "log.jsonl").read_text()
    expected = np.load(straight[name] / "styles.npz")["styles"]
    for styles in folder.glob("*.npz"):
        np.testing.assert_array_equal(np.load(styles)["styles"], expected)
    assert workers or (folder / "styles.npz").read_bytes() == kept


def test_the_seed_of_the_run_decides_whose_styles_are_taken(world: Path, tmp_path: Path) -> None:
    taken = set()
    for seed in range(4):
        config = build_config(
            own_settings(world, run={"seed": seed}, translation={"method": "lab", "styles": 2}), where="test"
        )
        stage = replace(config.step1, snapshot_dir=str(tmp_path / str(seed)))
        found = translator(config, stage, datasets.class_table(config), resumed=False)
        assert found is not None
        taken.add(found.styles.tobytes())
    assert len(taken) > 1


def test_every_method_makes_another_run(straight: dict[str, Path]) -> None:
    losses = {
        json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss/seg"] for folder in straight.values()
    }
    assert len(losses) == len(TRANSLATIONS)
    assert not (straight["none"] / "styles.npz").exists()


def test_the_manifest_says_which_source_was_used(straight: dict[str, Path]) -> None:
    said = {name: json.loads((folder / "manifest.json").read_text())["inputs"] for name, folder in straight.items()}
    assert {name: inputs["translation"] for name, inputs in said.items()} == {
        "none": "as stored",
        "fda": "translated on the fly: fda, beta 0.1, 3 styles of target train",
        "lab": "translated on the fly: lab, 3 styles of target train",
        "histogram": "translated on the fly: histogram, 3 styles of target train",
    }


def test_the_flag_and_the_log(world: Path, tmp_path: Path, script: Script, straight: dict[str, Path]) -> None:
    """A source-only run, which reads the target for its styles alone; the next command keeps the flag."""
    path = write_settings(
        tmp_path / "c.toml",
        own_settings(
            world,
            step1={"num_steps": 1, "weights": {"seg": 1.0}, "statistics": "source", "restore_from": "random"},
            translation={"styles": 0, "probability": 0.5},
        ),
    )
    folder = str(tmp_path / "run")
    code, printed, errors = script(
        "train_step1.py", "--config", str(path), "--translation", "lab", "--snapshot-dir", folder
    )
    assert code == 0, errors
    (source,) = [line for line in printed.splitlines() if line.startswith("source: ")]
    assert source.startswith(f"source: 5 images like {world / 'images' / 's0.png'}, ")
    assert source.endswith(", translated on the fly: lab, 5 styles of target train, probability 0.5")
    assert "target: not used" in printed.splitlines()
    assert "--override 'translation.method=\"lab\"'" in printed.splitlines()[-1]


@pytest.mark.parametrize("keys", [{"beta": 0.2}, {"styles": 2}, {"method": "lab"}, {"method": "histogram"}])
def test_styles_of_another_making_are_not_mixed(
    keys: dict[str, Any], world: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight["fda"], folder)
    with pytest.raises(
        ConfigError, match=r"styles\.npz holds the styles of the interrupted run: Fourier\(band=4\) of 3"
    ):
        train(world, folder, "step1", "--continue-train", **settings_of("fda", **keys))


def test_damaged_styles_and_damaged_targets_are_one_line(
    world: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight["fda"], folder)
    for content in (b"", (folder / "styles.npz").read_bytes()[:-40]):
        (folder / "styles.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"styles\.npz is damaged; remove it, and the same styles are made again"):
            train(world, folder, "step1", "--continue-train", **settings_of("fda"))
    shutil.copytree(world, tmp_path / "world")
    (tmp_path / "world" / "images" / "t2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"t2\.png: not an image file"):
        train(tmp_path / "world", tmp_path / "other", **settings_of("fda", styles=0))


def test_a_damaged_target_is_skipped_where_files_are(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The style of the next one stands for its own."""
    shutil.copytree(world, tmp_path / "world")
    (tmp_path / "world" / "images" / "t2.png").write_bytes(b"no image")
    run = {**own_settings(world)["run"], "bad_files": "skip"}
    step = {"step1": {**EVENTFUL, "num_steps": 1}}
    folder = train(tmp_path / "world", tmp_path / "run", run=run, **settings_of("lab", styles=0) | step)
    styles = np.load(folder / "styles.npz")["styles"]
    np.testing.assert_array_equal(styles[2], styles[3])
    assert "t2.png: not an image file of a known kind; the style of the next image" in capsys.readouterr().out


@pytest.mark.parametrize(("before", "now"), [("fda", "none"), ("none", "lab")])
def test_a_run_does_not_go_on_with_other_images(
    before: str, now: str, world: Path, tmp_path: Path, straight: dict[str, Path]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight[before], folder)
    with pytest.raises(CheckpointError, match=rf"translation\.method: {before} -> {now}, so the source's images would"):
        train(world, folder, "step1", "--continue-train", **settings_of(now))


def test_a_run_does_not_go_on_with_another_probability(world: Path, tmp_path: Path, straight: dict[str, Path]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight["lab"], folder)
    with pytest.raises(CheckpointError, match=r"translation\.probability: 1\.0 -> 0\.5, so"):
        train(world, folder, "step1", "--continue-train", **settings_of("lab", probability=0.5))
