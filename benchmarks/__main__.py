"""Every figure of the project's speed, fast and naive side by side in one run.

    python -m benchmarks                        everything at the published sizes: minutes, of the naive loops mostly
    python -m benchmarks --quick                small inputs: the same table in less than a minute
    python -m benchmarks alignment scoring      these alone; --device cuda, --json FILE

Seconds are medians over repeats; "faster" is naive over fast. Memory is what the fast way needs: growth of this process
on the CPU, all that is allocated on CUDA. Input is made from seeds. Both ways' results are compared: exit code 1 where
they differ. The whole demo is timed by `python -m benchmarks.demo`, one iteration by part in `benchmarks.profile`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from importlib import import_module

import torch

from benchmarks.origin import origin
from benchmarks.timing import Result, duration, measure
from utils.config import Parser
from utils.console import say
from utils.flags import output_file
from utils.json_files import write_json
from utils.launch import launch
from utils.manifest import device_name
from utils.runtime import pick_device

MODULES = ("alignment", "iteration", "data", "pseudo_labels", "scoring")
HEAD = f"{'':<54} {'fast':>10} {'naive':>10} {'faster':>8} {'MiB':>8}"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run, and write the JSON: its origin, and `results`, each with the fields of `Result`."""
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(MODULES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small inputs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--json", type=output_file, metavar="FILE", default="", help="also write the figures there")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in MODULES:
            parser.error(f"there is no benchmark {name!r}; choose from {', '.join(MODULES)}")
    device = pick_device(arguments.device)
    made = origin("benchmarks", argv, device)

    say(f"torch {torch.__version__}, {device_name(device)}\n{HEAD}")
    results = []
    for result in run(arguments.names or MODULES, quick=arguments.quick, device=device):
        say(line(result))
        results.append(dataclasses.asdict(result))
    if arguments.json:
        write_json(arguments.json, {**made, "results": results})


def run(names: Sequence[str], *, quick: bool, device: torch.device) -> Iterator[Result]:
    """Measure every case of the named modules, one at a time."""
    for name in names:
        for case in import_module(f"benchmarks.{name}").cases(quick=quick, device=device):
            yield measure(case, device)


def line(result: Result) -> str:
    """One row of the table."""
    naive, ratio, peak = "-", "-", "-"
    if result.naive_s is not None and result.ratio is not None:
        naive, ratio = duration(result.naive_s), f"{result.ratio:.1f}x"
    if result.peak_mb is not None:
        peak = f"{result.peak_mb:.0f}"
    return f"{result.name:<54} {duration(result.fast_s):>10} {naive:>10} {ratio:>8} {peak:>8}"


if __name__ == "__main__":
    launch(main)
