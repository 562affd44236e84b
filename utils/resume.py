"""An interrupted run goes on: what differs in its configuration is said, what would spoil it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.weight_files import first_line
from utils.checkpoint import CheckpointError, earlier_one, load_last
from utils.config import ConfigError, completed
from utils.console import say
from utils.networks import HUBS
from utils.run_files import CONFIG, LAST, LOG, MANIFEST, PREVIOUS
from utils.training import Training

AFTERWARDS = (PREVIOUS, MANIFEST)
"""What stands in a run's folder only after its first state."""

FILES = "sha256_of_names_and_sizes"


@dataclass(kw_only=True)
class Progress:
    """How far a run has come, but for its state.

    scores: of the last validation; seconds: until it was interrupted; lines: of the log as the state was saved that is
    resumed; snapshot_step: the update after which the last snapshot was taken; counts: what was skipped.
    """

    scores: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    lines: int | None = None
    snapshot_step: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def has_state(folder: Path) -> bool:
    """Whether a run that is to go on has a state; one that was left before its first snapshot has none and begins anew,
    which is said. Raises ConfigError where no run was begun, or where its state is gone."""
    if (folder / LAST).exists():
        return True
    ended = any((folder / name).exists() for name in AFTERWARDS)
    if ended or not (folder / LOG).exists():
        remedy = earlier_one(folder) if ended else "; to begin a run leave the flag out"
        raise ConfigError(f"--continue-train: there is no {folder / LAST} to go on from{remedy}")
    say(f"note: --continue-train: the run in {folder} was left before its first snapshot, so it begins anew")
    return False


def resumed(training: Training) -> tuple[Training, Progress]:
    """The run as `last.pt` has it, its state loaded in place, and how far it had come. Raises CheckpointError when that
    is of another network, class table, bank size, or of other images."""
    folder, saved = training.folder, load_last(training.folder)
    try:
        for reason in refusals(saved, training.meta, training.inputs):
            raise ValueError(reason)
        training.state.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / LAST} does not fit this configuration ({first_line(str(error))}); continue with the "
            f"settings in {folder / CONFIG}, or start in another --snapshot-dir"
        ) from None
    meta, step = saved["meta"], training.state.step
    for change in changes(completed(meta["config"]), training.config.to_dict()):
        say(f"note: differs from the interrupted run: {change}")
    say(f"continuing {folder} after {step} updates")
    progress = Progress(
        scores=meta.get("scores", {}),
        seconds=meta["seconds"],
        lines=meta.get("lines"),
        snapshot_step=meta.get("snapshot_step", step),
        counts=meta.get("counts", {}),
    )
    return replace(training, inputs={**training.inputs, "weights": meta["initial_weights"]}), progress


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting that differs, nested keys dotted."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += changes(left, right, f"{prefix}{key}.")
        elif plain(left) != plain(right):
            found.append(f"{prefix}{key}: {left} -> {right}")
    return found


def plain(value: Any) -> Any:
    """Tuples as the lists that a checkpoint's reader may see."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def refusals(saved: Mapping[str, Any], meta: Mapping[str, Any], inputs: Mapping[str, Any]) -> Iterator[str]:
    """Why a run cannot go on from a saved state: `key: old -> new`, with what would come of it.

    saved: the state; meta, inputs: what the run that wants to go on would write down. The networks' tensors
    are compared as they are loaded.
    """
    old = saved["meta"]
    for change in changes(saved["architecture"], meta["architecture"]):
        yield f"another network, {change}"
    classes = [{key: entry["classes"][key] for key in ("names", "stuff", "things")} for entry in (old, meta)]
    for change in changes(classes[0], classes[1]):
        yield f"other classes, {change}"
    stages = [entry["config"][entry["section"]] for entry in (old, meta)]
    start, other = (_place(stage["restore_from"]) for stage in stages)
    if start != other:
        yield f"a run that goes on keeps its start, restore_from: {start} -> {other}"
    before, now = map(images_per_update, stages)
    if before != now:
        yield f"batch_size * iter_size: {before} -> {now}, so images would come twice or never"
    before, now = (stage["num_prototype"] for stage in stages)
    if before != now:
        yield f"num_prototype: {before} -> {now}, so the banks would not hold what they held"
    yield from _other_translation(old["config"].get("translation", {}), meta["config"]["translation"])
    for domain, described in old.get("inputs", {}).items():
        before, now = (side[FILES] if isinstance(side, Mapping) else side for side in (described, inputs[domain]))
        if before != now:
            yield f"other files of the {domain} (their names, sizes or order), so images would come twice or never"


def _place(restore_from: str) -> str:
    """Where a run starts, however it is spelled; the name of a hub is that of no file."""
    return restore_from if restore_from in ("", *HUBS) else os.path.abspath(restore_from)


def _other_translation(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Settings of the translation that differ, where there is one before or now."""
    if {old.get("method", "none"), new["method"]} != {"none"}:
        for change in changes({**new, "method": "none", **old}, new, "translation."):
            yield f"{change}, so the source's images would be others"


def images_per_update(stage: Mapping[str, Any]) -> int:
    """Of each domain, by a stage's settings."""
    return stage["batch_size"] * stage["iter_size"]
