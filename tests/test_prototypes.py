"""The banks against a list of everything ever inserted."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import naive
from model.prototypes import PrototypeBank

CATEGORIES = (7, 2, 11)  # neither sorted nor contiguous: rows are not class ids
DIM = 5
bursts = st.lists(st.lists(st.sampled_from(CATEGORIES), max_size=14), max_size=6)


def filled(bursts: list[list[int]], *, slots: int, seed: int) -> tuple[PrototypeBank, dict[int, list[Tensor]]]:
    """A bank after the bursts, and all that was inserted by class, in order."""
    generator = torch.Generator().manual_seed(seed)
    bank, history = PrototypeBank(categories=CATEGORIES, slots=slots, dim=DIM), defaultdict(list)
    for burst in bursts:
        vectors = torch.randn(len(burst), DIM, generator=generator)
        bank.insert(vectors, torch.tensor(burst, dtype=torch.int64))
        for vector, category in zip(vectors, burst, strict=True):
            history[category].append(vector)
    return bank, history


@given(bursts, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_ring_holds_the_last_inserts_in_their_slots(bursts, slots, seed):
    bank, history = filled(bursts, slots=slots, seed=seed)
    for row, category in enumerate(CATEGORIES):
        inserts = history[category]
        expected = torch.zeros(slots, DIM)
        for turn, vector in enumerate(inserts):
            expected[turn % slots] = vector
        assert torch.equal(bank.prototypes[row], expected)
        assert bank.inserted[row] == len(inserts)
        assert bank.full[row] == (len(inserts) > slots)
        assert bank.fill[row].item() == pytest.approx(min(len(inserts) / slots, 1))


@pytest.mark.parametrize("sizes", [(9,), (2, 7), (1, 1, 1, 6), (3, 3, 3)])
def test_one_burst_or_many_give_the_same_bank(sizes):
    vectors = torch.randn(9, DIM, generator=torch.Generator().manual_seed(0))
    categories = torch.tensor([7, 2, 7, 7, 2, 7, 7, 11, 7])
    bank, whole = (PrototypeBank(categories=CATEGORIES, slots=2, dim=DIM) for _ in range(2))
    whole.insert(vectors, categories)
    for part in zip(vectors.split(sizes), categories.split(sizes), strict=True):
        bank.insert(*part)
    assert torch.equal(bank.prototypes, whole.prototypes)
    assert torch.equal(bank.inserted, torch.tensor([6, 2, 1]))
    assert torch.equal(bank.prototypes[0], vectors[[6, 8]])


@given(bursts, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_inserting_the_accepted_is_inserting_them_alone(bursts, slots, seed):
    rng = torch.Generator().manual_seed(seed)
    bank, alone = (PrototypeBank(categories=CATEGORIES, slots=slots, dim=DIM) for _ in range(2))
    for burst in bursts:
        vectors, category = torch.randn(len(burst), DIM, generator=rng), torch.tensor(burst, dtype=torch.int64)
        accepted = torch.rand(len(burst), generator=rng) < 0.6
        vectors[~accepted] = torch.nan  # not even this gets in
        crowd = max((burst.count(k) for k in CATEGORIES), default=0)
        bank.insert(vectors, category, accepted=accepted, crowd=crowd)
        alone.insert(vectors[accepted], category[accepted])
    assert torch.equal(bank.prototypes, alone.prototypes)
    assert torch.equal(bank.inserted, alone.inserted)


@pytest.mark.parametrize("crowd", [3, 4, 99])
def test_any_bound_on_the_crowd_finds_the_nearest(crowd):
    bank, _ = filled([[7, 2] * 4], slots=3, seed=0)
    vectors = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    category = torch.tensor([7, 2, 7, 11, 7])
    for bounded, free in zip(
        bank.nearest(vectors, category, crowd=crowd), bank.nearest(vectors, category), strict=True
    ):
        assert torch.equal(bounded, free)


def test_full_is_strictly_more_inserts_than_slots():
    bank = PrototypeBank(categories=CATEGORIES, slots=3, dim=DIM)
    one = torch.ones(1, DIM), torch.tensor([2])
    readiness = []
    for _ in range(5):
        bank.insert(*one)
        readiness.append(bank.full.tolist())
    assert readiness == [[False, ready, False] for ready in (False, False, False, True, True)]


@given(bursts, st.lists(st.sampled_from(CATEGORIES), max_size=9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None, derandomize=True)  # a random near-tie would let float32 choose
def test_nearest_and_its_gradient_are_the_minimum_over_slots(bursts, queries, slots, seed):
    bank, history = filled(bursts, slots=slots, seed=seed)
    vectors = torch.randn(len(queries), DIM, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    distance, ready = bank.nearest(vectors, torch.tensor(queries, dtype=torch.int64))
    assert ready.tolist() == [len(history[category]) > slots for category in queries]

    slow = vectors.new_zeros(len(queries))
    chosen = torch.zeros(len(queries), DIM)
    for row, category in enumerate(queries):
        if len(history[category]) > slots:
            held = history[category][-slots:]
            nearest = min(held, key=lambda prototype: naive.distance(vectors[row], prototype).item())
            slow[row] = naive.distance(vectors[row], nearest)
            chosen[row] = (vectors[row] - nearest).detach().sign() / DIM
    torch.testing.assert_close(distance, slow)
    weight = torch.arange(1.0, len(queries) + 1)
    (gradient,) = torch.autograd.grad((weight * distance).sum(), vectors)
    torch.testing.assert_close(gradient, weight[:, None] * chosen)  # 0 where not ready


def test_a_bank_that_is_not_full_gives_zero_without_gradient():
    bank, _ = filled([[2, 2, 7, 7, 7]], slots=2, seed=0)
    vectors = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()
    distance, ready = bank.nearest(vectors, torch.tensor([2, 7, 11]))
    assert ready.tolist() == [False, True, False]
    assert distance[[0, 2]].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(distance.sum(), vectors)
    assert gradient.any(dim=1).tolist() == [False, True, False]


def test_a_vector_equal_to_its_prototype_is_at_distance_zero():
    bank, history = filled([[7] * 5], slots=4, seed=0)
    vectors = history[7][2][None].clone().requires_grad_()
    distance, _ = bank.nearest(vectors, torch.tensor([7]))
    (gradient,) = torch.autograd.grad(distance.sum(), vectors)
    assert distance.item() == 0
    assert not gradient.any()


def test_neither_verb_lets_a_gradient_into_the_bank():
    bank = PrototypeBank(categories=CATEGORIES, slots=1, dim=DIM)
    vectors = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bank.insert(vectors, torch.tensor([2, 2]))
    assert not bank.prototypes.requires_grad
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.nearest(vectors, torch.tensor([2, 7]))[0].sum().backward()
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())


def test_no_vectors_at_all():
    bank, _ = filled([[7] * 5, []], slots=2, seed=0)
    assert bank.inserted.tolist() == [5, 0, 0]
    vectors = torch.zeros(0, DIM, requires_grad=True)
    distance, ready = bank.nearest(vectors, torch.zeros(0, dtype=torch.int64))
    assert distance.shape == ready.shape == (0,)
    assert torch.autograd.grad(distance.sum(), vectors)[0].shape == (0, DIM)


def test_a_bank_of_no_class():
    """Data of one's own may have no thing class, or no stuff."""
    bank = PrototypeBank(categories=(), slots=2, dim=DIM)
    vectors, category = torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64)
    bank.insert(vectors, category)
    distance, ready = bank.nearest(vectors, category)
    assert distance.shape == ready.shape == bank.full.shape == (0,)
    assert bank.centroids()[0].shape == (0, DIM)


def test_centroids_are_the_means_of_the_rings():
    bank, history = filled([[7] * 5 + [2] * 2 + [11] * 3], slots=2, seed=3)
    centroids, full = bank.centroids()
    assert full.tolist() == [True, False, True]
    for row, category in enumerate(CATEGORIES):
        torch.testing.assert_close(centroids[row], torch.stack(history[category][-2:]).mean(dim=0))


def test_half_precision_vectors_are_kept_in_float32():
    bank = PrototypeBank(categories=CATEGORIES, slots=1, dim=DIM)
    vectors = torch.randn(1, DIM, generator=torch.Generator().manual_seed(0)).half()
    bank.insert(vectors, torch.tensor([2]))
    assert torch.equal(bank.prototypes[1, 0], vectors[0].float())


def test_a_restored_bank_goes_on_where_it_stopped():
    bank, _ = filled([[7, 2, 7], [7, 7, 11, 2]], slots=3, seed=0)
    restored = PrototypeBank(categories=CATEGORIES, slots=3, dim=DIM)
    assert restored.load_state_dict(bank.state_dict()).missing_keys == []
    assert set(bank.state_dict()) == {"prototypes", "inserted"}
    more = torch.randn(4, DIM, generator=torch.Generator().manual_seed(1)), torch.tensor([7, 2, 2, 11])
    bank.insert(*more)
    restored.insert(*more)
    assert torch.equal(restored.prototypes, bank.prototypes)
    assert torch.equal(restored.inserted, bank.inserted)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PrototypeBank(categories=CATEGORIES, slots=4, dim=DIM).load_state_dict(bank.state_dict())
