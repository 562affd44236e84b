"""Numbers that are none: noticing them without waiting for the device, undoing an update that has them, and evidence.

An update is bad when a loss is not finite, or a gradient of the network or the discriminator. With fp16 a gradient that
is not finite is the loss scale's own business: the optimiser skips the update and the scale falls; that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from utils.background import write_png
from utils.checkpoint import save_state
from utils.json_files import write_json

MOST_IN_A_ROW = 20  # bad updates that may be skipped one after the other
GRADIENT = "gradient"
NOT_NUMBERS = "the network's scores are not numbers; use --precision fp32, or other weights if these are damaged"


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is no finite number; one line that says which, when, and what has been kept."""


def flaws(losses: Mapping[str, Tensor], module: nn.Module) -> Tensor:
    """(L+1,) bool on the losses' device: which of the L losses, in their order, are not finite, and whether a gradient
    of the module is not. Waits for nothing."""
    values = [torch.as_tensor(value, dtype=torch.float32) for value in losses.values()]
    gradient = _largest([p.grad for p in module.parameters() if p.grad is not None])
    return ~torch.isfinite(torch.stack([*values, gradient.to(values[0].device, torch.float32)]))


def is_bad(losses: Mapping[str, Tensor], module: nn.Module, *, scaled: bool) -> bool:
    """Whether an update is bad, before it is made; waits for the device. scaled: with a loss scale (fp16)."""
    found = flaws(losses, module)
    return bool((found[:-1] if scaled else found).any())


def is_finite(module: nn.Module) -> bool:
    """Whether all of the module's parameters and buffers are finite; waits for the device."""
    tensors = [*module.parameters(), *module.buffers()]
    return bool(torch.isfinite(_largest([tensor.detach() for tensor in tensors if tensor.is_floating_point()])))


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    """The largest magnitude: a sum of squares could overflow without any number being infinite."""
    return torch.nn.utils.get_total_norm([t for t in tensors if t.numel()], norm_type=math.inf)


class Watch:
    """Remembers, on the device, the first bad update since the last look, and how often the loss scale skipped one.

    scaled: gradients are those of a scaled loss (fp16).
    """

    def __init__(self, device: torch.device, *, scaled: bool) -> None:
        self._scaled = scaled
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._overflows = torch.zeros((), dtype=torch.int64, device=device)
        self._what: dict[str, Tensor] = {}

    def see(self, step: int, losses: Mapping[str, Tensor], module: nn.Module) -> None:
        """Take note of an update; the module still holds its gradients."""
        found = flaws(losses, module)
        if self._scaled:
            self._overflows += found[-1] & ~found[:-1].any()  # of a bad loss no gradient is finite
            found[-1] = False
        new = (self._first == 0) & found.any()
        for name, bad in zip((*losses, GRADIENT), found & new, strict=True):
            self._what[name] = self._what[name] | bad if name in self._what else bad
        self._first = torch.where(new, step, self._first)

    def first(self) -> tuple[int, list[str]]:
        """The first bad update since the last look, 0 for none, and what was not finite in it; waits for the device."""
        step = int(self._first)
        names = [name if name == GRADIENT else f"loss/{name}" for name, bad in self._what.items() if step and bool(bad)]
        self._first = torch.zeros_like(self._first)
        self._what = {}
        return step, names

    def overflows(self) -> int:
        """How many updates the loss scale has skipped; waits for the device."""
        return int(self._overflows)


def remembered(module: nn.Module) -> Callable[[], None]:
    """What puts a module's buffers (running statistics, banks) back to what they are now."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def undo() -> None:
        for buffer, before in kept:
            buffer.copy_(before)

    return undo


def keep_evidence(folder: Path, report: Mapping[str, Any], sides: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write what a bad update was made of: `report.json`, `state.pt`, and every image and label as the network got it.

    sides: name of a side -> batch with images (B,3,H,W) uint8, labels (B,H,W) and names.
    """
    files = {}
    for side, batch in sides.items():
        for index, name in enumerate(batch.names):
            stem = f"{side}_{index}"
            write_png(folder / f"{stem}.png", Image.fromarray(batch.images[index].permute(1, 2, 0).numpy()))
            write_png(folder / f"{stem}_label.png", Image.fromarray(batch.labels[index].numpy().astype(np.uint8)))
            files[stem] = name
    save_state(folder / "state.pt", state)
    write_json(folder / "report.json", {**report, "images": files})
