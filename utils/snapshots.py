"""The snapshots of a run: `<prefix>_<update>.pth`, its twin `_D.pth`, and what they take on the disk."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

from torch import nn

from utils.config import Stage

ENDS = (".pth", ".json", "_D.pth", "_D.json")  # of the files of one snapshot


def snapshots(folder: Path, prefix: str) -> list[int]:
    """The updates after which a folder holds a snapshot, in no order."""
    pattern = re.compile(re.escape(prefix) + r"_(\d+)\.pth")
    return [int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]


def drop_old(folder: Path, stage: Stage, step: int) -> None:
    """Remove the snapshots of the run up to `step` but the latest `stage.keep`; 0 keeps them all."""
    found = snapshots(folder, stage.prefix)
    old = sorted(number for number in found if number <= step)[: -stage.keep] if stage.keep else []
    for path in (folder / f"{stage.prefix}_{number}{end}" for number in old for end in ENDS):
        path.unlink(missing_ok=True)


def disk_use(folder: Path, stage: Stage, network: nn.Module, discriminator: nn.Module, method: nn.Module) -> str:
    """What a run will take on the disk, roughly, and what there is; `method` holds the two networks and the banks."""
    weights, count = _bytes(network) + _bytes(discriminator), math.ceil(stage.last_step / stage.save_pred_every)
    kept = min(count, stage.keep or count)
    # Two states, each with the momentum of the network and Adam's two moments of the discriminator.
    states = 2 * (_bytes(method) + _bytes(network) + 2 * _bytes(discriminator))
    needed, free = states + (kept + 1) * weights, shutil.disk_usage(folder).free
    text = f"{kept} snapshots, the best and the state will take about {_gigabytes(needed)}, {_gigabytes(free)} are free"
    return text if needed < free else f"{text}: too little; --keep N keeps the latest N snapshots alone"


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
