"""Lessons: other views of a batch for the student to learn from, with labels that a teacher gave."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.extras.classmix import paste, pasted
from model.extras.masking import masked
from model.extras.photometric import photometric
from model.extras.teacher import TeacherLabels
from model.regions import IGNORE

LESSON_LOSSES = ("online", "mixed", "masked")
EXTRA_LOSSES = ("entropy", *LESSON_LOSSES)


@dataclass(frozen=True, kw_only=True)
class LessonSettings:
    """threshold: probability from which a pixel of the teacher's counts as certain. weighted_by: whose certainty a
    label weighs by, its "pixel"'s or its "image"'s. block: side of a covered block in pixels; ratio: share covered."""

    threshold: float = 0.968
    weighted_by: str = "image"
    block: int = 32
    ratio: float = 0.7


class Lesson(NamedTuple):
    """images (B, 3, H, W) uint8, labels (B, H, W) int64 and weights (B, H, W); `name` is that of the loss."""

    name: str
    images: Tensor
    labels: Tensor
    weights: Tensor


class Labelled(NamedTuple):
    """images (B, 3, H, W) uint8 with labels (B, H, W) int64."""

    images: Tensor
    labels: Tensor


def lessons(
    wanted: Collection[str],
    source: Labelled,
    target: Tensor,
    pseudo: TeacherLabels,
    *,
    num_classes: int,
    settings: LessonSettings,
    generator: torch.Generator,
) -> Iterator[Lesson]:
    """The wanted ones of LESSON_LOSSES, one at a time: each is as large as a batch.

    target: images (B, 3, H, W) uint8. generator: the CPU's, for all draws. Source and target may differ in size: what
    they have in common, at a random place in the larger, is mixed.
    """
    if "online" in wanted:
        yield Lesson("online", photometric(target, generator=generator), *pseudo)
    if "mixed" in wanted:
        yield mixed(source, target, pseudo, num_classes=num_classes, generator=generator)
    if "masked" in wanted:
        covered = masked(target, block=settings.block, ratio=settings.ratio, generator=generator)
        yield Lesson("masked", photometric(covered, generator=generator), *pseudo)


def mixed(
    source: Labelled, target: Tensor, pseudo: TeacherLabels, *, num_classes: int, generator: torch.Generator
) -> Lesson:
    """The ClassMix of source images and target images (B, 3, H, W) of the same row; what is pasted weighs 1."""
    common = min(source.labels.shape[1], target.shape[2]), min(source.labels.shape[2], target.shape[3])
    theirs = _window(source.labels.shape[1:], common, generator)
    ours = _window(target.shape[2:], common, generator)
    labels, mine, weights = source.labels[theirs], pseudo.labels[ours], pseudo.weights[ours]
    mask = pasted(labels, num_classes=num_classes, generator=generator)
    images = paste(mask, source.images[theirs], target[ours])
    return Lesson(
        "mixed",
        photometric(images, generator=generator),
        paste(mask, labels, mine),
        paste(mask, torch.ones_like(weights), weights),
    )


def draws(seed: int, step: int, pair: int) -> torch.Generator:
    """The generator of an update's pair of batches: the same after an interruption, whatever else was drawn."""
    words = np.random.SeedSequence([seed, step, pair]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def lesson_loss(log_probabilities: Tensor, lesson: Lesson) -> Tensor:
    """Cross-entropy (B, C, H, W) with the lesson's labels, each pixel by its weight; mean over all pixels."""
    per_pixel = F.nll_loss(log_probabilities, lesson.labels, ignore_index=IGNORE, reduction="none")
    return (lesson.weights * per_pixel).mean()


def _window(size: torch.Size, common: tuple[int, int], generator: torch.Generator) -> tuple[Any, ...]:
    """A random place of the common size in (..., H, W)."""
    corners = [
        int(torch.randint(full - part + 1, (), generator=generator)) for full, part in zip(size, common, strict=True)
    ]
    return (..., *(slice(corner, corner + part) for corner, part in zip(corners, common, strict=True)))
