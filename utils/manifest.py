"""How a result came about: the manifest of a run, the commit of the code, the name of the device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.json_files import write_json

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "tensorboard",
    "connected-components-3d",
)


def write_manifest(
    path: str | os.PathLike[str], extra: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> None:
    """Write how a run came about: versions, commit, device, command line, and `extra`.

    `extra` is the caller's part (such as the inputs' sha256, peak memory, time); a key of the manifest's
    own in it is a ValueError.
    """
    manifest: dict[str, Any] = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "device": device_name(torch.device(device)),
        "commit": commit_of_code(),
    }
    taken = sorted(manifest.keys() & extra.keys())
    if taken:
        raise ValueError(f"the manifest's own keys cannot be given by the caller: {', '.join(taken)}")
    write_json(path, {**manifest, **extra})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU's and how many of its threads torch uses: another one rounds otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    """The CPU's own name where the system tells (Linux), else what it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()


def commit_of_code() -> str | None:
    """The git commit of this code, with `-dirty` where files differ but those of docs/; None outside of git."""
    return _commit(Path(__file__).resolve().parents[1])


def _commit(folder: Path) -> str | None:
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    # Results are written below docs/ while other runs go on, and change none of them.
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it has nothing to say, fails or is not there."""
    command = ["git", "-C", str(folder), *words]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
