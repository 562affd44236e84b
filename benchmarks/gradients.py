"""How hard each loss pulls at the network, and which way.

    python -m benchmarks.gradients runs/streets/step2                 where the run stands, on 8 updates of its own data
    python -m benchmarks.gradients runs/streets/step2 --updates 32 --json FILE

A weight says little: losses are means over pixels, regions, channels, and what reaches the network through them differs
by orders of magnitude. Here every term that a run was trained with goes backward alone, at its weight, from the run's
last state, banks included; nothing is learnt. Printed per term: its value, the norm of its gradient in the backbone,
that norm's share of the source cross-entropy's, and the cosine of the two gradients. In float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.origin import origin
from dataset.labels import ClassTable
from utils import datasets, networks
from utils.checkpoint import load_last
from utils.config import Config, ConfigError, Parser, Stage, build_config
from utils.console import progress, say
from utils.engine import Pair, TrainState, UpdateRule, accumulate
from utils.flags import at_least_one, output_file
from utils.json_files import write_json
from utils.launch import launch
from utils.nonfinite import remembered
from utils.prepared import prepare_source
from utils.run_files import LAST
from utils.runtime import pick_device, seed_everything

SOURCE = "seg"  # what the others are compared with
COLUMNS = ("weight", "value", "norm", "share", "cosine")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every term of a run's objective."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--snapshot-dir)")
    parser.add_argument("--updates", type=at_least_one, default=8, metavar="N", help="updates to average over (8)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the numbers here, too")
    arguments = parser.parse_args(argv)
    subject = Subject.read(arguments.run)
    made = origin("benchmarks.gradients", argv, subject.state.device)
    updates = min(arguments.updates, subject.stage.last_step)
    if updates < arguments.updates:
        say(f"note: the run has {updates} updates in all")
    terms = measure(subject, updates=updates)
    say(f"{'term':<14}" + "".join(f"{name:>10}" for name in COLUMNS))
    for name, of in terms.items():
        say(f"{name:<14}" + "".join(f"{of[key]:>10.2g}" for key in COLUMNS))
    if arguments.json:
        write_json(arguments.json, {**made, "run": str(arguments.run), "updates": updates, "terms": terms})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A run where it was left: networks, banks and the weights of its losses, by the settings that its state holds."""

    folder: Path
    config: Config
    stage: Stage
    classes: ClassTable
    state: TrainState
    rule: UpdateRule

    @classmethod
    def read(cls, folder: Path) -> Subject:
        """From `last.pt`. Raises ConfigError without source loss or learning backbone, CheckpointError for no run."""
        saved = load_last(folder)
        meta = saved["meta"]
        data = {**meta["config"], "classes": meta["classes"]}
        data["run"] = {**data["run"], "precision": "fp32", "compile": False, "bad_files": "error"}
        data[meta["section"]] = {**data[meta["section"]], "snapshot_dir": str(folder)}  # it may have been moved
        config = build_config(data, where=str(folder / LAST))
        stage: Stage = getattr(config, meta["section"])
        classes, device = datasets.class_table(config), pick_device(config.run.device)
        seed_everything(config.run.seed)
        network, normalize, _ = networks.resumed_network(str(folder), config, classes, device)
        method = networks.build_method(network, classes, config, stage, device)
        state = TrainState.fresh(method, stage, device=device, precision="fp32")
        state.load_state_dict(saved)
        state.method.train()
        rule = UpdateRule.of(config, stage, normalize)
        if SOURCE not in rule.active:
            raise ConfigError(f"{folder}: {SOURCE} has no weight there, nothing to compare with")
        if config.model.freeze_backbone:
            raise ConfigError(
                f"{folder}: [model] freeze_backbone = true, there is no gradient in the backbone to compare"
            )
        return cls(folder=folder, config=config, stage=stage, classes=classes, state=state, rule=rule)

    def updates(self) -> Iterator[Sequence[Pair]]:
        """The batches of the run's own updates, from the first."""
        config, stage, classes = self.config, self.stage, self.classes
        source, target = datasets.training_sets(config, stage, classes)
        prepare_source(config, stage, source, classes, resumed=True)
        return datasets.training_pairs(config, stage, source, target, start=0)


def measure(subject: Subject, *, updates: int) -> dict[str, dict[str, float]]:
    """Term -> its `weight`; its `value`, unweighted; `norm` of its weighted gradient in the backbone; `share` of the
    source cross-entropy's mean norm; `cosine` with that gradient. Means over updates.

    Raises ConfigError for a gradient that is not finite, and where the source has no labelled pixel at all.
    """
    weights = {name: weight for name, weight in subject.rule.weights.items() if weight}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in weights}
    with progress(total=updates, description="updates") as bar:
        for step, batches in enumerate(islice(subject.updates(), updates)):
            subject.state.step = step  # what is drawn for a lesson depends on it
            pulls = {name: pull(subject.state, subject.rule, name, batches) for name in weights}
            for name, (gradient, value) in pulls.items():
                found[name].append({"value": value, **_compared(gradient, pulls[SOURCE][0])})
            bar.update()
    means = {name: {key: float(np.mean([one[key] for one in of])) for key in of[0]} for name, of in found.items()}
    length = means[SOURCE]["norm"]
    if not (length and all(math.isfinite(of["norm"]) for of in means.values())):
        raise ConfigError(f"{subject.folder}: gradients of {_norms(means)}; nothing can be compared")
    return {name: {"weight": weights[name], **of, "share": of["norm"] / length} for name, of in means.items()}


def pull(state: TrainState, rule: UpdateRule, name: str, batches: Sequence[Pair]) -> tuple[Tensor, float]:
    """The gradient of one weighted term in all parameters of the backbone, flat, and the term's value. Statistics,
    banks and AIM's weights go back to what they were."""
    undo = remembered(state.method)
    alone = {other: weight if other == name else 0.0 for other, weight in rule.weights.items()}
    losses = accumulate(state, dataclasses.replace(rule, weights=alone), batches)
    undo()
    backbone, _ = state.method.network.parameter_groups()
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().double() for p in backbone]
    return torch.cat(parts).cpu(), float(losses[name])


def _compared(own: Tensor, other: Tensor) -> dict[str, float]:
    norm = float(own.norm())
    product = norm * float(other.norm())
    return {"norm": norm, "cosine": float(own @ other) / product if product else 0.0}


def _norms(means: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name} {of['norm']:g}" for name, of in means.items())


if __name__ == "__main__":
    launch(main)
