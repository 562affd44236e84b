"""Which checkpoint? Criteria that look at a network's answers on target images and at no label.

Each is 0..1 (`margin`: -1..1), higher is better, and a network that answers one class everywhere, ever so surely, does
not win: all but `information` are means over *all* classes, in which a class that is never answered counts 0, and
`information` has the diversity of the answers as one of its two terms.

Geometry: C classes, D channels, (h, w) the feature grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.metrics import Counts, joint_counts

CRITERIA = {
    "confidence": "mean probability of the answer",
    "certainty": "1 - mean entropy of the answer / log C",
    "information": "mutual information of image and answer: (entropy of the mean answer - mean entropy) / log C",
    "flips": "IoU with the answers on the mirrored image",
    "teacher": "IoU with the run's teacher, or with the mean of its checkpoints",
    "margin": "silhouette of the classes' features: (b - a) / max(a, b), a to the own centroid, b to the next",
}
CRITERION = "information"  # that decides unless another is asked for; fixed beforehand, not by what it chose
Labels = npt.NDArray[np.uint8]


class Tally:
    """What one network answers on images, one `add` each; `labels` keeps the answers (h, w)."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.labels: list[Labels] = []
        self._pixels = torch.zeros(num_classes, dtype=torch.float64)
        self._confidence, self._certainty, self._mean = (torch.zeros_like(self._pixels) for _ in range(3))
        self._entropy = 0.0
        self._flips = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._vectors: list[Tensor] = []
        self._classes: list[Tensor] = []

    def add(self, probabilities: Tensor, mirrored: Tensor, features: Tensor) -> None:
        """An image: probabilities (C, h, w), those of the mirrored image turned back (C, h, w), features (D, h, w)."""
        flat = probabilities.flatten(1).double().cpu()
        confidence, label = flat.max(dim=0)
        entropy = torch.special.entr(flat).sum(dim=0)
        ones = torch.ones_like(confidence)
        for total, values in (
            (self._pixels, ones),
            (self._confidence, confidence),
            (self._certainty, 1 - entropy / math.log(max(self.num_classes, 2))),
        ):
            total.index_add_(0, label, values)
        self._mean += flat.sum(dim=1)
        self._entropy += float(entropy.sum())
        self.labels.append(label_map(probabilities))
        self._flips += joint(self.labels[-1], label_map(mirrored), self.num_classes)
        self._pool(label, features.flatten(1).float().cpu())

    def _pool(self, label: Tensor, features: Tensor) -> None:
        """Keep the mean feature of each class's answers."""
        member = torch.nn.functional.one_hot(label, self.num_classes).T.float()
        pixels = member.sum(dim=1)
        present = pixels > 0
        self._vectors.append((member[present] @ features.T) / pixels[present, None])
        self._classes.append(present.nonzero()[:, 0])

    def scores(self) -> dict[str, float]:
        """Every criterion but `teacher`, which needs another network."""
        answered = self._pixels.clamp(min=1)
        pixels = self._pixels.sum().clamp(min=1)
        diversity = torch.special.entr(self._mean / pixels).sum()
        information = (float(diversity) - self._entropy / float(pixels)) / math.log(max(self.num_classes, 2))
        return {
            "confidence": float((self._confidence / answered).mean()),
            "certainty": float((self._certainty / answered).mean()),
            "information": max(0.0, information),  # not below 0 but for rounding
            "flips": agreement_iou(self._flips),
            "margin": self._margin(),
        }

    def _margin(self) -> float:
        """The simplified silhouette: of each vector against class centroids; mean per class, then over all classes.

        As with Rousseeuw, a class of one vector has 0: it is its own centroid, however stray the answer.
        """
        if not self._vectors:
            return 0.0
        vectors, category = torch.cat(self._vectors), torch.cat(self._classes)
        present = category.unique()
        if len(present) < 2:
            return 0.0
        centroids = torch.stack([vectors[category == number].mean(dim=0) for number in present])
        distance = torch.cdist(vectors, centroids, p=1.0)
        own = category[:, None] == present[None]
        near = distance[own]
        other = distance.masked_fill(own, math.inf).amin(dim=1)
        silhouette = (other - near) / torch.maximum(other, near).clamp(min=torch.finfo(near.dtype).tiny)
        of_classes = [silhouette[category == number] for number in present]
        return sum(float(of.mean()) for of in of_classes if len(of) > 1) / self.num_classes


def label_map(probabilities: Tensor) -> Labels:
    """The answers (h, w) of probabilities (C, h, w)."""
    return probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()


def agreement_iou(pairs: npt.NDArray[np.int64]) -> float:
    """Mean IoU 0..1 over all classes of counts (C, C); a class that neither of the two answers counts 0."""
    both = np.diagonal(pairs)
    either = pairs.sum(axis=0) + pairs.sum(axis=1) - both
    return float((both / np.maximum(either, 1)).mean())


def joint(first: Labels, second: Labels, num_classes: int) -> Counts:
    """(C, C) pixels of every pair of answers of two maps (h, w)."""
    return joint_counts(first, second)[:num_classes, :num_classes]


def agreement(first: Sequence[Labels], second: Sequence[Labels], num_classes: int) -> float:
    """`agreement_iou` of two networks' answers on the same images."""
    parts = [joint(left, right, num_classes) for left, right in zip(first, second, strict=True)]
    return agreement_iou(np.sum(parts, axis=0))


def choose(scores: Mapping[int, float]) -> int:
    """The update whose checkpoint scores best; of equals the latest."""
    return max(scores, key=lambda step: (scores[step], step))


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation -1..1, equal values sharing their mean rank; None where one side has one rank."""
    x, y = (_ranks(values) - (len(values) - 1) / 2 for values in (left, right))
    spread = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / spread if spread > 0 else None


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """0-based ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse.reshape(-1)]
