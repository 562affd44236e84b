"""Source feature banks: what each class looked like, lately, in the source domain (spec 3.1).

Geometry: C classes of the bank, K slots per class, D channels, R query vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PrototypeBank(nn.Module):
    """A ring buffer of K feature vectors for each of C classes. Only `insert` changes it.

    Buffers, hence part of every checkpoint: `prototypes` (C, K, D) and `inserted` (C,), the number of inserts ever.
    """

    prototypes: Tensor
    inserted: Tensor
    category_of: Tensor
    row_of: Tensor

    def __init__(self, *, categories: Sequence[int], slots: int, dim: int) -> None:
        """categories: the class ids the bank serves, in row order; slots: K; dim: D."""
        super().__init__()
        self.categories = tuple(categories)
        self.slots = slots
        self.register_buffer("prototypes", torch.zeros(len(self.categories), slots, dim))
        self.register_buffer("inserted", torch.zeros(len(self.categories), dtype=torch.int64))
        category_of = torch.tensor(self.categories, dtype=torch.int64)
        row_of = torch.full((256,), -1, dtype=torch.int64)
        row_of[category_of] = torch.arange(len(self.categories))
        self.register_buffer("category_of", category_of, persistent=False)
        self.register_buffer("row_of", row_of, persistent=False)

    @property
    def full(self) -> Tensor:
        """(C,) bool: the classes with strictly more than K inserts; the others take no part in any loss (spec 3.1)."""
        return self.inserted > self.slots

    @property
    def fill(self) -> Tensor:
        """(C,) float in [0, 1]: the share of each class's slots that hold a vector."""
        return self.inserted.clamp(max=self.slots) / self.slots

    @torch.no_grad()
    def insert(self, vectors: Tensor, category: Tensor) -> None:
        """Insert vectors (R, D) of classes `category` (R,) in row order; each overwrites its class's oldest."""
        row = self.row_of[category]
        turn, counts = _turns(row, len(self.categories))
        newest = turn >= counts[row] - self.slots  # of a burst longer than the ring only the end survives
        slot = (self.inserted[row] + turn) % self.slots
        self.prototypes[row[newest], slot[newest]] = vectors[newest].float()
        self.inserted += counts

    def nearest(self, vectors: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Distance `d(u, Bank)` to the closest prototype of the same class (spec 3).

        vectors (R, D), category (R,) -> distance (R,), the mean absolute difference over channels, differentiable
        through the chosen prototype only; ready (R,) bool, whether the class's bank is full. Where it is not, the
        distance is 0 and passes no gradient.
        """
        row = self.row_of[category]
        ready = self.full[row]
        distance = (vectors - self._closest(vectors, row)).abs().mean(dim=1)
        return torch.where(ready, distance, torch.zeros_like(distance)), ready

    def centroids(self) -> tuple[Tensor, Tensor]:
        """Mean prototype c_s of each class (C, D) and whether its bank is full (C,) (spec 3.4)."""
        return self.prototypes.mean(dim=1), self.full

    @torch.no_grad()
    def _closest(self, vectors: Tensor, row: Tensor) -> Tensor:
        """The closest prototype of each vector's own class, (R, D); nothing of size R x K x D is made."""
        if not len(row):
            return vectors.detach()
        turn, counts = _turns(row, len(self.categories))
        queries = vectors.new_zeros(len(self.categories), int(counts.max()), vectors.shape[1])
        queries[row, turn] = vectors.detach()
        choice = torch.cdist(queries, self.prototypes, p=1.0).argmin(dim=2)
        return self.prototypes[row, choice[row, turn]]


def _turns(row: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Position of each element among those of the same row (R,), and the number of elements per row (C,)."""
    member = (row[:, None] == torch.arange(num_rows, device=row.device)).long()  # one_hot refuses a bank of no class
    turn = (member.cumsum(dim=0) - 1).gather(1, row[:, None])[:, 0]
    return turn, member.sum(dim=0)
