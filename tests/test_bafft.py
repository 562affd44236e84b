"""The method as a whole: what it observes, what it merges, its other losses, and what must hold of all of them."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import naive
from model.aim import MODES as AIM_MODES
from model.bafft import ALIGNMENT_LOSSES, BAFFT, Alignment, needs_alignment
from model.deeplab import SegOutput
from model.isia import MODES as ISIA_MODES
from tests.scenes import (
    DIM,
    GRID,
    NEITHER,
    NUM_CLASSES,
    SIZE,
    STUFF,
    THINGS,
    Target,
    World,
    assert_nothing,
    assert_same,
    draw,
    gradient,
    logits_of,
    losses_of,
    seeded,
)

seeds, batches = st.integers(0, 2**32 - 1), st.integers(1, 3)
# Derandomised: where two prototypes or classes nearly tie, float32 may choose the other.
many = settings(max_examples=25, deadline=None, derandomize=True)
every_mode = pytest.mark.parametrize(("aim", "isia"), list(product(AIM_MODES, ISIA_MODES)))


def world_in(aim: str, isia: str, seed: int = 0, **alignment) -> World:
    return World(seed, aim=aim, isia=isia, aim_weights=(2.0,) * NUM_CLASSES if aim == "fixed" else (), **alignment)


def snapshot(method: BAFFT) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(method: BAFFT, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in method.state_dict().items() if not torch.equal(before[name], value)}


# -- what is observed --------------------------------------------------------------------------------------------------


@seeded
def test_source_banks(seed):
    """Order over the batch, filter by prediction and by the pooled classifier, nearest labels, rings that wrap."""
    batch, steps, slots, instances = draw(seed, 3, 4, 4, 4)
    world = World(seed, slots_stuff=slots, slots_thing=slots, instances=instances)
    for _ in range(steps):
        features, prediction, labels = world.source(batch)
        share = world.method.observe_source(SegOutput(features, logits_of(prediction)), labels)
        expected = world.reference.observe_source(features, prediction, labels)
        assert share.item() == pytest.approx(expected)
    for bank in (world.method.stuff_bank, world.method.thing_bank):
        for row, category in enumerate(bank.categories):
            inserts = world.reference.inserts[category]
            assert bank.inserted[row] == len(inserts)
            for turn in range(max(0, len(inserts) - slots), len(inserts)):
                torch.testing.assert_close(bank.prototypes[row, turn % slots], inserts[turn].float())


@seeded
def test_acceptance_is_told_by_class(seed):
    world = World(seed)
    verdicts: dict[int, list[bool]] = {category: [] for category in range(NUM_CLASSES)}
    insert = world.reference._insert

    def recorded(vector: Tensor, category: int) -> bool:
        verdicts[category].append(insert(vector, category))
        return verdicts[category][-1]

    world.reference._insert = recorded  # type: ignore[assignment, method-assign]
    assert world.method.acceptance.isnan().all()
    world.observe(1)
    expected = [sum(of) / len(of) if of else torch.nan for of in verdicts.values()]
    torch.testing.assert_close(world.method.acceptance, torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize(("predicted", "mean_of", "enters"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_a_source_region_enters_if_prediction_and_pooled_classifier_agree(predicted, mean_of, enters):
    world = World(0)
    features = torch.from_numpy(world.means[mean_of])[None, :, None, None].expand(1, DIM, *GRID)
    labels = torch.zeros(1, *SIZE, dtype=torch.int64)
    output = SegOutput(features, logits_of(torch.full((1, *GRID), predicted)))
    assert world.method.observe_source(output, labels).item() == enters
    inserted = dict(zip(STUFF, world.method.stuff_bank.inserted.tolist(), strict=True))
    assert inserted == {0: int(enters), 3: 0}
    assert not world.method.thing_bank.inserted.any()


def test_observing_takes_no_gradient():
    world = World(0)
    features, prediction, labels = world.source(2)
    features.requires_grad_()
    output = SegOutput(features, logits_of(prediction))
    assert not world.method.view_source(output, labels).features.requires_grad
    assert not world.method.observe_source(output, labels).requires_grad
    assert not any(value.requires_grad for value in world.method.state_dict().values())


@pytest.mark.parametrize("label", [255, NEITHER])
def test_nothing_to_observe(label):
    world = World(0)
    features, prediction, _ = world.source(2)
    before = snapshot(world.method)
    output = SegOutput(features, logits_of(prediction))
    share = world.method.observe_source(output, torch.full((2, *SIZE), label))
    assert share.item() == 0
    assert changed(world.method, before) == set()


# -- label map ---------------------------------------------------------------------------------------------------------


@seeded
def test_merged_label_map(seed):
    batch, steps = draw(seed, 3, 4)
    world = World(seed, label_map="merged", isia="paper").observe(steps)
    target = world.target(batch)
    merged = naive.merge(target.prediction, target.pseudo)
    losses, reference = losses_of(world, target), world.reference
    for name, slow in (
        ("stuff", reference.matching_stuff),
        ("instances", reference.matching_instances),
        ("separation", reference.separation),
        ("aggregation", reference.aggregation),
    ):
        assert_same(losses[name], slow(target.features, merged), target.features)


def test_without_pseudo_labels_merged_is_the_prediction():
    merged, plain = (World(1, label_map=name).observe(3) for name in ("merged", "prediction"))
    target = merged.target()
    ignored = target._replace(pseudo=torch.full((2, *SIZE), 255))
    # `prediction` looks at no pseudo label, whatever it says.
    for name, loss in losses_of(merged, ignored).items():
        assert torch.equal(loss, losses_of(plain, target)[name])


# -- AIM ---------------------------------------------------------------------------------------------------------------


def test_constant_weights_are_for_things_alone():
    plain, weighted = (world_in(aim, "none").observe(4) for aim in ("none", "fixed"))
    target = plain.target()
    expected, found = losses_of(plain, target), losses_of(weighted, target)
    assert expected["stuff"] > 0
    assert expected["instances"] > 0
    assert torch.equal(found["stuff"], expected["stuff"])
    torch.testing.assert_close(found["instances"], 2 * expected["instances"])


# -- adversary and segmentation ----------------------------------------------------------------------------------------


def test_adversarial_losses_are_binary_cross_entropies():
    method = World(0).method
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.rand(2, NUM_CLASSES, 6, 7, generator=generator).requires_grad_() for _ in range(2))
    on_source, on_target = method.discriminator(source), method.discriminator(target)

    adversarial = method.adversarial_loss(target)
    assert adversarial.item() == pytest.approx(naive.binary_cross_entropy(on_target, 0), rel=1e-5)
    assert gradient(adversarial, target).any()

    losses = method.discriminator_losses(source, target)
    assert losses["D_source"].item() == pytest.approx(0.5 * naive.binary_cross_entropy(on_source, 0), rel=1e-5)
    assert losses["D_target"].item() == pytest.approx(0.5 * naive.binary_cross_entropy(on_target, 1), rel=1e-5)
    torch.stack(list(losses.values())).sum().backward()
    assert source.grad is None
    assert target.grad is None
    assert all(parameter.grad is not None for parameter in method.discriminator.parameters())


def test_the_adversary_is_measured_in_float32():
    method = World(0).method
    method.discriminator = nn.Flatten()  # its logits are what it is given
    logits = torch.full((1, 1, 2, 2), 8.0, dtype=torch.float16)
    loss = method.adversarial_loss(logits)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive.binary_cross_entropy(logits, 0), rel=1e-6)


def log_probabilities_and_labels(seed: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_probabilities = torch.randn(batch, NUM_CLASSES, 5, 6, generator=generator).log_softmax(dim=1)
    labels = torch.randint(0, NUM_CLASSES, (batch, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = naive.IGNORE
    return log_probabilities.requires_grad_(), labels


@given(seeds, st.lists(st.integers(1, 2), min_size=1, max_size=4))
@many
def test_accumulated_segmentation_losses_add_up_to_that_of_the_batch(seed, parts):
    method = World(0).method
    log_probabilities, labels = log_probabilities_and_labels(seed, sum(parts))
    labels[0] = naive.IGNORE  # images weigh as much as they have labels, this one nothing
    pixels = (labels != naive.IGNORE).sum()
    pieces = zip(log_probabilities.split(parts), labels.split(parts), strict=True)
    total = torch.stack([method.segmentation_loss(*piece, pixels=pixels) for piece in pieces]).sum()
    slow = naive.cross_entropy(log_probabilities, labels)
    assert_same(total, slow, log_probabilities)
    assert_same(method.segmentation_loss(log_probabilities, labels, pixels=int(pixels)), slow, log_probabilities)


@pytest.mark.parametrize("pixels", [0, torch.tensor(0), 17])
def test_segmentation_without_a_label_is_nothing(pixels):
    log_probabilities, labels = log_probabilities_and_labels(0, 2)
    loss = World(0).method.segmentation_loss(log_probabilities, torch.full_like(labels, 255), pixels=pixels)
    assert_nothing(loss, log_probabilities)


# -- what must hold ----------------------------------------------------------------------------------------------------


def without_banks(world: World) -> Target:
    """Nothing was ever observed."""
    return world.target()


def with_banks_filled_but_not_full(world: World) -> Target:
    """Every ring holds as many vectors as it has slots, and one more would make it count."""
    for bank in (world.method.stuff_bank, world.method.thing_bank):
        rows = torch.tensor(bank.categories).repeat_interleave(bank.slots)
        bank.insert(torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(0)), rows)
        assert (bank.fill == 1).all()
    return world.target()


def without_regions(world: World) -> Target:
    """Every pixel is predicted to be of a class that is neither stuff nor thing: R = 0."""
    return world.observe(5).target(categories=(NEITHER,))


def with_other_classes_than_the_full_banks(world: World) -> Target:
    """Only class 1's bank is full, and class 1 does not occur."""
    world.method.thing_bank.insert(torch.ones(9, DIM), torch.ones(9, dtype=torch.int64))
    return world.target(categories=(0, 2, 3, 4, 5))


def with_features_of_zero(world: World) -> Target:
    """Dead features, and no bank to compare them with."""
    target = world.target()
    return target._replace(features=torch.zeros_like(target.features).requires_grad_())


@every_mode
@pytest.mark.parametrize("label_map", ["prediction", "merged"])
@pytest.mark.parametrize(
    "situation",
    [
        without_banks,
        with_banks_filled_but_not_full,
        without_regions,
        with_other_classes_than_the_full_banks,
        with_features_of_zero,
    ],
)
def test_nothing_to_align_is_exactly_zero(aim, isia, label_map, situation):
    world = world_in(aim, isia, label_map=label_map)
    target = situation(world)
    described = world.method.describe_target(target.output, target.pseudo)
    before = snapshot(world.method)
    world.method.observe_target(described)
    assert changed(world.method, before) == set()
    losses = world.method.alignment_losses(described)
    assert set(losses) == set(ALIGNMENT_LOSSES)
    for loss in losses.values():
        assert_nothing(loss, target.features)
    torch.stack(list(losses.values())).sum().backward()
    assert not target.features.grad.any()


@pytest.mark.parametrize("aim", AIM_MODES)
def test_stuff_that_the_pooled_classifier_rejects_is_exactly_zero(aim):
    world = world_in(aim, "released").observe(5)
    target = world.target(categories=STUFF + THINGS)
    rejected = target._replace(features=(50 * torch.ones_like(target.features)).requires_grad_())
    world.method.network.means = torch.eye(NUM_CLASSES, DIM) * torch.tensor([1.0, 1, 9, 1, 1, 1])[:, None]
    losses = losses_of(world, rejected)
    for name in ("stuff", "separation"):
        assert_nothing(losses[name], rejected.features)


@every_mode
def test_an_absent_class_leaves_the_others_alone(aim, isia):
    """An image without any region adds nothing to the batch but its share of the mean."""
    world = world_in(aim, isia).observe(5)
    target = world.target(2)
    prediction = target.prediction.clone()
    prediction[1] = NEITHER
    both = losses_of(world, target._replace(prediction=prediction))
    alone = losses_of(world, Target(target.features[:1], target.prediction[:1], target.pseudo[:1]))
    for name, loss in both.items():
        torch.testing.assert_close(loss, alone[name] / 2)
        found = gradient(loss, target.features)
        assert found.isfinite().all()
        assert not found[1].any()


@every_mode
def test_losses_are_pure_and_observations_are_not(aim, isia):
    world = world_in(aim, isia).observe(4)
    method, target = world.method, world.target()
    before = snapshot(method)
    described = method.describe_target(target.output, target.pseudo)
    losses = list(method.alignment_losses(described).values())
    probabilities = torch.rand(2, NUM_CLASSES, 6, 7, generator=torch.Generator().manual_seed(0))
    losses += [
        method.adversarial_loss(probabilities),
        *method.discriminator_losses(probabilities, probabilities).values(),
    ]
    losses += [method.segmentation_loss(target.output.logits.log_softmax(dim=1), target.prediction, pixels=9)]
    torch.stack(losses).sum().backward()
    assert changed(method, before) == set()

    method.observe_target(described)
    assert changed(method, before) == {"adaptive.zeta", "adaptive.seen"}
    before = snapshot(method)
    features, prediction, labels = world.source(2)
    method.observe_source(SegOutput(features, logits_of(prediction)), labels)
    assert changed(method, before) == {
        f"{kind}_bank.{what}" for kind in ("stuff", "thing") for what in ("prototypes", "inserted")
    }


@given(seeds, st.permutations(range(3)), st.sampled_from(AIM_MODES), st.sampled_from(ISIA_MODES))
@many
def test_the_order_of_the_images_does_not_matter(seed, order, aim, isia):
    world, other = (world_in(aim, isia, seed).observe(3) for _ in range(2))
    target = world.target(3)
    permuted = Target(*(value[list(order)] for value in target))
    assert_equal_losses(world, target, other, permuted)


@given(seeds, batches, st.sampled_from(AIM_MODES), st.sampled_from(ISIA_MODES))
@many
def test_a_batch_twice_is_the_batch_once(seed, batch, aim, isia):
    world, other = (world_in(aim, isia, seed).observe(3) for _ in range(2))
    target = world.target(batch)
    assert_equal_losses(world, target, other, Target(*(torch.cat([value, value]) for value in target)))


def assert_equal_losses(world: World, target: Target, other: World, changed: Target) -> None:
    """The same losses and the same gradient, and the same adaptive weights behind them."""
    found = []
    for each, view in ((world, target), (other, changed)):
        described = each.method.describe_target(view.output, view.pseudo)
        each.method.observe_target(described)
        found.append(each.method.alignment_losses(described))
    torch.testing.assert_close(other.method.adaptive(), world.method.adaptive())
    for name in ALIGNMENT_LOSSES:
        assert_same(found[1][name], found[0][name], target.features)


# -- the host ----------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a device: values, or sizes that depend on values, asked of it.

    Seen on the CPU, where the same calls cost nothing.
    """

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        to_host = name == "_to_copy" and kwargs.get("device") == torch.device("cpu")
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in self.ASKING or to_host or by_mask or repeats:
            self.calls.append(name)
        return func(*args, **kwargs)


Labelled = tuple[SegOutput, Tensor]


def align(method: BAFFT, source: Labelled, target: Labelled) -> None:
    """The alignment of a training step, backward included."""
    _, described = method.observe_and_describe(method.view_source(*source), method.view_target(*target))
    method.observe_target(described)
    torch.stack(list(method.alignment_losses(described).values())).sum().backward()


@pytest.mark.parametrize(
    ("asks", "call"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.masked_fill_(x > 0, 1.0).index_put_((x > 0,), x.new_zeros(())), "index_put_"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x.to(device="cpu", dtype=torch.uint8), "_to_copy"),
    ],
)
def test_what_counts_as_waiting(asks, call):
    values = torch.arange(3.0)
    with Waits() as waits:
        asks(values)
    assert waits.calls == [call]


@every_mode
@pytest.mark.parametrize("label_map", ["prediction", "merged"])
def test_the_host_waits_once_for_an_alignment(aim, isia, label_map):
    """For the label maps, both at once: components are found on the host."""
    world = world_in(aim, isia, label_map=label_map).observe(4)
    features, prediction, labels = world.source(2)
    target = world.target()
    source, labelled = (SegOutput(features, logits_of(prediction)), labels), (target.output, target.pseudo)
    with Waits() as waits:
        align(world.method, source, labelled)
    assert waits.calls == ["_to_copy"]
    assert target.features.grad is not None
    assert target.features.grad.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which says itself when it makes the host wait")
@every_mode
def test_the_gpu_makes_the_host_wait_once(aim, isia):
    world = world_in(aim, isia).observe(4)
    method = world.method.cuda()
    features, prediction, labels = (value.cuda() for value in world.source(2))
    target = Target(*(value.detach().cuda() for value in world.target()))
    target.features.requires_grad_()
    source, labelled = (SegOutput(features, logits_of(prediction)), labels), (target.output, target.pseudo)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        align(method, source, labelled)
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]) == 1


@every_mode
def test_observing_and_describing_together_is_doing_one_after_the_other(aim, isia):
    """Whatever the sizes of the two."""
    world, other = (world_in(aim, isia).observe(4) for _ in range(2))
    features, prediction, labels = world.source(3)
    source, target = SegOutput(features, logits_of(prediction)), world.target()
    share = world.method.observe_source(source, labels)
    described = world.method.describe_target(target.output, target.pseudo)
    views = other.method.view_source(source, labels), other.method.view_target(target.output, target.pseudo)
    other_share, other_described = other.method.observe_and_describe(*views)
    assert torch.equal(share, other_share)
    assert not changed(world.method, snapshot(other.method)) & {"stuff_bank.prototypes", "thing_bank.prototypes"}
    losses = world.method.alignment_losses(described)
    for name, loss in other.method.alignment_losses(other_described).items():
        assert torch.equal(loss, losses[name])


# -- state -------------------------------------------------------------------------------------------------------------


@every_mode
def test_memory_round_trip(aim, isia):
    world = world_in(aim, isia).observe(4)
    target = world.target()
    world.method.observe_target(world.method.describe_target(target.output, target.pseudo))
    other = world_in(aim, isia)
    other.method.load_memory(world.method.memory())
    expected = losses_of(world, target)
    for name, loss in losses_of(other, target).items():
        assert torch.equal(loss, expected[name])
    assert not [name for name in world.method.memory() if name in ("network", "discriminator")]


def test_memory_of_other_banks_is_refused():
    memory = World(0).method.memory()
    with pytest.raises(RuntimeError, match="size mismatch"):
        World(0, slots_thing=5).method.load_memory(memory)
    with pytest.raises(KeyError, match="thing_bank"):
        World(0).method.load_memory({"stuff_bank": memory["stuff_bank"]})


@pytest.mark.parametrize("wrong", [{"aim": "eager"}, {"isia": "eager"}, {"label_map": "eager"}])
def test_unknown_modes_are_refused(wrong):
    network = World(0).method.network
    with pytest.raises(ValueError, match="'eager'"):
        BAFFT(network=network, discriminator=nn.Identity(), stuff=STUFF, things=THINGS, alignment=Alignment(**wrong))


def test_half_precision_features_give_float32_losses_and_their_own_gradient():
    world = World(0, isia="paper").observe(4)
    target = world.target()
    half = target._replace(features=target.features.detach().half().requires_grad_())
    expected = losses_of(world, target._replace(features=half.features.detach().float().requires_grad_()))
    for name, loss in losses_of(world, half).items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])
        assert gradient(loss, half.features).dtype == torch.float16


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
def test_each_alignment_loss_needs_regions(name):
    assert needs_alignment({"seg", name})
    assert not needs_alignment({"seg", "adv", "pseudo"})
