"""Matching losses in every mode of AIM against the naive loops."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from model.aim import AdaptiveWeights, fixed_weights, instance_weights, matching
from model.bafft import BAFFT, Alignment
from tests.scenes import NUM_CLASSES, STUFF, THINGS, World, assert_same, draw, gradient, losses_of, seeded

FIXED = (9.0, 0.5, 9.0, 9.0, 0.0, 2.5)  # one per class id; those of stuff and of no kind must not matter


@seeded
def test_plain_matching(seed):
    batch, steps, slots, instances = draw(seed, 3, 4, 4, 3)
    world = World(seed, slots_stuff=slots, slots_thing=slots, instances=instances).observe(steps, batch)
    target = world.target(batch)
    losses = losses_of(world, target)
    assert_same(losses["stuff"], world.reference.matching_stuff(target.features, target.prediction), target.features)
    slow = world.reference.matching_instances(target.features, target.prediction)
    assert_same(losses["instances"], slow, target.features)


@seeded
def test_released_weights_square_the_distance(seed):
    batch, steps = draw(seed, 3, 4)
    world = World(seed, aim="released").observe(steps, batch)
    target = world.target(batch)
    losses = losses_of(world, target)
    slow = world.reference.matching_stuff(target.features, target.prediction, power=2)
    assert_same(losses["stuff"], slow, target.features)
    slow = world.reference.matching_instances(target.features, target.prediction, power=2)
    assert_same(losses["instances"], slow, target.features)


@seeded
def test_fixed_weights_scale_things_by_class_id(seed):
    batch, steps = draw(seed, 3, 4)
    world = World(seed, aim="fixed", aim_weights=FIXED).observe(steps)
    target = world.target(batch)
    losses = losses_of(world, target)
    assert_same(losses["stuff"], world.reference.matching_stuff(target.features, target.prediction), target.features)
    slow = world.reference.matching_instances(target.features, target.prediction, weights=dict(enumerate(FIXED)))
    assert_same(losses["instances"], slow, target.features)


@seeded
def test_adaptive_weights_follow_the_distances(seed):
    """Over several target batches while the banks still fill, so that classes are seen one after the other."""
    batch, slots = draw(seed, 3, 8)
    world = World(seed, aim="adaptive", slots_thing=slots)
    for _ in range(4):
        world.observe(1, 1)
        target = world.target(batch, world.some_categories())
        described = world.method.describe_target(target.output, target.pseudo)
        world.method.observe_target(described)
        world.reference.observe_target(target.features, target.prediction)
        assert world.method.adaptive.seen.nonzero().flatten().tolist() == sorted(world.reference.zeta)
        zeta = {k: world.method.adaptive.zeta[k].item() for k in world.reference.zeta}
        assert zeta == pytest.approx(world.reference.zeta, rel=1e-5)

        eta = world.reference.eta()
        loss = world.method.alignment_losses(described)["instances"]
        slow = world.reference.matching_instances(target.features, target.prediction, weights=eta)
        assert_same(loss, slow, target.features)


def updated(weights: AdaptiveWeights, distances: dict[int, list[float]]) -> AdaptiveWeights:
    """`weights` after one image with the given instance distances per class."""
    rows = [(value, k, len(values)) for k, values in distances.items() for value in values]
    distance, category, siblings = (torch.tensor(column) for column in zip(*rows, strict=True))
    weights.update(distance, category, siblings, torch.ones(len(rows), dtype=torch.bool))
    return weights


def test_zeta_starts_at_the_first_distance_and_moves_by_a_hundredth():
    weights = AdaptiveWeights(num_classes=3)
    updated(weights, {1: [2.0, 4.0]})
    assert weights.zeta.tolist() == [0, 3, 0]
    updated(weights, {1: [5.0], 2: [1.0]})
    torch.testing.assert_close(weights.zeta, torch.tensor([0, 0.99 * 3 + 0.01 * 5, 1.0]))
    updated(weights, {2: [1.0]})
    torch.testing.assert_close(weights.zeta[1], torch.tensor(0.99 * 3 + 0.01 * 5))  # an absent class stays


def test_eta_is_one_on_average_over_the_classes_seen_and_one_for_the_others():
    weights = AdaptiveWeights(num_classes=5)
    assert weights().tolist() == [1] * 5
    updated(weights, {0: [1.0], 2: [2.0], 3: [6.0]})
    torch.testing.assert_close(weights(), torch.tensor([1 / 3, 1, 2 / 3, 2, 1]))
    assert fmean(weights()[[0, 2, 3]].tolist()) == pytest.approx(1)


def test_eta_without_any_distance_is_one():
    weights = updated(AdaptiveWeights(num_classes=3), {0: [0.0], 1: [0.0, 0.0]})
    assert weights.seen.tolist() == [True, True, False]
    assert weights().tolist() == [1, 1, 1]


def test_images_count_alike_whatever_their_instances():
    weights = AdaptiveWeights(num_classes=1)
    distance = torch.tensor([1.0, 1.0, 1.0, 5.0])
    weights.update(distance, torch.zeros(4, dtype=torch.int64), torch.tensor([3, 3, 3, 1]), torch.ones(4).bool())
    torch.testing.assert_close(weights.zeta, torch.tensor([3.0]))


def test_an_invalid_region_moves_nothing():
    weights = AdaptiveWeights(num_classes=2)
    valid = torch.tensor([False, True])
    weights.update(torch.tensor([4.0, 2.0]), torch.tensor([0, 1]), torch.tensor([1, 1]), valid)
    assert weights.zeta.tolist() == [0, 2]
    assert weights.seen.tolist() == [False, True]


def test_adaptive_weights_are_used_after_their_update_and_pass_no_gradient():
    world = World(0, aim="adaptive").observe(4)
    target = world.target()
    described = world.method.describe_target(target.output, target.pseudo)
    before = world.method.alignment_losses(described)["instances"]
    world.method.observe_target(described)
    after = world.method.alignment_losses(described)["instances"]
    assert before.item() != after.item()

    regions, rows = described.regions, described.regions.instances
    eta = world.method.adaptive()
    assert not eta.requires_grad
    frozen = (eta[regions.category[rows]] * described.distance[rows] / regions.siblings[rows]).sum() / 2
    torch.testing.assert_close(gradient(after, target.features), gradient(frozen, target.features))


def test_adaptive_weights_survive_the_state_dict():
    weights = updated(AdaptiveWeights(num_classes=4), {1: [2.0], 3: [5.0]})
    restored = AdaptiveWeights(num_classes=4)
    restored.load_state_dict(weights.state_dict())
    for each in (weights, restored):
        updated(each, {1: [1.0], 0: [3.0]})
    assert torch.equal(restored.zeta, weights.zeta)
    assert torch.equal(restored(), weights())


@pytest.mark.parametrize("values", [(), (1.0,) * (NUM_CLASSES - 1), (1.0,) * (NUM_CLASSES + 1)])
def test_wrong_number_of_fixed_weights(values):
    network = World(0).method.network
    with pytest.raises(ValueError, match=f"{NUM_CLASSES}, not {len(values)}"):
        BAFFT(
            network=network,
            discriminator=torch.nn.Identity(),
            stuff=STUFF,
            things=THINGS,
            alignment=Alignment(aim="fixed", aim_weights=values),
        )


def test_matching_sums_over_regions_and_averages_over_images():
    distance = torch.tensor([1.0, 2.0, 4.0])
    loss = matching(distance, weight=torch.tensor([1.0, 3.0, 0.5]), siblings=torch.tensor([1, 2, 2]), num_images=2)
    assert loss.item() == (1 + 3 + 1) / 2


def test_instance_weights_by_mode():
    distance, category = torch.tensor([0.5, 0.25]).requires_grad_(), torch.tensor([2, 0])
    per_class = fixed_weights([7.0, 8.0, 9.0], num_classes=3)
    weights = {
        mode: instance_weights(mode, distance, category, per_class=per_class)
        for mode in ("none", "fixed", "adaptive", "released")
    }
    assert weights["none"].tolist() == [1, 1]
    assert weights["fixed"].tolist() == weights["adaptive"].tolist() == [9, 7]
    assert weights["released"] is distance  # not detached: the gradient of d^2 is 2 d
