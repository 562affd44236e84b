"""How hard each loss pulls at the network, and which way.

    python -m benchmarks.gradients runs/streets/step2                 where the run stands, on 8 updates of its own data
    python -m benchmarks.gradients runs/streets/step2 --updates 32 --json FILE

A weight says little: losses are means over pixels, regions, channels, and what reaches the network through them differs
by orders of magnitude. Here every term that a run was trained with goes backward alone, at its weight, from the run's
last state, banks included; nothing moves. Printed per term: its value, the norm of its gradient in the backbone, that
norm's share of the source cross-entropy's, and the cosine of the two gradients. In float32.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.labels import ClassTable
from utils import build
from utils.checkpoint import load_last
from utils.config import ConfigError, Parser
from utils.engine import Pair, Recipe, TrainState, train_step
from utils.flags import at_least_one
from utils.log import progress, say, write_json
from utils.nonfinite import remembered
from utils.run_folder import RunRecord, read_run
from utils.runtime import launch, pick_device, seed_everything

SOURCE = "seg"  # what the others are compared with


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every term of a run's objective."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--snapshot-dir)")
    parser.add_argument("--updates", type=at_least_one, default=8, metavar="N", help="updates to average over (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    arguments = parser.parse_args(argv)
    run = read_run(arguments.run)
    terms = measure(run, updates=arguments.updates)
    say(f"{'term':<14}{'weight':>10}{'value':>10}{'gradient':>10}{'share':>10}{'cosine':>10}")
    for name, of in terms.items():
        say(f"{name:<14}" + "".join(f"{of[key]:>10.2g}" for key in ("weight", "value", "norm", "share", "cosine")))
    if arguments.json:
        write_json(arguments.json, {"run": str(run.folder), "updates": arguments.updates, "terms": terms})


def measure(run: RunRecord, *, updates: int) -> dict[str, dict[str, float]]:
    """Term -> its `weight`; its `value`, unweighted; `norm` of its weighted gradient in the backbone; `share` of the
    source cross-entropy's; `cosine` with it. Means over updates. Raises ConfigError where the run has no such loss."""
    classes = build.class_table(run.config)
    state, recipe = _state(run, classes)
    if SOURCE not in recipe.active:
        raise ConfigError(f"{run.folder}: {SOURCE} has no weight there, nothing to compare with")
    terms = {name: weight for name, weight in recipe.weights.items() if weight}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in terms}
    with progress(total=updates, description="updates") as bar:
        for batches in islice(_batches(run, classes), updates):
            reference, _ = gradient(state, recipe, SOURCE, batches)
            for name, weight in terms.items():
                own, value = gradient(state, recipe, name, batches)
                found[name].append({"weight": weight, "value": value, **_compared(own, reference)})
            bar.update()
    return {name: {key: float(np.mean([one[key] for one in of])) for key in of[0]} for name, of in found.items()}


def _compared(own: Tensor, reference: Tensor) -> dict[str, float]:
    norm, length = float(own.norm()), float(reference.norm())
    product = norm * length
    return {"norm": norm, "share": norm / length, "cosine": float(own @ reference) / product if product else 0.0}


def gradient(state: TrainState, recipe: Recipe, name: str, batches: Sequence[Pair]) -> tuple[Tensor, float]:
    """The gradient of one weighted term in all parameters of the backbone, flat, and the term's value. Learning rates
    are 0, and statistics, banks and teacher go back to what they were."""
    undo, teacher = remembered(state.method), copy.deepcopy(state.teacher)
    alone = {other: weight if other == name else 0.0 for other, weight in recipe.weights.items()}
    losses = train_step(state, dataclasses.replace(recipe, weights=alone), batches)
    undo()
    state.teacher = teacher
    backbone, _ = state.method.network.parameter_groups()
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().double() for p in backbone]
    return torch.cat(parts).cpu(), float(losses[name])


def _state(run: RunRecord, classes: ClassTable) -> tuple[TrainState, Recipe]:
    """Networks, banks and weights of the losses as the run's last checkpoint has them; nothing learns any more."""
    settings = dataclasses.replace(run.config.run, precision="fp32", nonfinite="error")
    config, stage, device = dataclasses.replace(run.config, run=settings), run.stage, pick_device(settings.device)
    seed_everything(config.run.seed)
    network, _ = build.network_and_report(config, "random", classes, device)
    state = TrainState.fresh(
        build.build_method(network, classes, config, stage, device), stage, device=device, precision="fp32"
    )
    state.load_state_dict(load_last(run.folder))
    for group in (*state.optimizer.param_groups, *state.optimizer_d.param_groups):
        group["lr"] = 0.0
    state.method.train()
    return state, Recipe.of(config, stage, build.normalizer(network, config))


def _batches(run: RunRecord, classes: ClassTable) -> Iterator[Sequence[Pair]]:
    """The run's own updates, from the first."""
    config, stage = run.config, run.stage
    source = build.source_dataset(config, stage, classes)
    source.translate = build.translator(config, stage, classes, resumed=True)
    source.shows = build.rare_first(config, stage, source, classes, resumed=True)
    needs_target = Recipe.needs_target(dataclasses.asdict(stage.weights), stage.statistics)
    target = build.target_dataset(config, stage, classes) if needs_target else None
    return build.training_pairs(config, stage, source, target, start=0)


if __name__ == "__main__":
    launch(main, build.MISTAKES)
