"""The method of spec 3 in plain loops: slow and literal. Tests hold the fast code against it, benchmarks time it.

Images, classes, regions and pairs of them are visited one by one, in the order in which the spec names them. Feature
maps are (B, D, h, w) tensors, so that autograd gives the reference gradient; label maps are (B, h, w).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

IGNORE = 255
Pixel = tuple[int, int]
LabelMap = list[list[int]]


def resize_nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Spec 3.1: (B, H, W) labels at index floor(i * H / h) of both axes -> (B, h, w)."""
    (height, width), (h, w) = labels.shape[1:], size
    rows = [[[image[y * height // h][x * width // w] for x in range(w)] for y in range(h)] for image in labels.tolist()]
    return torch.tensor(rows, device=labels.device)


def pixels_of(label_map: LabelMap, category: int) -> list[Pixel]:
    """The mask of one class, in raster order."""
    return [(y, x) for y, row in enumerate(label_map) for x, label in enumerate(row) if label == category]


def components(label_map: LabelMap, category: int) -> list[list[Pixel]]:
    """Spec 3.1: 8-connected components of a class, largest first, ties by their first pixel in raster order."""
    found: list[list[Pixel]] = []
    left = dict.fromkeys(pixels_of(label_map, category))  # a set that keeps the raster order
    while left:
        part = [next(iter(left))]
        del left[part[0]]
        for y, x in part:  # which grows meanwhile
            near = [(v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2) if (v, u) in left]
            part.extend(near)
            for pixel in near:
                del left[pixel]
        found.append(part)
    return sorted(found, key=lambda part: (-len(part), min(part)))


def gap(features: Tensor, pixels: Sequence[Pixel]) -> Tensor:
    """Spec 3, GAP(f, M): the mean over a mask of one image's features (D, h, w) -> (D,)."""
    mask = features.new_zeros(features.shape[1:])
    mask[tuple(zip(*pixels, strict=True))] = 1
    return (features * mask).sum(dim=(1, 2)) / len(pixels)


def distance(u: Tensor, v: Tensor) -> Tensor:
    """Spec 3, d(u, v): mean over channels of |u - v|."""
    return (u - v).abs().mean()


def similarity(u: Tensor, v: Tensor) -> Tensor:
    """Spec 3.4, D(u, v): the cosine mapped to [0, 1]."""
    return (1 + (u @ v) / (u.norm() * v.norm())) / 2


def merge(prediction: Tensor, pseudo: Tensor) -> Tensor:
    """Spec 3.2: the prediction (B, h, w), overridden by the pseudo label (B, H, W) where one exists."""
    given, merged = resize_nearest(pseudo, prediction.shape[1:]), prediction.clone()
    for pixel in (given != IGNORE).nonzero().tolist():
        merged[tuple(pixel)] = given[tuple(pixel)]
    return merged


def binary_cross_entropy(logits: Tensor, label: int) -> float:
    """Spec 3.1b: -log of the probability given to the domain `label`, mean over the discriminator's map."""
    return fmean(math.log1p(math.exp(-value if label else value)) for value in logits.flatten().tolist())


def cross_entropy(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Spec 3.5: cross-entropy normalised by the valid pixels of the whole batch, 0 where there is none."""
    valid = (labels != IGNORE).nonzero().tolist()
    total = nothing(log_probabilities)
    for b, y, x in valid:
        total = total - log_probabilities[b, labels[b, y, x], y, x].double()
    return total / max(len(valid), 1)


def nothing(features: Tensor) -> Tensor:
    """An exact 0 that depends on the features."""
    return 0.0 * features.sum()


@dataclass(kw_only=True)
class Reference:
    """Banks, adaptive weights and alignment losses. A region is pooled anew whenever a pair of regions needs it.

    slots: K of each class; instances: components that count per class and image; classify: (D,) -> class id.
    precision: of the pooling and all that follows. inserts: everything each class ever inserted; zeta: the moving
    distance of each class seen.
    """

    stuff: Sequence[int]
    things: Sequence[int]
    slots: Mapping[int, int]
    instances: int
    classify: Callable[[Tensor], int]
    precision: torch.dtype = torch.float64
    inserts: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    zeta: dict[int, float] = field(default_factory=dict)

    # Spec 3.1, source banks.

    def observe_source(self, features: Tensor, prediction: Tensor, labels: Tensor) -> float:
        """Fill the banks; returns the share of the pooled vectors that the pooled classifier let in."""
        truth = resize_nearest(labels, prediction.shape[1:])
        right = torch.where(prediction == truth, truth, IGNORE).tolist()
        verdicts = []
        for image, label_map in zip(features, right, strict=True):
            for category, s in self._stuff(image, label_map):
                verdicts.append(self._insert(s, category))
            for category in self.things:
                for s in self._instances(image, label_map, category):
                    verdicts.append(self._insert(s, category))
        return fmean(verdicts) if verdicts else 0.0

    def _insert(self, s: Tensor, category: int) -> bool:
        accepted = self.classify(s) == category
        if accepted:
            self.inserts[category].append(s.detach())
        return accepted

    def full(self, category: int) -> bool:
        """Strictly more inserts than slots."""
        return len(self.inserts[category]) > self.slots[category]

    def bank(self, category: int) -> list[Tensor]:
        """What the ring holds, oldest first."""
        return self.inserts[category][-self.slots[category] :]

    def to_bank(self, u: Tensor, category: int) -> Tensor:
        """d(u, Bank): the minimum over the filled slots."""
        return (torch.stack(self.bank(category)) - u).abs().mean(dim=1).min()

    # Regions of one image, shared by all that follows.

    def _class(self, image: Tensor, label_map: LabelMap, category: int) -> Tensor | None:
        """GAP over all pixels of a class, None where it is absent."""
        mask = pixels_of(label_map, category)
        return gap(image.to(self.precision), mask) if mask else None

    def _instances(self, image: Tensor, label_map: LabelMap, category: int) -> list[Tensor]:
        """GAP of the largest components of a thing class."""
        parts = components(label_map, category)[: self.instances]
        return [gap(image.to(self.precision), part) for part in parts]

    def _stuff(self, image: Tensor, label_map: LabelMap) -> list[tuple[int, Tensor]]:
        """(k, GAP) of the stuff classes present."""
        pooled = [(k, self._class(image, label_map, k)) for k in self.stuff]
        return [(k, t) for k, t in pooled if t is not None]

    # Spec 3.2 and 3.3, matching. `power` 2 is the released d^2.

    def matching_stuff(self, features: Tensor, label_maps: Tensor, *, power: int = 1) -> Tensor:
        """L_cls: sum over stuff k (bank full, present, classifier agrees) of d(t_k, Bank_k), averaged over images."""
        total = nothing(features)
        for image, label_map in zip(features, label_maps.tolist(), strict=True):
            for k, t in self._stuff(image, label_map):
                if self.full(k) and self.classify(t) == k:
                    total = total + self.to_bank(t, k) ** power
        return total / len(features)

    def matching_instances(
        self, features: Tensor, label_maps: Tensor, *, weights: Mapping[int, float] | None = None, power: int = 1
    ) -> Tensor:
        """L_ins, or L_AIM under `weights` eta_k: sum over things k of eta_k / n_k sum_r d(t_kr, Bank_k)."""
        total = nothing(features)
        for image, label_map in zip(features, label_maps.tolist(), strict=True):
            for k in self.things:
                terms = self._distances(image, label_map, k)
                for term in terms:
                    eta = 1.0 if weights is None else weights[k]
                    total = total + eta / len(terms) * term**power
        return total / len(features)

    def _distances(self, image: Tensor, label_map: LabelMap, category: int) -> list[Tensor]:
        if not self.full(category):
            return []
        return [self.to_bank(t, category) for t in self._instances(image, label_map, category)]

    # Spec 3.3, adaptive weights.

    def observe_target(self, features: Tensor, label_maps: Tensor) -> None:
        """zeta_k <- 0.99 zeta_k + 0.01 d_k, or d_k the first time; d_k is the mean over images of the image's mean."""
        for k in self.things:
            images = [self._distances(*pair, k) for pair in zip(features, label_maps.tolist(), strict=True)]
            means = [fmean(term.item() for term in terms) for terms in images if terms]
            if means:
                d_k = fmean(means)
                self.zeta[k] = 0.99 * self.zeta.get(k, d_k) + 0.01 * d_k

    def eta(self) -> dict[int, float]:
        """eta_k = zeta_k / mean of zeta over the classes seen; 1 for a class never seen."""
        return {k: self.zeta[k] / fmean(self.zeta.values()) if k in self.zeta else 1.0 for k in self.things}

    # Spec 3.4, ISIA.

    def separation_released(self, features: Tensor, label_maps: Tensor) -> Tensor:
        """Sum over stuff k, over things m, of (1/n_m) sum_r (500/2048) (1 + cos(t_k, t_mr))/2."""
        total = nothing(features)
        for image, label_map in zip(features, label_maps.tolist(), strict=True):
            stuff = [t for k, t in self._stuff(image, label_map) if self.full(k) and self.classify(t) == k]
            for t_k in stuff:
                for m in filter(self.full, self.things):
                    instances = self._instances(image, label_map, m)
                    for t_mr in instances:
                        total = total + 500 / 2048 * similarity(t_k, t_mr) / len(instances)
        return total / len(features)

    def _valid(self, label_map: LabelMap) -> list[int]:
        """The classes whose bank is full and that are present."""
        return [k for k in (*self.stuff, *self.things) if self.full(k) and pixels_of(label_map, k)]

    def _source_centroid(self, category: int) -> Tensor:
        """c_s,k: the mean over the filled slots."""
        return torch.stack(self.bank(category)).mean(dim=0)

    def _target_centroid(self, image: Tensor, label_map: LabelMap, category: int) -> Tensor:
        """c_t,k of a class that is present: GAP over every pixel of the class."""
        centroid = self._class(image, label_map, category)
        assert centroid is not None
        return centroid

    def aggregation(self, features: Tensor, label_maps: Tensor) -> Tensor:
        """Mean over the valid k of d(c_s,k, c_t,k)."""
        total = nothing(features)
        for image, label_map in zip(features, label_maps.tolist(), strict=True):
            valid = self._valid(label_map)
            for k in valid:
                c_s, c_t = self._source_centroid(k), self._target_centroid(image, label_map, k)
                total = total + distance(c_s, c_t) / len(valid)
        return total / len(features)

    def separation(self, features: Tensor, label_maps: Tensor) -> Tensor:
        """Mean over the valid ordered pairs i != k of (1 + cos(c_s,i, c_t,k))/2."""
        total = nothing(features)
        for image, label_map in zip(features, label_maps.tolist(), strict=True):
            valid = self._valid(label_map)
            pairs = [(i, k) for i in valid for k in valid if i != k]
            for i, k in pairs:
                c_s, c_t = self._source_centroid(i), self._target_centroid(image, label_map, k)
                total = total + similarity(c_s, c_t) / len(pairs)
        return total / len(features)


@dataclass(kw_only=True)
class PooledOnce(Reference):
    """The same loops, but whoever first needs a region finds and pools it for all; so too a source centroid.

    Knows an image by its place in memory, and a bank by its class: serves a single iteration.
    """

    known: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def _class(self, image: Tensor, label_map: LabelMap, category: int) -> Tensor | None:
        look = partial(super()._class, image, label_map, category)
        return self._once(("class", image.data_ptr(), category), look)

    def _instances(self, image: Tensor, label_map: LabelMap, category: int) -> list[Tensor]:
        look = partial(super()._instances, image, label_map, category)
        return self._once(("instances", image.data_ptr(), category), look)

    def _source_centroid(self, category: int) -> Tensor:
        return self._once(("source", category), partial(super()._source_centroid, category))

    def _once(self, key: tuple[Any, ...], look: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = look()
        return self.known[key]
