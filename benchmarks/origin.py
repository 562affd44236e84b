"""Where a result comes from: what every JSON below docs/results says beside its numbers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from utils.log import commit_of_code, device_name
from utils.run_folder import RunRecord


def command_line(words: Sequence[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(["python", *words])


def module_command(module: str, argv: Sequence[str] | None) -> str:
    """`python -m module`, with the arguments that its main function was given.

    Without --report-only: it trains nothing where all is finished, so the same command makes runs and result.
    """
    given = sys.argv[1:] if argv is None else argv
    return command_line(["-m", module, *(word for word in given if word != "--report-only")])


def origin(module: str, argv: Sequence[str] | None, device: torch.device) -> dict[str, Any]:
    """Command, commit, torch and device of what was measured in this process."""
    return {
        "command": module_command(module, argv),
        "commit": commit_of_code(),
        "torch": torch.__version__,
        "device": device_name(device),
    }


def made_with(runs: Iterable[RunRecord]) -> dict[str, list[str]]:
    """Devices, torch versions and commits of runs."""
    manifests = [run.manifest for run in runs]
    return {
        "devices": sorted({manifest["device"] for manifest in manifests}),
        "torch": sorted({manifest["packages"]["torch"] for manifest in manifests}),
        "commits": sorted({str(manifest["commit"]) for manifest in manifests}),
    }
