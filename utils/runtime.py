"""The machine: device, precision, seeds, and how a script ends."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import nn

from utils.config import ConfigError
from utils.interrupts import NO_READER, interruptible
from utils.nonfinite import NonFiniteError

MEMORY_HELP = (
    "what needs less: a smaller batch_size with a larger iter_size, a smaller size of [source] and [target], "
    "--precision bf16 or fp16, [model] checkpointing = true, output_stride = 16 (without feature_strides)"
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, or what one file may take
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


def launch(main: Callable[[Sequence[str] | None], None], mistakes: tuple[type[Exception], ...]) -> None:
    """Run a script's main and leave: 0, or 2 with one clear line for a user's mistake, a full disk or too little
    memory, 1 with one for numbers that are none, 130 for Ctrl-C, 141 where nobody reads the output any more (`| head`),
    or 1 with a traceback."""
    with interruptible():
        try:
            main(None)
        except mistakes as error:
            _leave(2, _in_the_way(error) if isinstance(error, OSError) else str(error))
        except NonFiniteError as error:
            _leave(1, str(error))
        except torch.OutOfMemoryError as error:
            reason = ". ".join(str(error).split(". ")[:2])  # what was wanted; the rest is about the allocator
            _leave(2, f"{reason}; {MEMORY_HELP} (docs/performance.md)")
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                raise SystemExit(NO_READER) from None
            if error.errno not in FULL:
                raise
            _leave(2, f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room and start again")


def _in_the_way(error: OSError) -> str:
    """What is wrong with a place that something was to be written to, or read from."""
    place = error.filename2 or error.filename
    if place is None:
        return str(error)
    if isinstance(error, IsADirectoryError):
        return f"{place}: a folder is there, where a file should be"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        what = "a file" if os.path.exists(place) or not os.path.islink(place) else "a link that leads nowhere"
        return f"{place}: {what} is there, where a folder should be ({error.strerror})"
    return f"{place}: {error.strerror}"


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone; what is left to say is then dropped."""
    if not hasattr(select, "poll"):  # Windows
        return False
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return True


def _leave(code: int, reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(code) from None
