"""The order of data as a pure function of (seed, stream, position), and the loaders over it.

A training stream is an endless sequence of positions: in epoch e = p // n, position p shows sample
`order(seed, e, n)[p % n]`. Resuming is starting at a position, with no replay and no sampler state.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.corpora import DataError
from dataset.segmentation import Example, SegmentationDataset


class Batch(NamedTuple):
    """images: (B,3,H,W) uint8 RGB, channels last in memory. labels: (B,H,W) int64, or B of (H,W) at native sizes.
    names: B names."""

    images: torch.Tensor
    labels: torch.Tensor | list[torch.Tensor]
    names: list[str]


def order(seed: int, epoch: int, n: int, *, stream: int = 0) -> np.ndarray:
    """(n,) int64: the permutation of 0..n-1 in which an epoch of a stream visits its samples."""
    # The fourth word keeps these numbers apart from the augmentation's, seeded by [seed, stream, position].
    return np.random.default_rng([seed, stream, epoch, n]).permutation(n)


class PositionSampler(Sampler[tuple[int, int]]):
    """(position, index) for the positions start..stop-1 of a stream over n samples; endless without stop."""

    def __init__(self, n: int, *, seed: int, stream: int = 0, start: int = 0, stop: int | None = None) -> None:
        if n < 1 or start < 0:
            raise ValueError(f"a stream needs samples and a position from 0 on, got n={n}, start={start}")
        self.n = n
        self.seed = seed
        self.stream = stream
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, permutation = -1, np.empty(0, dtype=np.int64)
        for position in count(self.start) if self.stop is None else range(self.start, self.stop):
            if position // self.n != epoch:
                epoch = position // self.n
                permutation = order(self.seed, epoch, self.n, stream=self.stream)
            yield position, int(permutation[position % self.n])

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless stream has no length")
        return max(0, self.stop - self.start)


class _Reporting(Dataset[Any]):
    """A dataset that returns a DataError as an item: raised in a worker, it would arrive as a traceback."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Example | DataError:
        try:
            return self.dataset[key]
        except DataError as error:
            return error


class BatchLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that raises in the main process what a worker reported."""

    dataset: _Reporting

    @property
    def images(self) -> SegmentationDataset:
        """The data set that the batches come from."""
        return self.dataset.dataset

    @property
    def num_images(self) -> int:
        """How many images the data set has."""
        return len(self.dataset)

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                # A new one: an exception and the frame that names it hold each other, and with them the processes,
                # which then take five seconds to end.
                raise DataError(*batch.args)
            yield batch


def train_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    seed: int,
    stream: int = 0,
    start: int = 0,
    stop: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> BatchLoader:
    """Batches of a stream from position `start` to `stop` (both in samples); endless when stop is None.

    pin_memory: in memory from which CUDA copies without waiting.
    """
    sampler = PositionSampler(len(dataset), seed=seed, stream=stream, start=start, stop=stop)
    return _loader(dataset, sampler=sampler, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory)


def eval_loader(
    dataset: SegmentationDataset, *, batch_size: int = 1, num_workers: int = 0, pin_memory: bool = False
) -> BatchLoader:
    """Batches of the whole dataset in its own order, the last one possibly smaller; pin_memory as in training."""
    return _loader(dataset, sampler=None, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory)


def _loader(
    dataset: SegmentationDataset,
    *,
    sampler: PositionSampler | None,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> BatchLoader:
    return BatchLoader(
        _Reporting(dataset),
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_collate, native_labels=dataset.native_labels),
        worker_init_fn=_one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # Its own generator: a loader draws a base seed, which must not disturb the run's random numbers.
        generator=torch.Generator().manual_seed(0),
    )


def _one_thread(worker: int) -> None:
    """Workers share the machine by number, not by threads."""
    torch.set_num_threads(1)


def _collate(examples: list[Example | DataError], *, native_labels: bool) -> Batch | DataError:
    read = [example for example in examples if not isinstance(example, DataError)]
    if len(read) < len(examples):
        return next(example for example in examples if isinstance(example, DataError))
    names = [example.name for example in read]
    if len({example.image.shape for example in read}) > 1:
        return DataError(f"{', '.join(names)}: images of different sizes in a batch; set an input size or batch size 1")
    labels = [example.label for example in read]
    # Stacked with the channels last, as they lie: batches come in the layout that convolutions like best.
    images = torch.stack([example.image.permute(1, 2, 0) for example in read]).permute(0, 3, 1, 2)
    return Batch(images, labels if native_labels else torch.stack(labels), names)
