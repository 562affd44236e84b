"""The machine: device, precision, seeds."""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from utils.config import ConfigError

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

Item = TypeVar("Item")


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


def tune_kernels(device: torch.device, *, deterministic: bool = False) -> None:
    """Let cuDNN measure its algorithms once for each shape: every image of a run has one of few sizes.

    deterministic: only kernels whose sums have one order, chosen without measuring. Before the first use of CUDA.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS as it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


def compile_network(network: nn.Module, device: torch.device, *, backend: str = "inductor") -> None:
    """Compile the network's forward and backward in place: its modules, names and state dict stay what they are.

    backend: of torch.compile. Raises ConfigError where it cannot work: without a C++ compiler (CPU) or Triton (CUDA),
    or on a Python that it does not know.
    """
    try:
        torch.compile(torch.sin, backend=backend)(torch.zeros(2, device=device))
    except RuntimeError as error:  # also the base of all of torch's own errors of the compiler
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"[run] compile: torch.compile does not work on this machine ({reason}); leave it out, it changes no result"
        ) from None
    network.compile(dynamic=False, backend=backend)


def prefetch(items: Iterable[Item], move: Callable[[Item], Item], device: torch.device) -> Iterator[Item]:
    """Every item after `move`, which copies it to the device; on CUDA the next one is copied while this one is used.

    The copies run on a stream of their own, and without waiting for the host where they start in pinned memory.
    """
    if device.type != "cuda":
        yield from map(move, items)
        return
    copies = torch.cuda.Stream(device)
    held: list[tuple[Item, torch.cuda.Event]] = []
    for item in items:
        # Memory that a former item leaves is reused by this copy: only after the work queued so far, which read it.
        copies.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(copies):
            held.append((move(item), copies.record_event()))
        if len(held) > 1:
            yield _arrived(held.pop(0), device)
    for entry in held:
        yield _arrived(entry, device)


def _arrived(entry: tuple[Item, torch.cuda.Event], device: torch.device) -> Item:
    """A copied item; the work queued from here on starts after its copy has ended."""
    item, copied = entry
    torch.cuda.current_stream(device).wait_event(copied)
    return item


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
