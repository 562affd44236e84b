"""Distances, the principal plane, changed confusions: against naive loops, and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.diagnostics import (
    Divergence,
    RegionSet,
    changed_pairs,
    cosines,
    coverage,
    distances,
    principal_plane,
    row_percent,
)

CLASSES = 4


def regions(seed: int, *, categories: tuple[int, ...] = (0, 1, 2, 2, 1, 0), channels: int = 5) -> RegionSet:
    """Random regions of the given classes; the last one is no whole region."""
    rng = np.random.default_rng(seed)
    count = len(categories)
    return RegionSet(
        vectors=rng.normal(size=(count, channels)).astype(np.float32),
        category=np.array(categories, dtype=np.int64),
        area=rng.integers(1, 9, count),
        whole=np.arange(count) < count - 1,
    )


def naive_centroid(given: RegionSet, category: int) -> np.ndarray | None:
    """The mean over pixels: every region's vector as often as it has pixels."""
    pixels = [
        vector
        for vector, own, area in zip(given.vectors, given.category, given.area, strict=True)
        for _ in range(area)
        if own == category
    ]
    return np.mean(pixels, axis=0) if pixels else None


# ---- distances ----


def test_divergence_equals_a_naive_loop() -> None:
    source, target = regions(0), regions(1, categories=(0, 1, 1, 2, 3, 0))
    found = Divergence.between(source, target, CLASSES)
    for row in range(CLASSES):
        for column in range(CLASSES):
            left, right = naive_centroid(source, row), naive_centroid(target, column)
            if left is None or right is None:
                assert math.isnan(found.distance[row, column])
                assert math.isnan(found.cosine[row, column])
                continue
            assert found.distance[row, column] == pytest.approx(sum(abs(left - right)) / len(left))
            expected = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
            assert found.cosine[row, column] == pytest.approx(expected, abs=1e-6)


def test_within_a_domain_it_is_the_domain_against_itself() -> None:
    source, target = regions(0), regions(1, categories=(0, 1, 1, 2, 3, 0))
    found = Divergence.between(source, target, CLASSES)
    for name, domain in (("source", source), ("target", target)):
        itself = Divergence.between(domain, domain, CLASSES)
        spread = {"source": found.spread_source, "target": found.spread_target}[name]
        np.testing.assert_array_equal(spread, domain.spread(domain.centroids(CLASSES)))
        np.testing.assert_array_equal(found.matrices[f"{name}_distance"], itself.distance)
        np.testing.assert_array_equal(found.matrices[f"{name}_cosine"], itself.cosine)


def test_spread_is_the_mean_over_whole_regions_of_a_class() -> None:
    source = regions(2)
    spread = source.spread(source.centroids(CLASSES))
    centroid = naive_centroid(source, 0)
    assert centroid is not None
    assert spread[0] == pytest.approx(np.abs(source.vectors[0] - centroid).mean())  # the last one, of class 0, is rest
    assert math.isnan(spread[3])


def test_the_summary_leaves_out_what_one_domain_lacks() -> None:
    source, target = regions(3), regions(4, categories=(0, 1, 3))
    found = Divergence.between(source, target, CLASSES)
    summary = found.summary()
    assert summary["intra"] == pytest.approx((found.distance[0, 0] + found.distance[1, 1]) / 2)
    pairs = [found.distance[i, j] for i in (0, 1, 2) for j in (0, 1, 3) if i != j]
    assert summary["inter"] == pytest.approx(np.mean(pairs))
    assert summary["ratio"] == pytest.approx(summary["inter"] / summary["intra"])


def test_a_domain_against_itself_has_no_gap() -> None:
    source = regions(5)
    found = Divergence.between(source, source, CLASSES)
    np.testing.assert_allclose(found.gap[:3], 0)
    np.testing.assert_allclose(np.diagonal(found.cosine)[:3], 1, rtol=1e-6)
    assert math.isnan(found.summary()["ratio"])  # nothing to divide by
    np.testing.assert_allclose(found.distance, found.distance.T)


@given(st.floats(0.1, 50))
@settings(max_examples=20, deadline=None)
def test_ratio_and_cosines_do_not_see_the_scale_of_the_features(scale: float) -> None:
    source, target = regions(6), regions(7)
    stretched = [RegionSet(**{**vars(one), "vectors": one.vectors * np.float32(scale)}) for one in (source, target)]
    pairs = ((source, target), (stretched[0], stretched[1]))
    plain, scaled = (Divergence.between(left, right, CLASSES).summary() for left, right in pairs)
    for key in ("ratio", "intra_cosine", "inter_cosine", "inter_cosine_target"):
        assert scaled[key] == pytest.approx(plain[key], rel=1e-3, abs=1e-5)
    assert scaled["intra"] == pytest.approx(scale * plain["intra"], rel=1e-3)


def test_a_zero_vector_has_cosine_0() -> None:
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert cosines(zero, one)[0, 0] == 0
    assert distances(zero, one)[0, 0] == 1


def test_the_json_holds_every_number_and_none_for_nan() -> None:
    content = Divergence.between(regions(8), regions(9), CLASSES).to_dict()
    assert len(content["distance"]) == CLASSES
    assert content["gap"][3] is None
    assert {"ratio", "intra", "inter"} <= content["summary"].keys()


# ---- the plane ----


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_plane_keeps_what_it_explains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sets = [rng.normal(size=(12, 6)).astype(np.float32) + 3, rng.normal(size=(9, 6)).astype(np.float32)]
    plane = principal_plane(sets)
    centred = np.concatenate([part - part.mean(axis=0) for part in sets])
    kept = np.concatenate(plane.points)
    assert [len(part) for part in plane.points] == [12, 9]
    assert (kept**2).sum() / (centred**2).sum() == pytest.approx(plane.explained.sum(), rel=1e-4)
    assert plane.explained[0] >= plane.explained[1]
    for part in plane.points:
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-5)
    before = np.linalg.norm(centred[:, None] - centred[None], axis=2)
    after = np.linalg.norm(kept[:, None] - kept[None], axis=2)
    assert (after <= before + 1e-4).all()  # a projection brings nothing further apart


def test_the_plane_does_not_see_where_a_network_puts_its_mean() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    plane, moved = principal_plane([first, second]), principal_plane([first + 5, second - 2])
    for left, right in zip(plane.points, moved.points, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1)])
def test_the_plane_of_too_little_is_flat(shape: tuple[int, int]) -> None:
    plane = principal_plane([np.ones(shape, np.float32) * np.arange(shape[0], dtype=np.float32)[:, None]])
    assert plane.points[0].shape == (shape[0], 2)
    assert (plane.points[0][:, 1] == 0).all()


# ---- confusions ----


def test_changed_pairs_are_the_largest_changes_of_shares() -> None:
    before = np.array([[50, 50, 0, 0], [10, 80, 10, 0], [0, 0, 0, 0]])
    after = np.array([[180, 10, 10, 0], [30, 60, 0, 10], [5, 5, 0, 0]])
    improved, worsened = changed_pairs(before, after)
    assert [(pair.truth, pair.predicted) for pair in improved] == [(0, 1), (1, 2)]
    assert improved[0].change == pytest.approx(5 - 50)
    assert [(pair.truth, pair.predicted, pair.change) for pair in worsened] == [(1, 0, 20.0), (0, 2, 5.0)]


def test_equal_matrices_have_no_changed_pairs() -> None:
    counts = np.array([[3, 1, 0], [2, 2, 1]])
    assert changed_pairs(counts, counts) == ([], [])


@given(st.integers(0, 100), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_changed_pairs_equal_a_naive_search(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 30, (2, 3, 4))
    old, new = row_percent(before), row_percent(after)
    changes = sorted(new[i, j] - old[i, j] for i in range(3) for j in range(3) if i != j)
    improved, worsened = changed_pairs(before, after, most=most)
    assert [pair.change for pair in improved] == pytest.approx([value for value in changes[:most] if value < 0])
    assert [pair.change for pair in worsened] == pytest.approx([value for value in changes[::-1][:most] if value > 0])


def test_coverage_counts_any_answer() -> None:
    covered = coverage(np.array([[6, 2, 0, 2], [0, 0, 0, 5], [0, 0, 0, 0]]))
    assert covered[:2].tolist() == [80.0, 0.0]
    assert math.isnan(covered[2])
