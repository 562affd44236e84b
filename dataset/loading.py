"""The order of data as a pure function of (seed, stream, position), and the loaders over it.

A training stream is an endless sequence of positions: in epoch e = p // n, position p shows sample
`order(seed, e, n)[p % n]`, unless the data set brings an order of its own. Resuming is starting at a position, with no
replay and no sampler state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.corpora import DataError, number_of
from dataset.segmentation import Example, SegmentationDataset


class Batch(NamedTuple):
    """images: (B,3,H,W) uint8 RGB, channels last in memory. labels: (B,H,W) uint8, or B of (H,W) at native sizes.
    names: B names. skipped: what was wrong with samples that others stand for."""

    images: torch.Tensor
    labels: torch.Tensor | list[torch.Tensor]
    names: list[str]
    skipped: Sequence[str] = ()


def order(seed: int, epoch: int, n: int, *, stream: int = 0) -> np.ndarray:
    """(n,) int64: the permutation of 0..n-1 in which an epoch of a stream visits its samples."""
    # The fourth word keeps these numbers apart from the augmentation's, seeded by [seed, stream, position].
    return np.random.default_rng([seed, stream, epoch, n]).permutation(n)


class Shuffled:
    """Which of n samples a position of a stream shows: each once per epoch, in the epoch's `order`."""

    def __init__(self, n: int, *, seed: int, stream: int = 0) -> None:
        if n < 1:
            raise ValueError(f"a stream needs samples, got n={n}")
        self.n = n
        self.seed = seed
        self.stream = stream
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __call__(self, position: int) -> int:
        """The index of the sample."""
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, order(self.seed, epoch, self.n, stream=self.stream)
        return int(self._permutation[place])


class PositionSampler(Sampler[tuple[int, int]]):
    """(position, index) for the positions start..stop-1 of a stream, endless without stop; `shows` gives the index."""

    def __init__(self, shows: Callable[[int], int], *, start: int = 0, stop: int | None = None) -> None:
        if start < 0:
            raise ValueError(f"a stream begins at position 0, got start={start}")
        self.shows = shows
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position in count(self.start) if self.stop is None else range(self.start, self.stop):
            yield position, self.shows(position)

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("an endless stream has no length")
        return max(0, self.stop - self.start)


class Read(NamedTuple):
    """A sample that could be read, and what was wrong with those before it that could not."""

    example: Example
    skipped: tuple[str, ...] = ()


class _Reporting(Dataset[Any]):
    """A dataset that returns a DataError as an item: raised in a worker, it would arrive as a traceback.

    tolerated: samples in a row that may be unreadable; the next one that is not takes their place, read at the same
    position, so that what a position shows depends on nothing but the files.
    """

    def __init__(self, dataset: SegmentationDataset, tolerated: int = 0) -> None:
        self.dataset = dataset
        self.tolerated = tolerated

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Read | DataError:
        position, index = key if isinstance(key, tuple) else (key, key)
        flaws: list[DataError] = []
        while len(flaws) <= self.tolerated:
            try:
                example = self.dataset[position, (index + len(flaws)) % len(self.dataset)]
            except DataError as error:
                flaws.append(error)
            else:
                return Read(example, tuple(map(str, flaws)))
        return flaws[0]


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
        known: set[str] = set()
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                # A new one: an exception and the frame that names it hold each other, and with them the processes,
                # which then take five seconds to end.
                raise DataError(str(batch))
            known.update(batch.skipped)
            if len(known) > self.dataset.tolerated:
                raise DataError(
                    f"{number_of(len(known), 'file')} of {self.num_images} images cannot be read, more than the "
                    f"{self.dataset.tolerated} that may be skipped; the last: {batch.skipped[-1]}"
                )
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
    skip: bool = False,
) -> BatchLoader:
    """Batches of a stream from position `start` to `stop` (both in samples); endless when stop is None.

    pin_memory: in memory from which CUDA copies without waiting. skip: the next sample that can be read takes the place
    of one that cannot, as long as they are no more than `tolerated_files`; more raise DataError.
    """
    shows = dataset.shows or Shuffled(len(dataset), seed=seed, stream=stream)
    sampler = PositionSampler(shows, start=start, stop=stop)
    return _loader(
        dataset,
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        skip=skip,
    )


def tolerated_files(n: int) -> int:
    """How many of n samples may be unreadable: one in a hundred, and one of fewer."""
    return max(1, n // 100)


def eval_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    skip: bool = False,
) -> BatchLoader:
    """Batches of the whole dataset in its own order, the last one possibly smaller; pin_memory and skip as in
    training."""
    return _loader(
        dataset,
        sampler=None,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        skip=skip,
    )


def _loader(
    dataset: SegmentationDataset,
    *,
    sampler: PositionSampler | None,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    skip: bool,
) -> BatchLoader:
    return BatchLoader(
        _Reporting(dataset, tolerated_files(len(dataset)) if skip else 0),
        sampler=sampler,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_collate, native_labels=dataset.native_labels),
        worker_init_fn=_as_a_helper,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # Its own generator: a loader draws a base seed, which must not disturb the run's random numbers.
        generator=torch.Generator().manual_seed(0),
    )


def _as_a_helper(worker: int) -> None:
    """Workers share the machine by number, not by threads; and a signal to the group of the main process, as Ctrl-C is
    one, is not theirs to die of: it still needs their batches to end in order."""
    torch.set_num_threads(1)
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _collate(items: list[Read | DataError], *, native_labels: bool) -> Batch | DataError:
    flaw = next((item for item in items if isinstance(item, DataError)), None)
    if flaw is not None:
        return flaw
    found = [item for item in items if isinstance(item, Read)]
    read, skipped = [item.example for item in found], [reason for item in found for reason in item.skipped]
    names = [example.name for example in read]
    if len({example.image.shape for example in read}) > 1:
        return DataError(f"{', '.join(names)}: images of different sizes in a batch; set an input size or batch size 1")
    labels = [example.label for example in read]
    # Stacked with the channels last, as they lie: batches come in the layout that convolutions like best.
    images = torch.stack([example.image.permute(1, 2, 0) for example in read]).permute(0, 3, 1, 2)
    return Batch(images, labels if native_labels else torch.stack(labels), names, skipped)
