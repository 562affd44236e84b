"""Training processes that are killed at random moments and resumed, and what they leave behind.

A run is started by a server that has imported everything and forks: a process of its own in a twentieth of the time.
Signals go to the training process alone; those that load its images end by themselves some seconds later.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.test_engine import differences, state_of
from tests.worlds import SELF_TRAINED, own_settings, save_png, write_own, write_settings
from utils import checkpoint
from utils.files import atomic_write
from utils.launch import launch

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
STEPS, EVERY = 12, 4
WAYS = ("at once", "inside a write", "SIGTERM", "SIGINT")
"""How a run ends before its time: SIGKILL at a random moment, SIGKILL with a checkpoint half written, on request."""


def start_server() -> None:
    """The process that the others are forked from; it has to find this project."""
    CONTEXT.set_forkserver_preload(["tests.kill"])
    with _inside(ROOT):
        forkserver.ensure_running()
    first = CONTEXT.Process(target=torch.zeros, args=(1,))  # waits until everything is imported
    first.start()
    first.join()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---- in the process ----


def train(section: str, arguments: list[str], output: Path, half_written: Path | None) -> None:
    """What `python train_<section>.py ARGUMENTS` does, its output appended to a file.

    half_written: made as soon as half of a checkpoint after the first is written; the process then waits for its end.
    """
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # As in a process of its own: the server ignores Ctrl-C, and its children would start theirs by a server, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    if half_written:
        checkpoint.atomic_write = partial(_slow_write, half_written)
    sys.argv = [f"train_{section}.py", *arguments]
    launch(importlib.import_module(f"train_{section}").main)


@contextlib.contextmanager
def _slow_write(half_written: Path, path: Path) -> Iterator[Path]:
    with atomic_write(path) as temporary:
        yield temporary
        if path.name == checkpoint.LAST and path.exists():  # from the second on: there is one to go on from
            os.truncate(temporary, temporary.stat().st_size // 2)
            half_written.touch()
            time.sleep(60)


# ---- outside of it ----


@dataclass
class Stand:
    """A world, a configuration that has everything random switched on, and where its runs go."""

    root: Path
    section: str
    seconds: float = 0.0
    tally: Counter[str] = field(default_factory=Counter)

    @classmethod
    def make(cls, root: Path, section: str, **run: Any) -> Stand:
        """Data, pseudo labels and configuration below `root`, and the uninterrupted run, which is timed."""
        write_own(root)
        for path in sorted((root / "labels").glob("t*.png")):
            label = np.array(Image.open(path))
            label[:, ::7] = 255
            save_png(root / "pseudo" / path.name, label)
        stage = {
            **{"num_steps": STEPS, "save_pred_every": EVERY, "iter_size": 2, "batch_size": 1},
            **{"random_mirror": True, "random_scale": True, "restore_from": "random", "keep": 2},
            "pseudo_labels": str(root / "pseudo"),
        }
        extras = {**SELF_TRAINED, "entropy": 1e-2, "online": 0.1}
        settings = own_settings(
            root,
            step1=stage,
            step2={**stage, "weights": extras},
            translation={"method": "fda"},
            run={"precision": "bf16", "num_workers": 1, **run},
        )
        write_settings(root / "own.toml", settings)
        stand = cls(root, section)
        began = time.monotonic()
        stand.run("whole")
        stand.seconds = time.monotonic() - began
        return stand

    def start(self, name: str, half_written: Path | None = None) -> Any:
        """A process that trains into the folder `name`, or goes on there."""
        folder = self.root / name
        arguments = ["--config", str(self.root / "own.toml"), "--snapshot-dir", str(folder)]
        if (folder / checkpoint.LAST).exists():
            arguments.append("--continue-train")
        output = self.root / f"{name}.txt"
        process = CONTEXT.Process(target=train, args=(self.section, arguments, output, half_written))
        process.start()
        return process

    def run(self, name: str) -> None:
        """Train to the end, which has to come."""
        process = self.start(name)
        process.join(300)
        assert process.exitcode == 0, (self.root / f"{name}.txt").read_text()

    def interrupt(self, name: str, way: str, after: float) -> bool:
        """Start or go on, and end the run in one of `WAYS` after so many seconds; False where it was done before."""
        half_written = self.root / f"{name}.half" if way == "inside a write" else None
        process = self.start(name, half_written)
        self._wait(process, half_written, after)
        if process.exitcode is None:
            os.kill(process.pid, {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(way, signal.SIGKILL))
        process.join(120)
        if half_written:
            half_written.unlink(missing_ok=True)
        self.tally[f"{way}: {self._outcome(name, process.exitcode)}"] += 1
        return process.exitcode != 0

    def _wait(self, process: Any, half_written: Path | None, after: float) -> None:
        if half_written is None:
            process.join(after)
            return
        while process.is_alive() and not half_written.exists():
            time.sleep(0.01)

    def _outcome(self, name: str, code: int) -> str:
        if code == 0:
            return "was done before"
        if code == -signal.SIGKILL:
            return "killed" if (self.root / name / checkpoint.LAST).exists() else "killed before the first checkpoint"
        ends = {-signal.SIGTERM: "ended before it trained", 128 + signal.SIGTERM: "saved", 128 + signal.SIGINT: "saved"}
        assert code in ends, f"exit code {code}\n" + (self.root / f"{name}.txt").read_text()
        return ends[code]

    def against_the_whole(self, name: str) -> list[str]:
        """Where a run that was interrupted differs from the one that was not: state, weights, log, metrics, files."""
        whole, folder = self.root / "whole", self.root / name
        found = differences(_comparable(whole), _comparable(folder))
        names = [{path.name for path in run.iterdir()} for run in (whole, folder)]
        found += [f"{name} on one side" for name in sorted(names[0] ^ names[1]) if name != checkpoint.PREVIOUS]
        for path in sorted(whole.glob("*.pth")):
            if path.read_bytes() != (folder / path.name).read_bytes():
                found.append(path.name)
        if (whole / "log.jsonl").read_text() != (folder / "log.jsonl").read_text():
            found.append("log.jsonl")
        return found


def _comparable(folder: Path) -> dict[str, Any]:
    """Everything of a run that does not depend on when and where it ran."""
    result: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text())["result"]
    kept = {key: result[key] for key in ("steps", "last", "best_selected_on_target_labels", "skipped")}
    return {"state": state_of(folder), "result": kept}


def torture(stand: Stand, name: str, ways: list[str], rng: random.Random) -> list[str]:
    """One run, ended in each of the ways in turn, then trained to its end; where it differs from the whole one.

    A moment is drawn from the time that the whole run takes: late ones find it done, which costs nothing.
    """
    for way in ways:
        if not stand.interrupt(name, way, rng.uniform(0, stand.seconds)):
            break
    stand.run(name)
    return stand.against_the_whole(name)
