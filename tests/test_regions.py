"""Regions and pooling against the naive definition: components, sort, mean."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.naive import components
from model.regions import partition, partition_all, pool, to_grid

STUFF, THINGS = (0, 1), (2, 3)


def naive_regions(labels: np.ndarray, limit: int) -> dict[str, list[tuple[int, int, frozenset]]]:
    """kind -> [(image, category, pixels)], in the order that the spec gives."""
    found: dict[str, list[tuple[int, int, frozenset]]] = {"stuff": [], "instances": [], "rest": []}
    for image, grid in enumerate(labels):
        for category in STUFF:
            pixels = frozenset(zip(*(axis.tolist() for axis in np.nonzero(grid == category)), strict=True))
            found["stuff"] += [(image, category, pixels)] if pixels else []
        for category in THINGS:
            largest_first = components(grid.tolist(), category)
            found["instances"] += [(image, category, frozenset(component)) for component in largest_first[:limit]]
            rest = frozenset(pixel for component in largest_first[limit:] for pixel in component)
            found["rest"] += [(image, category, rest)] if rest else []
    return found


label_maps = st.tuples(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 3)
)


@given(label_maps)
@settings(max_examples=150, deadline=None)
def test_partition_is_the_naive_one(drawn):
    batch, height, width, seed, limit = drawn
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 2, 3, 3, 4, 255], (batch, height, width))  # 4 is in neither list
    regions = partition(torch.from_numpy(labels), stuff=STUFF, things=THINGS, limit=limit)
    index = regions.index.numpy()

    naive = naive_regions(labels, limit)
    expected = [*naive["stuff"], *naive["instances"], *naive["rest"]]
    assert regions.num_stuff == len(naive["stuff"])
    assert regions.num_instances == len(naive["instances"])
    assert regions.area.tolist() == [len(pixels) for _, _, pixels in expected]
    for row, (image, category, pixels) in enumerate(expected):
        assert (regions.image[row], regions.category[row]) == (image, category)
        assert {(y, x) for y, x in zip(*np.nonzero(index[image] == row), strict=True)} == pixels
        assert (index == row).sum() == len(pixels)
    assert ((index == len(expected)) == ~np.isin(labels, STUFF + THINGS)).all()


@given(st.lists(label_maps, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_maps_cut_together_are_maps_cut_alone(several):
    """Whatever their sizes."""
    maps = [
        torch.from_numpy(np.random.default_rng(seed).choice([0, 2, 3, 255], (batch, height, width)))
        for batch, height, width, seed, _ in several
    ]
    together = partition_all(maps, stuff=STUFF, things=THINGS, limit=2)
    for regions, labels in zip(together, maps, strict=True):
        alone = partition(labels, stuff=STUFF, things=THINGS, limit=2)
        assert all(torch.equal(vars(regions)[name], vars(alone)[name]) for name in ("index", "area", "siblings"))
        assert regions.instances == alone.instances


@given(label_maps)
@settings(max_examples=50, deadline=None)
def test_the_crowd_is_the_most_regions_of_one_kind_and_category(drawn):
    batch, height, width, seed, limit = drawn
    labels = np.random.default_rng(seed).choice([0, 1, 2, 2, 3, 255], (batch, height, width))
    regions = partition(torch.from_numpy(labels), stuff=STUFF, things=THINGS, limit=limit)
    naive = naive_regions(labels, limit)
    crowds = [[category for _, category, _ in found].count(k) for found in naive.values() for k in STUFF + THINGS]
    assert regions.crowd == max(crowds)


def test_siblings_count_the_instances_of_a_class_in_an_image():
    labels = torch.tensor([[[2, 0, 2, 0, 2], [0, 0, 0, 0, 0], [3, 3, 0, 255, 255]]])
    regions = partition(labels, stuff=STUFF, things=THINGS, limit=2)
    assert regions.category.tolist() == [0, 2, 2, 3, 2]
    assert regions.siblings.tolist() == [1, 2, 2, 1, 1]


def test_equal_components_rank_in_raster_order():
    labels = torch.tensor([[[0, 0, 0, 2], [2, 0, 0, 0], [0, 0, 0, 2]]])
    regions = partition(labels, stuff=STUFF, things=THINGS, limit=2)
    assert regions.index[0, 0, 3] == 1
    assert regions.index[0, 1, 0] == 2
    assert regions.index[0, 2, 3] == 3  # the last of the three is the rest


@given(label_maps)
@settings(max_examples=50, deadline=None)
def test_pool_and_its_gradient_are_the_masked_mean(drawn):
    batch, height, width, seed, limit = drawn
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (batch, height, width), generator=generator)
    features = torch.randn(batch, 6, height, width, generator=generator, dtype=torch.float64).requires_grad_()
    regions = partition(labels, stuff=STUFF, things=THINGS, limit=limit)
    rows = range(len(regions.area))
    naive = [
        features[regions.image[row]][:, regions.index[regions.image[row]] == row].mean(dim=1).float() for row in rows
    ]
    pooled = pool(features, regions)
    assert pooled.shape == (len(rows), 6)
    if rows:
        torch.testing.assert_close(pooled, torch.stack(naive))
        weight = torch.randn(len(rows), 6, generator=generator)
        fast = torch.autograd.grad((weight * pooled).sum(), features, retain_graph=True)
        slow = torch.autograd.grad((weight * torch.stack(naive)).sum(), features)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_pooling_does_not_depend_on_the_memory_format():
    labels = torch.randint(0, 5, (2, 7, 9), generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(1))
    regions = partition(labels, stuff=STUFF, things=THINGS)
    assert torch.equal(pool(features, regions), pool(features.contiguous(memory_format=torch.channels_last), regions))


def test_nothing_to_pool():
    features = torch.randn(1, 4, 3, 3, requires_grad=True)
    regions = partition(torch.full((1, 3, 3), 255), stuff=STUFF, things=THINGS)
    pooled = pool(features, regions)
    assert pooled.shape == (0, 4)
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert not gradient.any()


def test_half_precision_features_pool_in_float32():
    features = torch.full((1, 1, 64, 64), 1.001).half()
    regions = partition(torch.zeros(1, 64, 64, dtype=torch.long), stuff=STUFF, things=THINGS)
    pooled = pool(features, regions)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.item(), features[0, 0, 0, 0].item())


def test_to_grid_floors():
    labels = torch.arange(7 * 10).view(1, 7, 10) % 251
    grid = to_grid(labels, (3, 4))
    expected = [[labels[0, y * 7 // 3, x * 10 // 4] for x in range(4)] for y in range(3)]
    assert grid[0].tolist() == expected
