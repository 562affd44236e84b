"""Data order and loaders: pure in the position, independent of workers, resumable."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.data import feeding, workers_to_feed
from dataset.corpora import DataError, Sample
from dataset.labels import train_id_decoding
from dataset.loading import Batch, PositionSampler, Shuffled, eval_loader, order, train_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Augment
from utils import notes
from utils.flags import TRAINING, parse

# Python 3.12 and newer warn when a process with threads forks, which is how loaders start workers on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

N = 7


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(N):
        image, label = tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 5, (20, 30), dtype=np.uint8)).save(label)
        made.append(Sample(f"{index}.png", image, label))
    return made


def dataset_of(samples: list[Sample], **options: object) -> SegmentationDataset:
    settings: dict = {"size": (24, 16), "augment": Augment(mirror=True, scale=True), "seed": 3, **options}
    return SegmentationDataset(samples, decoding=train_id_decoding(5), **settings)


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert [batch.names for batch in left] == [batch.names for batch in right]
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one.images, other.images)
        assert isinstance(one.labels, torch.Tensor)
        assert isinstance(other.labels, torch.Tensor)
        assert torch.equal(one.labels, other.labels)


# ---- order ----


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 50))
def test_order_is_a_permutation_and_pure(seed: int, epoch: int, n: int) -> None:
    permutation = order(seed, epoch, n)
    assert sorted(permutation.tolist()) == list(range(n))
    np.testing.assert_array_equal(permutation, order(seed, epoch, n))


def test_order_differs_between_seeds_epochs_and_streams() -> None:
    orders = [order(0, 0, 50), order(1, 0, 50), order(0, 1, 50), order(0, 0, 50, stream=1)]
    assert len({tuple(permutation.tolist()) for permutation in orders}) == 4


def test_order_is_pinned() -> None:
    """A change of this order would break the resuming of older runs."""
    assert order(0, 0, 10).tolist() == [7, 4, 8, 6, 2, 3, 5, 0, 1, 9]
    assert order(1234, 5, 10, stream=1).tolist() == [5, 2, 7, 1, 4, 3, 8, 0, 9, 6]


@given(st.integers(1, 20), st.integers(0, 60), st.integers(0, 60))
def test_sampler_from_a_position_continues_the_straight_run(n: int, start: int, more: int) -> None:
    straight = list(PositionSampler(Shuffled(n, seed=5, stream=1), stop=start + more))
    resumed = PositionSampler(Shuffled(n, seed=5, stream=1), start=start, stop=start + more)
    assert list(resumed) == straight[start:]
    assert len(resumed) == more
    assert list(islice(PositionSampler(Shuffled(n, seed=5, stream=1), start=start), more)) == straight[start:]


@given(st.integers(1, 20), st.integers(0, 5))
def test_every_epoch_visits_each_sample_once(n: int, seed: int) -> None:
    visits = list(PositionSampler(Shuffled(n, seed=seed), stop=3 * n))
    assert [position for position, _ in visits] == list(range(3 * n))
    for epoch in range(3):
        assert sorted(index for _, index in visits[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_sampler_limits() -> None:
    assert len(PositionSampler(Shuffled(3, seed=0), start=9, stop=4)) == 0
    assert list(PositionSampler(Shuffled(3, seed=0), start=9, stop=4)) == []
    with pytest.raises(TypeError, match="no length"):
        len(PositionSampler(Shuffled(3, seed=0)))
    with pytest.raises(ValueError, match="needs samples"):
        Shuffled(0, seed=0)


# ---- loaders ----


def test_worker_count_changes_nothing(samples: list[Sample]) -> None:
    runs = [
        list(train_loader(dataset_of(samples), batch_size=2, seed=3, stop=2 * N, num_workers=workers))
        for workers in (0, 2)
    ]
    assert len(runs[0]) == N
    assert runs[0][0].images.shape == (2, 3, 16, 24)
    assert runs[0][0].images.dtype == torch.uint8
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for run in runs for batch in run)
    assert_same(runs[0], runs[1])
    counts = Counter(name for batch in runs[0] for name in batch.names)
    assert counts == {sample.name: 2 for sample in samples}


def test_resuming_equals_the_straight_run(samples: list[Sample]) -> None:
    straight = list(train_loader(dataset_of(samples), batch_size=2, seed=3, stop=12))
    resumed = list(train_loader(dataset_of(samples), batch_size=2, seed=3, start=6, stop=12))
    assert_same(straight[3:], resumed)


def test_augmentation_differs_between_epochs(samples: list[Sample]) -> None:
    batches = list(train_loader(dataset_of(samples), batch_size=N, seed=3, stop=2 * N))
    first, second = [dict(zip(batch.names, batch.images, strict=True)) for batch in batches]
    assert sum(not torch.equal(first[name], second[name]) for name in first) > N // 2


def test_endless_stream_and_the_global_random_state(samples: list[Sample]) -> None:
    before = torch.get_rng_state()
    loader = train_loader(dataset_of(samples), batch_size=3, seed=0)
    assert len(list(islice(loader, 10))) == 10
    assert torch.equal(torch.get_rng_state(), before)


def test_last_batch_may_be_smaller(samples: list[Sample]) -> None:
    batches = list(train_loader(dataset_of(samples), batch_size=4, seed=0, stop=N))
    assert [len(batch.names) for batch in batches] == [4, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_eval_loader_keeps_order_and_native_labels(samples: list[Sample], workers: int) -> None:
    dataset = dataset_of(samples, augment=None, native_labels=True)
    batches = list(eval_loader(dataset, batch_size=3, num_workers=workers))
    assert [name for batch in batches for name in batch.names] == [sample.name for sample in samples]
    assert [len(batch.names) for batch in batches] == [3, 3, 1]
    for batch in batches:
        assert batch.images.shape[1:] == (3, 16, 24)
        assert isinstance(batch.labels, list)
        assert [tuple(label.shape) for label in batch.labels] == [(20, 30)] * len(batch.names)
    assert isinstance(next(iter(eval_loader(dataset_of(samples, augment=None)))).labels, torch.Tensor)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_is_one_line_from_any_worker(samples: list[Sample], workers: int) -> None:
    samples[4].image.write_bytes(b"no image")
    loader = eval_loader(dataset_of(samples), batch_size=3, num_workers=workers)
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value) == f"{samples[4].image}: not an image file of a known kind"


def test_processes_end_with_the_mistake(samples: list[Sample]) -> None:
    """Not only when the collector of cycles comes by, which they would make wait for five seconds."""
    samples[4].image.write_bytes(b"no image")
    others = set(multiprocessing.active_children())
    with contextlib.suppress(DataError):
        list(eval_loader(dataset_of(samples), num_workers=1))
    assert set(multiprocessing.active_children()) <= others


def test_native_sizes_that_differ_cannot_be_batched(samples: list[Sample]) -> None:
    Image.new("RGB", (8, 8)).save(samples[1].image)
    dataset = dataset_of(samples, size=None, augment=None)
    assert len(list(eval_loader(dataset))) == N
    with pytest.raises(DataError, match=r"0\.png, 1\.png: images of different sizes"):
        list(eval_loader(dataset, batch_size=2))


def test_processes_that_feed_a_step() -> None:
    assert [workers_to_feed(0.06, step) for step in (0.05, 0.06, 0.2)] == [2, 1, 1]
    assert workers_to_feed(0.06, 0.1, images=4) == 3
    assert "0.05 s 2 (1), 0.1 s 1 (1)" in feeding(0.06, 0.01)


@pytest.mark.parametrize("fast", [False, True])
def test_slow_decoding_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fast: bool) -> None:
    monkeypatch.setattr(notes, "FAST_PNG", fast)
    config, options = parse([], description="", section="step1", flags=TRAINING)
    notes.say_notes(config, options)
    assert ("note: kornia-rs 0.2 or newer is not installed" in capsys.readouterr().out) == (not fast)
