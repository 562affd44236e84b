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
    def insert(
        self, vectors: Tensor, category: Tensor, *, accepted: Tensor | None = None, crowd: int | None = None
    ) -> None:
        """Insert vectors (R, D) of classes `category` (R,) in row order; each overwrites its class's oldest.

        accepted (R,) bool: which of them, all unless given. crowd: at most so many are of one class, R unless given.

        Every class rewrites its next slots, with what they hold where nothing new comes: no size depends on what was
        accepted, and the host need not wait to know it.
        """
        row = self.row_of[category]
        turn, counts = _turns(row, len(self.categories), accepted)
        lost = (counts - self.slots).clamp(min=0)  # of a burst longer than the ring only the end survives
        turn = turn - lost[row]
        enters = turn >= 0 if accepted is None else accepted & (turn >= 0)

        width = min(len(row), self.slots, len(row) if crowd is None else crowd)
        entrant = row.new_full((len(counts), width + 1), -1)  # the last column takes whoever does not enter
        entrant[row, torch.where(enters, turn, width)] = torch.arange(len(row), device=row.device)
        entrant = entrant[:, :width]
        slot = ((self.inserted + lost)[:, None] + torch.arange(width, device=row.device)) % self.slots
        ring = torch.arange(len(counts), device=row.device)[:, None]
        new, held = vectors[entrant.clamp(min=0)].float(), self.prototypes[ring, slot]
        self.prototypes[ring, slot] = torch.where(entrant[:, :, None] >= 0, new, held)
        self.inserted += counts

    def nearest(self, vectors: Tensor, category: Tensor, *, crowd: int | None = None) -> tuple[Tensor, Tensor]:
        """Distance `d(u, Bank)` to the closest prototype of the same class (spec 3).

        vectors (R, D), category (R,) -> distance (R,), the mean absolute difference over channels, differentiable
        through the chosen prototype only; ready (R,) bool, whether the class's bank is full. Where it is not, the
        distance is 0 and passes no gradient. crowd: at most so many vectors are of one class, R unless given.
        """
        row = self.row_of[category]
        ready = self.full[row]
        distance = (vectors - self._closest(vectors, row, len(row) if crowd is None else crowd)).abs().mean(dim=1)
        return torch.where(ready, distance, torch.zeros_like(distance)), ready

    def centroids(self) -> tuple[Tensor, Tensor]:
        """Mean prototype c_s of each class (C, D) and whether its bank is full (C,) (spec 3.4)."""
        return self.prototypes.mean(dim=1), self.full

    @torch.no_grad()
    def _closest(self, vectors: Tensor, row: Tensor, crowd: int) -> Tensor:
        """The closest prototype of each vector's own class, (R, D); nothing of size R x K x D is made."""
        turn, _ = _turns(row, len(self.categories))
        queries = vectors.new_zeros(len(self.categories), crowd, vectors.shape[1])
        queries[row, turn] = vectors.detach()
        choice = torch.cdist(queries, self.prototypes, p=1.0).argmin(dim=2)
        return self.prototypes[row, choice[row, turn]]


def _turns(row: Tensor, num_rows: int, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Position of each element among those of the same row (R,), and the number of elements per row (C,).

    counted (R,) bool: the elements that count, all unless given; the position of the others means nothing.
    """
    member = row[:, None] == torch.arange(num_rows, device=row.device)  # one_hot refuses a bank of no class
    if counted is not None:
        member = member & counted[:, None]
    turn = (member.cumsum(dim=0) - 1).gather(1, row[:, None])[:, 0]
    return turn, member.sum(dim=0)
