"""The long form of the tests of reliability: runs that are killed and resumed, and random input.

    make soak                                             20 kills and more, 100000 cases, half an hour at most
    python -m tests.soak --kills 40 --cases 0 --seed 7    kills alone, at the moments of an earlier soak

A training process is ended at a moment drawn from the printed seed, in an order drawn, too: by SIGKILL anywhere, by
SIGKILL while a checkpoint is half written, by SIGTERM, by Ctrl-C. The run is then resumed, ended again, and at last
trained to its end; it has to equal an uninterrupted one to the bit: networks, banks, optimisers, random state, log,
scores, every weights file. Stage 1 and stage 2, with and without loading processes, take turns. Exit code 1 for any
difference.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.origin import origin
from tests.fuzz import CASES
from tests.kill import WAYS, Stand, start_server, torture
from utils.config import Parser
from utils.console import say
from utils.flags import output_file
from utils.json_files import write_json
from utils.launch import launch

CHUNK = 1000  # cases between looks at the clock
Found = tuple[dict[str, Any], list[str]]
"""What was done, for the JSON, and what was wrong."""


def main(argv: Sequence[str] | None = None) -> None:
    """Kills, then cases, as many and as long as asked; prints the tally, and writes it if asked."""
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="by SIGKILL at least; as many ends on request")
    parser.add_argument("--cases", type=int, default=100_000, help="random inputs in all")
    parser.add_argument("--minutes", type=float, default=30, help="after which nothing new is begun")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the moments")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the tally there")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + 60 * arguments.minutes
    made = origin("tests.soak", argv, torch.device("cpu"))
    say(f"seed {arguments.seed}")
    ended, differing = kills(arguments.kills, arguments.seed, end)
    tried, failed = cases(arguments.cases, end)
    wrong = [*differing, *failed]
    for line in wrong:
        say(f"WRONG: {line}")
    if arguments.json:
        found = {"seed": arguments.seed, "kills": ended, "inputs": tried, "wrong": wrong}
        write_json(arguments.json, {**made, **found})
    raise SystemExit(bool(wrong))


def kills(number: int, seed: int, end: float) -> Found:
    """End runs before their time."""
    if not number:
        return {"runs": 0, "seconds": 0.0, "outcomes": {}}, []
    start_server()
    rng, tally, began, wrong = random.Random(seed), Counter[str](), time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        kinds = [("step1", 1), ("step2", 0), ("step1", 0), ("step2", 1)]
        stands = [
            Stand.make(Path(folder) / f"{section}_{workers}", section, num_workers=workers)
            for section, workers in kinds
        ]
        runs = 0
        for stand in cycle(stands):
            if killed(tally) >= number or time.monotonic() > end:
                break
            name = f"run{runs}"
            differing = torture(stand, name, rng.sample(WAYS, len(WAYS)), rng)
            runs += 1
            tally = sum((stand.tally for stand in stands), Counter())
            if differing:
                wrong.append(f"{stand.root.name}/{name} (seed {seed}): {', '.join(differing)}")
    seconds = time.monotonic() - began
    say(f"{killed(tally)} kills, {tally.total()} attempts to end one of {runs} runs in {seconds:.0f} s")
    for outcome, times in sorted(tally.items()):
        say(f"  {times:3d}  {outcome}")
    if killed(tally) < number:
        wrong.append(f"{killed(tally)} kills, {number} were asked for: the time was up")
    return {"runs": runs, "seconds": seconds, "outcomes": dict(sorted(tally.items()))}, wrong


def killed(tally: Counter[str]) -> int:
    """How many SIGKILLs ended a run before its time."""
    return sum(times for outcome, times in tally.items() if ": killed" in outcome)


def cases(number: int, end: float) -> Found:
    """Random input of every kind."""
    began, wrong = time.monotonic(), list[str]()
    left = {name: round(number * case.weight / sum(c.weight for c in CASES.values())) for name, case in CASES.items()}
    done: Counter[str] = Counter()
    for turn in count():
        names = [name for name in CASES if done[name] < left[name]]
        if not names or time.monotonic() > end:
            break
        name = names[turn % len(names)]
        try:
            CASES[name].run(min(CHUNK, left[name] - done[name]))
        except Exception as error:  # whatever it is, it is what a soak looks for
            left[name] = 0
            wrong.append(f"{name}: {error!r} {getattr(error, '__notes__', '')}")
        done[name] += min(CHUNK, left[name] - done[name]) if left[name] else 0
    seconds = time.monotonic() - began
    say(f"{sum(done.values())} random inputs in {seconds:.0f} s")
    for name, times in done.items():
        say(f"  {times:6d}  {name}")
    return {"seconds": seconds, "cases": dict(done)}, wrong


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    launch(main)
