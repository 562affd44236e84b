"""Where a result comes from: what every JSON below docs/results says beside its numbers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from utils.manifest import commit_of_code, device_name
from utils.run_folder import RunRecord

SHORTCUTS = {"--report-only": 0, "--known": 1}
"""Flags that make nothing by themselves -> how many words follow them."""


MADE_WITH = ("devices", "torch", "commits")
"""What a result of many runs says of them."""


def command_line(words: Sequence[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(["python", *words])


def module_command(module: str, argv: Sequence[str] | None) -> str:
    """`python -m module`, with the arguments that its main function was given.

    Without those that only save work (SHORTCUTS): the command makes the result from nothing, too.
    """
    words, skipped = list[str](), 0
    for word in sys.argv[1:] if argv is None else argv:
        flag, joined, _ = word.partition("=")
        if skipped:
            skipped -= 1
        elif flag in SHORTCUTS:
            skipped = 0 if joined else SHORTCUTS[flag]
        else:
            words.append(word)
    return command_line(["-m", module, *words])


def origin(module: str, argv: Sequence[str] | None, device: torch.device) -> dict[str, Any]:
    """Command, commit, torch and device of what was measured in this process."""
    return {
        "command": module_command(module, argv),
        "commit": commit_of_code(),
        "torch": torch.__version__,
        "device": device_name(device),
    }


def union(*sources: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What results of several origins were made with."""
    return {name: sorted({value for source in sources for value in source.get(name, ())}) for name in MADE_WITH}


def made_with(runs: Iterable[RunRecord]) -> dict[str, list[str]]:
    """Devices, torch versions and commits of runs."""
    manifests = [run.manifest for run in runs]
    return {
        "devices": sorted({manifest["device"] for manifest in manifests}),
        "torch": sorted({manifest["packages"]["torch"] for manifest in manifests}),
        "commits": sorted({manifest["commit"] for manifest in manifests if manifest["commit"]}),  # none outside of git
    }
