"""Histogram thresholds against sorting every confidence (spec 3.6), and the labels they give."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.inference import upsample
from utils.pseudo_label import (
    LEVELS,
    ConfidenceHistogram,
    PredictionCache,
    PseudoLabeler,
    apply_thresholds,
    dequantize,
    quantize,
)

C = 3


def exact_thresholds(labels: np.ndarray, confidences: np.ndarray, proportion: float = 0.5) -> np.ndarray:
    """The rule as the authors' script has it: sort everything, take the middle, cap."""
    tau = np.zeros(C)
    for k in range(C):
        ordered = np.sort(confidences[labels == k])
        if ordered.size:
            tau[k] = ordered[min(int(np.round(ordered.size * proportion)), ordered.size - 1)]
    return np.minimum(tau, 0.9)


confidence = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0.8999, 0.9001), st.floats(0.5, 0.50001)
)
pixels = st.lists(st.tuples(st.integers(0, C - 1), confidence), max_size=40)


def histogram_of(images: list[tuple[np.ndarray, np.ndarray]]) -> ConfidenceHistogram:
    histogram = ConfidenceHistogram(C)
    for label, values in images:
        histogram.update(label, values)
    return histogram


def arrays(chosen: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([k for k, _ in chosen], np.int64), np.array([c for _, c in chosen], np.float64)


@given(st.lists(pixels, max_size=3), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_thresholds_and_kept_pixels_equal_the_exact_ones(
    chosen: list[list[tuple[int, float]]], proportion: float
) -> None:
    images = [arrays(image) for image in chosen]
    labels, confidences = arrays([pixel for image in chosen for pixel in image])
    exact = exact_thresholds(labels, confidences, proportion)
    histogram = histogram_of(images)
    tau = histogram.thresholds(proportion=proportion)
    assert tau.dtype == np.float32
    np.testing.assert_allclose(tau, exact, rtol=0, atol=0.51 / (LEVELS - 1))

    kept = apply_thresholds(labels, confidences, tau) != 255
    assert kept[confidences >= exact[labels]].all()
    assert not kept[confidences < exact[labels] - 1 / 4096].any()
    assert histogram.kept(tau).tolist() == np.bincount(labels[kept], minlength=C).tolist()


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4), (9, 4), (11, 6)])
def test_the_index_is_half_of_the_count_rounded_half_to_even(count: int, index: int) -> None:
    values = np.arange(count) / 20
    histogram = histogram_of([(np.zeros(count, int), np.random.default_rng(0).permutation(values))])
    assert histogram.thresholds()[0] == pytest.approx(values[index], abs=1e-5)


def test_absent_classes_have_threshold_zero() -> None:
    assert ConfidenceHistogram(C).thresholds().tolist() == [0, 0, 0]
    histogram = histogram_of([(np.array([1]), np.array([0.7]))])
    assert histogram.thresholds().tolist() == [0, pytest.approx(0.7, abs=1e-5), 0]


def test_ties_at_the_threshold_are_kept() -> None:
    label = np.zeros(6, int)
    values = np.array([0.25, 0.625, 0.625, 0.625, 0.625, 0.75])
    tau = histogram_of([(label, values)]).thresholds()
    assert apply_thresholds(label, values, tau).tolist() == [255, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_cap_keeps_what_reaches_it(dtype: npt.DTypeLike) -> None:
    label = np.zeros(5, int)
    values = np.array([0.85, 0.9, 0.95, 0.96, 1.0], dtype)
    tau = histogram_of([(label, values)]).thresholds(cap=float(values[1]))
    assert tau[0] == np.float32(values[1])
    assert apply_thresholds(label, values, tau).tolist() == [255, 0, 0, 0, 0]


def test_the_default_cap_is_nine_tenths() -> None:
    histogram = histogram_of([(np.array([0, 0, 1]), np.array([0.99, 0.98, 0.3]))])
    assert histogram.thresholds()[0] == np.float32(0.9)
    assert histogram.thresholds(cap=1.0)[0] == pytest.approx(0.99, abs=1e-5)


@pytest.mark.parametrize("setting", [{"cap": 1.1}, {"proportion": -0.1}, {"cap": float("nan")}])
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ConfidenceHistogram(C).thresholds(**setting)


def test_every_level_survives_the_way_back() -> None:
    levels = np.arange(LEVELS, dtype=np.uint16)
    assert np.array_equal(quantize(dequantize(levels)), levels)
    assert quantize(levels) is levels


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
@settings(max_examples=100, deadline=None)
def test_quantize_is_monotone_and_near(values: list[float]) -> None:
    ordered = np.sort(np.array(values))
    levels = quantize(ordered).astype(np.int64)
    assert (np.diff(levels) >= 0).all()
    assert np.abs(levels - ordered * (LEVELS - 1)).max() <= 0.51


def test_overshoot_is_clipped_and_the_impossible_refused() -> None:
    assert quantize(np.array([-0.0005, 1.0005])).tolist() == [0, LEVELS - 1]
    for bad in ([0.5, float("nan")], [1.5], [-3.0], [float("inf")]):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            quantize(np.array(bad))


def test_label_and_confidence_must_fit() -> None:
    histogram = ConfidenceHistogram(C)
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(4,\)"):
        histogram.update(np.zeros((2, 2), int), np.zeros(4))
    for stranger in (C, -1, 255):
        with pytest.raises(ValueError, match=r"outside the classes 0\.\.2"):
            histogram.update(np.array([stranger]), np.array([0.5]))
    assert histogram.counts.sum() == 0
    with pytest.raises(ValueError, match=r"1\.\.255"):
        ConfidenceHistogram(256)


def test_cache_gives_back_what_it_took_and_leaves_nothing(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path / "out")
    images = {name: (np.full((2, 3), i, np.uint8), np.full((2, 3), 1000 * i, np.uint16)) for i, name in
              enumerate(["b/2.png", "a/1.png"])}  # fmt: skip
    for name, (label, level) in images.items():
        cache.append(name, label, level)
    assert len(cache) == 2
    for _ in range(2):  # it can be read more than once
        assert [name for name, *_ in cache] == ["b/2.png", "a/1.png"]
        for name, label, level in cache:
            assert np.array_equal(label, images[name][0])
            assert np.array_equal(level, images[name][1])
            assert (label.dtype, level.dtype) == (np.uint8, np.uint16)
    cache.close()
    assert list((tmp_path / "out").iterdir()) == []


def random_probabilities(seed: int, height: int = 9, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(C, height, width, generator=generator), dim=0)


def test_labeler_from_probabilities_to_labels(tmp_path: Path) -> None:
    images = {f"city/{i}.png": random_probabilities(i, height=5 + i) for i in range(4)}
    label = {name: p.argmax(0).numpy() for name, p in images.items()}
    top = {name: p.amax(0).double().numpy() for name, p in images.items()}
    labels, confidences = (np.concatenate([x.ravel() for x in d.values()]) for d in (label, top))
    exact = exact_thresholds(labels, confidences)
    with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
        for name, probabilities in images.items():
            labeler.add(name, probabilities)
        report = labeler.report()
        result = dict(labeler.labels())
    assert list(result) == list(images)
    for name, pseudo in result.items():
        assert pseudo.dtype == np.uint8
        naive = np.where(top[name] < exact[label[name]], 255, label[name])
        clear = np.abs(top[name] - exact[label[name]]) > 1 / 4096
        assert np.array_equal(pseudo[clear], naive[clear])
        assert (pseudo != 255)[naive != 255].all()
    everything = np.concatenate([pseudo.ravel() for pseudo in result.values()])
    assert report.kept.tolist() == np.bincount(everything[everything != 255], minlength=C).tolist()
    assert report.predicted.sum() == everything.size
    assert list(tmp_path.iterdir()) == []


def test_labeler_upsamples_to_a_size(tmp_path: Path) -> None:
    """As it would take the probabilities upsampled beforehand."""
    images = [random_probabilities(seed) for seed in range(3)]
    results = []
    for way in ("beforehand", "here"):
        with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
            for index, image in enumerate(images):
                if way == "here":
                    labeler.add(f"{index}.png", image, (33, 50))
                else:
                    labeler.add(f"{index}.png", upsample(image, (33, 50)))
            results.append((labeler.thresholds(), np.stack([label for _, label in labeler.labels()])))
    (first_tau, first), (second_tau, second) = results
    np.testing.assert_allclose(first_tau, second_tau, rtol=0, atol=1.1 / (LEVELS - 1))
    assert first.shape == (3, 33, 50)
    assert (first != second).mean() < 1e-3


def test_images_of_different_sizes_share_a_cache(tmp_path: Path) -> None:
    with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
        for seed, size in enumerate([(4, 6), (5, 3)]):
            labeler.add(str(seed), random_probabilities(seed), size)
        assert list(tmp_path.iterdir()) == [], "a process that is killed leaves nothing"
        assert [label.shape for _, label in labeler.labels()] == [(4, 6), (5, 3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_labeler_takes_every_floating_type(tmp_path: Path, dtype: torch.dtype) -> None:
    with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
        labeler.add("a.png", random_probabilities(0).to(dtype))
        assert labeler.report().predicted.sum() == 63


def test_labeler_refuses_what_is_no_prediction(tmp_path: Path) -> None:
    with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
        labeler.add("a/1.png", random_probabilities(0))
        with pytest.raises(ValueError, match=r"2.png: .*logits"):
            labeler.add("2.png", 9 * random_probabilities(0))
        with pytest.raises(ValueError, match=r"3.png: .*\(4, 2, 2\)"):
            labeler.add("3.png", torch.zeros(4, 2, 2))
        assert [name for name, _ in labeler.labels()] == ["a/1.png"]


def test_labeler_removes_its_cache_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
            labeler.add("a.png", random_probabilities(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
            for index in range(count):
                labeler.add(f"{index}.png", probabilities)
            for _ in labeler.labels():
                pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    probabilities = random_probabilities(0, 256, 512)
    peak(1)  # imports and caches
    one_image = 3 * 256 * 512
    assert peak(12) - peak(2) < one_image


def test_report_as_dict_and_table(tmp_path: Path) -> None:
    with PseudoLabeler(C, cache_folder=tmp_path) as labeler:
        top = torch.tensor([[0.5, 0.75, 1.0, 0.625]])
        rest = 1 - top
        labeler.add("a.png", torch.stack([top, rest, torch.zeros_like(top)]).double())
        report = labeler.report()
    names = ("road", "sidewalk", "sky")
    data = json.loads(json.dumps(report.to_dict(names), allow_nan=False))
    absent = {"threshold": 0.0, "predicted": 0, "kept": 0, "coverage": None}
    assert data["classes"]["sidewalk"] == data["classes"]["sky"] == absent
    assert data["classes"]["road"]["threshold"] == pytest.approx(0.75, abs=1e-5)
    assert data["total"] == {"predicted": 4, "kept": 2, "coverage": 50.0}
    assert report.format_table(names).splitlines() == [
        "class     threshold       predicted            kept  kept %",
        "road         0.7500               4               2   50.00",
        "sidewalk     0.0000               0               0       -",
        "sky          0.0000               0               0       -",
        "all                               4               2   50.00",
    ]
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        report.to_dict(names[:2])
