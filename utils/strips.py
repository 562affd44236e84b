"""Score maps at full size, a few rows at a time.

The C full-size maps of an image are what upsampling costs: 40 MB at 1024x512, written, read again and thrown away, for
two numbers a pixel. Here they are made in strips that stay in the processor's cache, and each strip is reduced at once.

Geometry: C classes, (h, w) the scores' grid, (H, W) the full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ENTRIES = 2**18  # of a strip on the CPU: a megabyte, beside what it is made from


def strips(scores: Tensor, size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """(C, h, w) to `size` = (H, W), bilinear with align_corners=True: (rows, their scores (C, rows, W)), top to bottom.

    Equal to `torch.nn.functional.interpolate` but for the last digit's rounding. A strip belongs to the caller, who may
    change it. Where the scores are not on the CPU there is one strip, of all rows.
    """
    classes, count, _ = scores.shape
    height, width = size
    wide = F.interpolate(scores, size=width, mode="linear", align_corners=True)
    position = torch.arange(height, dtype=torch.float32, device=scores.device)
    position *= (count - 1) / max(1, height - 1)
    upper = position.to(torch.int64).clamp_(max=count - 1)
    lower = (upper + 1).clamp_(max=count - 1)
    weight = (position - upper).to(scores.dtype)[:, None]
    step = max(1, _ENTRIES // (classes * width)) if scores.device.type == "cpu" else height
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        strip = wide.index_select(1, upper[rows])
        yield rows, strip.lerp_(wide.index_select(1, lower[rows]), weight[rows])


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


def class_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Classes at full size: the *logits* upsampled, then argmax (spec 1); (C, h, w) -> (H, W) uint8."""
    return torch.cat([highest(strip)[1] for _, strip in strips(logits, size)])
