"""Separation and aggregation, the paper's and the released, against the naive loops."""

from __future__ import annotations

import pytest
import torch

from benchmarks import naive
from model.isia import aggregation, class_centroids, separation, separation_released, similarity
from model.regions import partition, pool
from tests.scenes import (
    NUM_CLASSES,
    STUFF,
    THINGS,
    World,
    assert_nothing,
    assert_same,
    draw,
    gradient,
    losses_of,
    seeded,
)


@seeded
def test_released_separation(seed):
    batch, steps, instances = draw(seed, 3, 4, 3)
    world = World(seed, isia="released", instances=instances, slots_stuff=4).observe(steps)
    target = world.target(batch, world.some_categories())
    losses = losses_of(world, target)
    slow = world.reference.separation_released(target.features, target.prediction)
    assert_same(losses["separation"], slow, target.features)
    assert_nothing(losses["aggregation"], target.features)


@seeded
def test_paper_separation_and_aggregation(seed):
    batch, steps, instances = draw(seed, 3, 4, 3)
    world = World(seed, isia="paper", instances=instances, slots_stuff=4).observe(steps)
    target = world.target(batch, world.some_categories())
    losses = losses_of(world, target)
    for name, slow in (("separation", world.reference.separation), ("aggregation", world.reference.aggregation)):
        assert_same(losses[name], slow(target.features, target.prediction), target.features)


def test_the_released_factor_is_literal():
    """One stuff region and two instances, orthogonal and opposite: (500/2048) (1/2 + 0) / 2, whatever K and D are."""
    labels = torch.tensor([[[0, 1, 255, 1]]])
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [9.0, 9.0], [-5.0, 0.0]]).T[None, :, None]
    regions = partition(labels, stuff=(0,), things=(1,))
    vectors = pool(features, regions)
    valid = {"stuff_valid": torch.ones(1).bool(), "instance_valid": torch.ones(2).bool()}
    loss = separation_released(vectors, regions, **valid, num_images=1)
    torch.testing.assert_close(loss.item(), 500 / 2048 * 0.25)


def test_released_separation_stays_within_an_image():
    labels = torch.tensor([[[0, 0]], [[1, 1]]])  # stuff in one image, a thing in the other
    features = torch.ones(2, 4, 1, 2, requires_grad=True)
    regions = partition(labels, stuff=(0,), things=(1,))
    valid = torch.ones(1, dtype=torch.bool)
    vectors = pool(features, regions)
    loss = separation_released(vectors, regions, stuff_valid=valid, instance_valid=valid, num_images=2)
    assert_nothing(loss, features)


def test_released_separation_moves_both_sides():
    world = World(2, isia="released").observe(4)
    target = world.target(1)
    found = gradient(losses_of(world, target)["separation"], target.features)
    moved = found.abs().sum(dim=1) > 0
    for kind in (STUFF, THINGS):
        assert moved[torch.isin(target.prediction, torch.tensor(kind))].any()


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_centroids_cover_the_pixels_beyond_the_largest_instances(limit):
    world = World(0)
    target = world.target(3, (0, 1, 5))
    regions = partition(target.prediction, stuff=STUFF, things=THINGS, limit=limit)
    found = class_centroids(pool(target.features, regions), regions, num_images=3, num_classes=NUM_CLASSES)
    assert found.present.tolist() == [[True, True, False, False, False, True]] * 3
    for image, label_map in enumerate(target.prediction.tolist()):
        for k in (0, 1, 5):
            slow = naive.gap(target.features[image], naive.pixels_of(label_map, k))
            torch.testing.assert_close(found.vectors[image, k], slow.float())
    assert limit == 10 or len(regions.area) > regions.instances.stop  # there was a rest to forget


def test_means_do_not_depend_on_the_number_of_classes():
    """Every class alike: more of them change neither term."""
    vector = torch.tensor([1.0, 2.0, -1.0])
    for count in (2, 5):
        source, target = vector.expand(count, 3), (vector + 0.5).expand(1, count, 3)
        valid = torch.ones(1, count, dtype=torch.bool)
        expected = naive.similarity(vector, vector + 0.5)
        torch.testing.assert_close(separation(source, target, valid)[()], expected)
        torch.testing.assert_close(aggregation(source, target, valid), torch.tensor(0.5))


def test_separation_is_between_ordered_pairs_of_source_and_target():
    source = torch.tensor([[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]])
    target = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [7.0, 7.0]]])
    valid = torch.tensor([[True, True, False]])
    # source 0 against target 1: cos -1; source 1 against target 0: cos 0; a class with itself does not count.
    torch.testing.assert_close(separation(source, target, valid), torch.tensor((0 + 0.5) / 2))


def test_one_valid_class_has_no_pair():
    source, valid = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3).bool()
    target = source.expand(2, 3, 4).clone().requires_grad_()
    valid[0, 1] = True
    assert_nothing(separation(source, target, valid), target)


def test_an_image_without_a_valid_class_counts_as_zero():
    source, target = torch.zeros(2, 3), torch.ones(2, 2, 3)
    valid = torch.tensor([[True, True], [False, False]])
    torch.testing.assert_close(aggregation(source, target, valid), torch.tensor(0.5))


def test_similarity_is_a_cosine_from_zero_to_one():
    axes = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-4.0, 0.0], [0.0, 0.0]])
    expected = [[1, 0.5, 0, 0.5], [0.5, 1, 0.5, 0.5], [0, 0.5, 1, 0.5], [0.5, 0.5, 0.5, 0.5]]
    torch.testing.assert_close(similarity(axes, axes), torch.tensor(expected))


@pytest.mark.parametrize("isia", ["paper", "released"])
def test_dead_features_pass_no_gradient(isia):
    """A class whose features are all zero has no direction; 1 / |0| would be a gradient of 1e12."""
    world = World(0, isia=isia).observe(5)
    target = world.target(1)
    dead = (target.prediction == 0)[:, None]
    world.method.network.get_buffer("means")[0] = 0  # the pooled classifier takes a zero vector for class 0
    features = target.features.detach().masked_fill(dead, 0.0).requires_grad_()
    loss = losses_of(world, target._replace(features=features))["separation"]
    found = gradient(loss, features)
    assert loss.item() > 0
    assert found.any()
    assert not found[dead.expand_as(found)].any()
