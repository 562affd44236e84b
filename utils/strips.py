"""Score maps at full size, a few rows at a time.

The C full-size maps of an image are what upsampling costs: 40 MB at 1024x512, written, read again and thrown away, for
two numbers a pixel. Here they are made in strips that stay in the processor's cache, and each strip is reduced at once.

Geometry: C classes, (h, w) the scores' grid, (H, W) the full size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ENTRIES = 2**18  # of a strip on the CPU: a megabyte, beside what it is made from
_DEVICE_ENTRIES = 2**28  # elsewhere: a gigabyte, so that an image of Cityscapes is one strip


def strips(scores: Tensor, size: Sequence[int], *, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
    """(C, h, w) to `size` = (H, W), bilinear with align_corners=True: (rows, their scores (C, rows, W)), top to bottom.

    Equal to `torch.nn.functional.interpolate` but for the last digit's rounding, which does not depend on `within`: the
    rows that are wanted, by default all. A strip belongs to the caller, who may change it. Off the CPU strips are
    large, one for most images.
    """
    classes, count, _ = scores.shape
    height, width = size
    begin, end = (within.start, within.stop) if within else (0, height)
    ratio = (count - 1) / max(1, height - 1)
    first = max(0, int(begin * ratio) - 1)  # a row more on either side than is needed, whatever the rounding
    last = min(count - 1, int((end - 1) * ratio) + 2)
    wide = F.interpolate(scores[:, first : last + 1], size=width, mode="linear", align_corners=True)
    above, below, weight = _rows(count, height, scores, begin=begin, end=end)
    upper, lower = above - first, below - first
    step = max(1, (_ENTRIES if scores.device.type == "cpu" else _DEVICE_ENTRIES) // (classes * width))
    for start in range(0, end - begin, step):
        rows = slice(start, min(start + step, end - begin))
        strip = wide.index_select(1, upper[rows])
        yield (
            slice(begin + rows.start, begin + rows.stop),
            strip.lerp_(wide.index_select(1, lower[rows]), weight[rows, None]),
        )


def highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(C, ...) -> the highest score (...) and the first class that has it (...) uint8, as `scores.max(dim=0)` has them.

    For float32 on the CPU numpy compares with the highest score, three times faster than a maximum that carries an
    index along. There the class of a NaN is C, which is none.
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        values, classes = scores.max(dim=0)
        return values, classes.to(torch.uint8)
    values = scores.amax(dim=0)
    found = np.equal(scores.numpy(), values.numpy()).view(np.uint8)
    ranks = np.arange(len(scores), 0, -1, dtype=np.uint8)
    found *= ranks.reshape(-1, *[1] * values.dim())
    return values, torch.from_numpy(len(scores) - found.max(axis=0))


def class_and_confidence(strip: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (C, ...), which are used up -> the class (...) uint8 and the softmax at it, 1 / sum exp(l - max l)."""
    top, classes = highest(strip)
    return classes, strip.sub_(top).exp_().sum(dim=0).reciprocal_()


def classes_and_confidences(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """`class_and_confidence` of strips (C, rows, W), one below the other: (H, W) uint8 and (H, W)."""
    labels, confidences = zip(*map(class_and_confidence, parts), strict=True)
    return torch.cat(labels), torch.cat(confidences)


def highest_at(scores: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(C, h, w) -> the highest score at `size` = (H, W) and its class uint8, both (H, W): `highest` of every strip.

    On the CPU most pixels are not compared: where one class is the highest at both ends of a column between two rows of
    the grid, it is so in between, and its score is interpolated from theirs.
    """
    if scores.device.type != "cpu":
        parts = [highest(strip) for _, strip in strips(scores, size)]
        return torch.cat([peak for peak, _ in parts]), torch.cat([label for _, label in parts])
    wide = F.interpolate(scores, size=size[1], mode="linear", align_corners=True)
    upper, lower, weight = _rows(scores.shape[1], size[0], scores)
    peaks, labels = highest(wide)
    values = peaks.index_select(0, upper).lerp_(peaks.index_select(0, lower), weight[:, None])
    classes = labels.index_select(0, upper)
    changes = labels[:-1] != labels[1:]
    edges = torch.searchsorted(upper, torch.arange(len(labels))).tolist()  # the first full-size row of each of the grid
    for above, (start, stop) in enumerate(pairwise(edges)):
        (columns,) = torch.nonzero(changes[above], as_tuple=True)
        ends = wide[:, above : above + 2].index_select(2, columns)
        strip = torch.lerp(ends[:, :1], ends[:, 1:], weight[start:stop, None])
        for full, found in zip((values, classes), highest(strip), strict=True):
            full[start:stop].index_copy_(1, columns, found)
    return values, classes


def _rows(count: int, height: int, like: Tensor, *, begin: int = 0, end: int | None = None) -> tuple[Tensor, ...]:
    """For the full-size rows from `begin` to `end`: the grid's rows above and below, and the weight of the latter."""
    position = torch.arange(begin, height if end is None else end, dtype=torch.float32, device=like.device)
    position *= (count - 1) / max(1, height - 1)
    above = position.to(torch.int64).clamp_(max=count - 1)
    return above, (above + 1).clamp_(max=count - 1), (position - above).to(like.dtype)


def class_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Classes at full size: the *logits* upsampled, then argmax (spec 1); (C, h, w) -> (H, W) uint8."""
    return highest_at(logits, size)[1]
