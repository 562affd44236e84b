"""The machine: device, precision, seeds, and how a script ends."""

from __future__ import annotations

import contextlib
import random
import re
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

from utils.config import ConfigError

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"[run] device {name!r} is unknown; use auto, cpu, cuda or cuda:1")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name} is not there: {torch.cuda.device_count()} CUDA devices found; use --cpu")
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Native mixed precision: convolutions in `precision`, batch norm and losses in float32 (what O2 meant)."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Dynamic loss scaling, needed and enabled for fp16 alone."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; data order and augmentation have generators of their own (dataset.loading)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: allocated on the CUDA device, or resident on the host for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def launch(main: Callable[[Sequence[str] | None], None], mistakes: tuple[type[Exception], ...]) -> None:
    """Run a script's main and leave: 0, or 2 with one clear line for a user's mistake, or 1 with a traceback."""
    try:
        main(None)
    except mistakes as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
