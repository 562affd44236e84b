"""States that survive a crash: the resumable state, the one before it, the state of every random generator."""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import atomic_write
from utils.run_files import LAST, PREVIOUS

STATE_FORMAT = "bafft-train-state-1"

# What `torch.load(weights_only=True)` accepts. Compared by exact type: numpy.float64 is a float, yet refused.
_PLAIN_TYPES = frozenset({bool, int, float, str, type(None)})
_TENSOR_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


class CheckpointError(ValueError):
    """A training state that cannot be read or does not fit; the message is one line for the user."""


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a training state atomically, with `STATE_FORMAT` under its key "format".

    `state` may hold tensors, bool, int, float, str and None in nested dicts, lists and tuples. Anything
    else is a TypeError that names its place: it would be written without complaint and be refused when the
    run is resumed.
    """
    marked = {**state, "format": STATE_FORMAT}
    _require_plain(marked, "state")
    buffer = io.BytesIO()  # torch would make an error without a cause of a full disk, and write the file's name down
    torch.save(marked, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a run's state to resume from, atomically; the one before it stays as `PREVIOUS`."""
    path = folder / LAST
    if path.exists():
        with atomic_write(folder / PREVIOUS) as temporary:
            _same_content(path, temporary)
    save_state(path, state)


def _same_content(path: Path, twin: Path) -> None:
    try:
        os.link(path, twin)  # costs nothing
    except OSError:  # not every file system can
        shutil.copyfile(path, twin)


def load_last(folder: Path) -> dict[str, Any]:
    """The state to resume a run from. Raises CheckpointError where it cannot be read, and names the one before it if
    that is whole."""
    try:
        return load_state(folder / LAST)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{earlier_one(folder)}") from None


def earlier_one(folder: Path) -> str:
    """How to go on from the state before the last, if that is whole; else nothing."""
    try:
        step = load_state(folder / PREVIOUS).get("step")
    except CheckpointError:
        return ""
    move = shlex.join(["mv", str(folder / PREVIOUS), str(folder / LAST)])
    return f". The state before it, after {step} updates, is whole; to go on from that: {move}"


def _require_plain(value: Any, place: str) -> None:
    kind = type(value)
    if kind in _PLAIN_TYPES or kind in _TENSOR_TYPES:
        return
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(key, f"a key of {place}")
            _require_plain(item, f"{place}[{key!r}]")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{place}[{index}]")
    else:
        raise TypeError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}: a training state holds tensors and plain values only"
        )


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU, without executing pickled code.

    Every byte is checked against the archive's CRC-32 first. A missing, damaged or foreign file is a
    CheckpointError, and so is one of another format. The key "format" is part of the result.
    """
    path = Path(path)
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch does not list the ways in which a foreign archive fails
        raise CheckpointError(
            f"{path}: not a training state ({type(error).__name__}); resume from a run's last.pt"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if not isinstance(found, str):
        raise CheckpointError(
            f"{path}: not a training state (it has no format mark); a run resumes from its last.pt, "
            "plain weights start a stage with --restore-from"
        )
    if found != STATE_FORMAT:
        raise CheckpointError(f"{path}: its format is {found!r}, this version reads {STATE_FORMAT!r}")
    return state


def _check_archive(path: Path) -> None:
    """Raise CheckpointError unless `path` is a whole zip archive (torch's format) whose checksums hold."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; resume from the last.pt that a run has written")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged entry fails in the decompressor, the text codec, the decryption...
        raise CheckpointError(
            f"{path}: truncated, or not a training state ({error}); resume from a complete last.pt"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, the checksum of {damaged!r} does not hold; resume from another copy")


def require_keys(state: Mapping[str, Any], keys: Iterable[str], *, where: str = "training state") -> None:
    """Raise CheckpointError, naming them, when `state` lacks one of `keys` or has one besides them."""
    wanted = set(keys)
    missing = sorted(wanted - state.keys())
    unexpected = sorted(str(key) for key in state.keys() - wanted)
    if missing or unexpected:
        groups = {"missing": missing, "unexpected": unexpected}
        found = "; ".join(f"{label} {', '.join(names)}" for label, names in groups.items() if names)
        raise CheckpointError(f"{where}: {found} (written by another version or with other settings?)")


def rng_state() -> dict[str, Any]:
    """Python's, numpy's global, torch's CPU and every CUDA device's generator, as tensors and plain values.

    CUDA is left alone as long as nothing has used it: its list is then empty.
    """
    version, words, gauss = random.getstate()
    algorithm, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "algorithm": str(algorithm),
            "key": torch.from_numpy(np.asarray(key).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put every generator back where `rng_state` found it.

    A run may go on with another number of CUDA devices: those that one side lacks are left alone.
    """
    require_keys(state, ("python", "numpy", "torch", "cuda"), where="random state")
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = legacy["key"].numpy().astype(np.uint32)
    np.random.set_state((legacy["algorithm"], key, legacy["position"], legacy["has_gauss"], legacy["cached_gauss"]))
    torch.set_rng_state(state["torch"])
    for device, words in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(words, device)
