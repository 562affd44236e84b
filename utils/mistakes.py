"""What a user can get wrong, and how a script answers."""

from __future__ import annotations

import errno
import os

import torch

from dataset.corpora import DataError
from model.deeplab import NetworkError
from model.weights import WeightsError
from utils.checkpoint import CheckpointError
from utils.config import ConfigError
from utils.log import LogError
from utils.nonfinite import NonFiniteError

MISTAKES = (
    *(ConfigError, DataError, WeightsError, NetworkError, CheckpointError, LogError),
    *(FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),  # output where it cannot be
)
"""One clear line and exit code 2."""

MEMORY_HELP = (
    "what needs less: a smaller batch_size with a larger iter_size, a smaller size of [source] and [target], "
    "--precision bf16 or fp16, [model] checkpointing = true, output_stride = 16 (without feature_strides)"
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, or what one file may take


def answer(error: Exception) -> tuple[int, str] | None:
    """Exit code and line for an error that a script ends with; None for one that deserves its traceback."""
    if isinstance(error, MISTAKES):
        return 2, _in_the_way(error) if isinstance(error, OSError) else str(error)
    if isinstance(error, NonFiniteError):
        return 1, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        reason = ". ".join(str(error).split(". ")[:2])  # what was wanted; the rest is about the allocator
        return 2, f"{reason}; {MEMORY_HELP} (docs/performance.md)"
    if isinstance(error, OSError) and error.errno in FULL:
        return 2, f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room and start again"
    return None


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
