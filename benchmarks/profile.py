"""Where the time of one training iteration goes, part by part.

    python -m benchmarks.profile                       stage 2 as released, published sizes, random images and weights
    python -m benchmarks.profile --quick --cpu         the same, small
    python -m benchmarks.profile --config configs/X.toml --stage step1 --override model.checkpointing=true
    python -m benchmarks.profile --config configs/X.toml --data      with the configuration's own images and loaders

Takes the training scripts' flags. Between parts the device is waited for, so that each pays for its own: the sum is
somewhat more than an iteration takes. Validation and snapshots are left out. Alignment holds bank update, matching, AIM
and ISIA. The last line counts convolutions and matrix products, forward and backward.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.iteration import QUICK, Iteration, Stopwatch, Utilisation
from benchmarks.origin import origin
from utils import datasets
from utils.config import Config, Parser
from utils.console import say
from utils.engine import Pair, on_device, train_step
from utils.flags import TRAINING, at_least_one, parse
from utils.json_files import write_json
from utils.launch import launch
from utils.prepared import prepare_source
from utils.runtime import peak_memory_mb, pick_device, prefetch

SECTIONS = ("step1", "step2")


def main(argv: Sequence[str] | None = None) -> None:
    """Profile an iteration of the configuration's stage."""
    config, options = parse(argv, description=__doc__, section=SECTIONS, flags=TRAINING, extend=_extend)
    arguments = options.arguments
    if arguments.quick:
        config = _small(config)
    device = pick_device(config.run.device)
    made = origin("benchmarks.profile", argv, device)
    iteration = Iteration.random(config, arguments.stage, device)
    updates = _real(config, arguments.stage, device) if arguments.data else itertools.repeat(iteration.batches)
    seconds = profile(iteration, updates, iterations=arguments.iterations)

    total = sum(seconds.values())
    for name, value in seconds.items():
        say(f"{name:<22} {value:9.4f} s {value / total:7.1%}")
    peak = peak_memory_mb(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    say(f"{'all':<22} {total:9.4f} s, peak memory {peak:.0f} MiB, {config.run.precision} on {device}{threads}")
    use = None
    if not config.run.compile:  # the counter sees no operation of a compiled network
        use = Utilisation.of(iteration, total)
        say(str(use))
    if options.json:
        found = {
            "precision": config.run.precision,
            "seconds": seconds,
            "peak_memory_mb": peak,
            "use": None if use is None else vars(use),
        }
        write_json(options.json, {**made, **found})


def profile(iteration: Iteration, updates: Iterator[Sequence[Pair]], *, iterations: int) -> dict[str, float]:
    """Mean seconds of an update by part, in the order of the parts, after one update that does not count."""
    train_step(iteration.state, iteration.rule, next(updates))
    watch = Stopwatch(iteration.state.device)
    rule = dataclasses.replace(iteration.rule, part=watch.part)
    for _ in range(iterations):
        with watch.part("waiting for data"):
            batches = next(updates)
        train_step(iteration.state, rule, batches)
    return {name: value / iterations for name, value in watch.seconds.items()}


def _real(config: Config, section: str, device: torch.device) -> Iterator[Sequence[Pair]]:
    """The updates of the stage, from its own images, as training reads them."""
    stage, classes = getattr(config, section), datasets.class_table(config)
    source, target = datasets.training_sets(config, stage, classes)
    with tempfile.TemporaryDirectory() as folder:  # what is prepared belongs to no run, and is in memory then
        kept = dataclasses.replace(stage, snapshot_dir=folder)
        prepare_source(config, kept, source, classes, resumed=False)
    updates = datasets.training_pairs(config, stage, source, target, start=0)
    return prefetch(updates, partial(on_device, device=device), device)


def _small(config: Config) -> Config:
    """The configuration at the sizes of the quick benchmark."""
    sections: dict[str, dict[str, object]] = {}
    for path, value in QUICK.items():
        section, key = path.split(".")
        sections.setdefault(section, {})[key] = value
    return dataclasses.replace(
        config,
        source={**config.source, **sections["source"]},
        target={**config.target, **sections["target"]},
        model=dataclasses.replace(config.model, **sections["model"]),  # type: ignore[arg-type]
    )


def _extend(parser: Parser) -> None:
    parser.add_argument("--stage", choices=SECTIONS, default="step2", help="section of the configuration")
    parser.add_argument("--quick", action="store_true", help="a small network and small images")
    parser.add_argument("--data", action="store_true", help="load the configuration's own images")
    parser.add_argument("--iterations", type=at_least_one, default=3, metavar="N", help="updates that count (3)")


if __name__ == "__main__":
    launch(main)
