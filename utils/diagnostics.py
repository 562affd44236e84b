"""What a network's features say about the method's claims, as plain numbers.

Does aggregation bring the two domains' centroids of a class together, does separation keep those of different classes
apart? Which confusions went, which came? How good are the pseudo labels? Everything here is a pure function of arrays;
utils/inspection.py gets them out of a network.

Geometry: C classes, D channels, R regions. A class without a region has NaN wherever a number of it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from utils.json_files import plain
from utils.metrics import Counts, Scores, mean, percent, row_percent

Vectors = npt.NDArray[np.float32]

AT_SNAPSHOTS = 8  # images of each domain that a training measures at every snapshot


# ---- distances ----


@dataclass(frozen=True, kw_only=True)
class RegionSet:
    """Pooled features of some images of one domain.

    vectors (R, D); category (R,) class ids; area (R,) pixels of the feature grid; whole (R,) bool: stuff regions and
    instances, False for what is left of a thing class after its largest instances.
    """

    vectors: Vectors
    category: npt.NDArray[np.int64]
    area: npt.NDArray[np.int64]
    whole: npt.NDArray[np.bool_]

    def centroids(self, num_classes: int) -> Vectors:
        """(C, D): the mean feature over all pixels of each class."""
        total = np.zeros((num_classes, self.vectors.shape[1]), dtype=np.float64)
        pixels = np.zeros((num_classes, 1))
        np.add.at(total, self.category, self.vectors * self.area[:, None])
        np.add.at(pixels, self.category, self.area[:, None])
        absent = np.full(total.shape, np.nan)
        return np.divide(total, pixels, out=absent, where=pixels > 0).astype(np.float32)

    def spread(self, centroids: Vectors) -> Scores:
        """(C,): the mean distance of a class's stuff regions and instances to its centroid, each counting once."""
        distance = np.abs(self.vectors - centroids[self.category]).mean(axis=1)
        own = [distance[self.whole & (self.category == category)] for category in range(len(centroids))]
        return np.array([values.mean() if values.size else np.nan for values in own])


def distances(left: Vectors, right: Vectors) -> Scores:
    """d(u, v), the mean over the channels of |u - v| (spec 3): (M, D), (N, D) -> (M, N)."""
    return np.stack([np.abs(row - right).mean(axis=1) for row in left]).astype(np.float64)


def cosines(left: Vectors, right: Vectors) -> Scores:
    """Cosine similarity: (M, D), (N, D) -> (M, N); 0 where one of the two is the zero vector."""
    return (_unit(left) @ _unit(right).T).astype(np.float64)


def _unit(vectors: Vectors) -> Vectors:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far classes and domains lie apart.

    distance, cosine: (C, C), source centroid of the row's class against target centroid of the column's;
    source_distance, source_cosine: the same among the source's centroids, target_distance, target_cosine: among the
    target's. spread_source, spread_target (C,): `RegionSet.spread` of each domain.
    """

    distance: Scores
    cosine: Scores
    source_distance: Scores
    source_cosine: Scores
    target_distance: Scores
    target_cosine: Scores
    spread_source: Scores
    spread_target: Scores

    @classmethod
    def between(cls, source: RegionSet, target: RegionSet, num_classes: int) -> Divergence:
        """Of a source and a target set of regions from one network."""
        left, right = source.centroids(num_classes), target.centroids(num_classes)
        return cls(
            distance=distances(left, right),
            cosine=cosines(left, right),
            source_distance=distances(left, left),
            source_cosine=cosines(left, left),
            target_distance=distances(right, right),
            target_cosine=cosines(right, right),
            spread_source=source.spread(left),
            spread_target=target.spread(right),
        )

    @property
    def gap(self) -> Scores:
        """(C,): distance of each class's source centroid to its own target centroid, what aggregation shrinks."""
        return np.diagonal(self.distance)

    def summary(self) -> dict[str, float]:
        """Means over classes, or over ordered pairs of different classes, that both domains show.

        Distances scale with the features, which every training stretches as it likes: compare runs by `ratio`, the
        mean distance between classes over that within a class across the domains, and by the cosines.
        """
        intra, inter = float(mean(self.gap)), _apart(self.distance)
        return {
            "intra": intra,
            "inter": inter,
            "ratio": inter / intra if intra > 0 else float("nan"),
            "inter_target": _apart(self.target_distance),
            "intra_cosine": float(mean(np.diagonal(self.cosine))),
            "inter_cosine": _apart(self.cosine),
            "inter_cosine_target": _apart(self.target_cosine),
            "spread_source": float(mean(self.spread_source)),
            "spread_target": float(mean(self.spread_target)),
        }

    @property
    def matrices(self) -> dict[str, Scores]:
        """All (C, C), by name."""
        return {name: values for name, values in vars(self).items() if values.ndim == 2}

    def scalars(self) -> dict[str, Any]:
        """For a log: the summary, and the numbers per class."""
        named = {f"divergence/{key}": value for key, value in self.summary().items()}
        return named | {"gap": self.gap, "spread_source": self.spread_source, "spread_target": self.spread_target}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, None for NaN."""
        return plain({"summary": self.summary(), "gap": self.gap, **vars(self)})


def _apart(matrix: Scores) -> float:
    """The mean over the pairs of different classes, NaN without any."""
    return float(mean(matrix[~np.eye(len(matrix), dtype=bool)]))


# ---- a plane to look at ----


class Plane(NamedTuple):
    """points: a (R, 2) array per set of vectors; explained (2,): the axes' shares of the variance, 0..1."""

    points: list[npt.NDArray[np.float64]]
    explained: npt.NDArray[np.float64]


def principal_plane(sets: Sequence[Vectors]) -> Plane:
    """The first two principal components of several sets of vectors (R, D) in one basis.

    Each set is centred on its own mean first: two networks put their features around different means, which would
    otherwise be all that the plane shows. Signs are fixed: of an axis's entries the largest in size is positive.
    """
    centred = [vectors - vectors.mean(axis=0) for vectors in map(np.float64, sets)]
    stacked = np.concatenate(centred)
    _, values, axes = np.linalg.svd(stacked, full_matrices=False)
    axes, values = axes[:2], values**2
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    axes = axes * np.where(signs == 0, 1, signs)[:, None]
    total = values.sum()
    explained = values[:2] / total if total > 0 else np.zeros(len(axes))
    missing = 2 - len(axes)  # fewer than two vectors or channels
    points = [np.pad(vectors @ axes.T, ((0, 0), (0, missing))) for vectors in centred]
    return Plane(points, np.pad(explained, (0, missing)))


# ---- confusions and pseudo labels ----


class PairChange(NamedTuple):
    """Of the pixels of class `truth`, so many percent were, and are now, predicted as class `predicted`."""

    truth: int
    predicted: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """In percentage points; below 0 is better."""
        return self.after - self.before


def changed_pairs(before: Counts, after: Counts, *, most: int = 8) -> tuple[list[PairChange], list[PairChange]]:
    """The confusions between two classes that improved and that worsened most, at most `most` of each, best first.

    before, after: (C, C+1) counts over the same truths; the last column, no answer, is no confusion of two classes.
    """
    old, new = row_percent(before)[:, :-1], row_percent(after)[:, :-1]
    pairs = [
        PairChange(truth, predicted, float(old[truth, predicted]), float(new[truth, predicted]))
        for truth, predicted in np.ndindex(*old.shape)
        if truth != predicted and not np.isnan(old[truth, predicted] + new[truth, predicted])
    ]
    pairs.sort(key=lambda pair: pair.change)
    improved = [pair for pair in pairs[:most] if pair.change < 0]
    worsened = [pair for pair in pairs[::-1][:most] if pair.change > 0]
    return improved, worsened


def coverage(counts: Counts) -> Scores:
    """(C,) percent of each true class's pixels that have an answer at all, right or wrong; counts (C, C+1)."""
    return percent(counts[:, :-1].sum(axis=1), counts.sum(axis=1))
