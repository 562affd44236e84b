"""How hard each loss pulls: the parts make the whole, weights scale them, and nothing moves."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gradients import SOURCE, _batches, _state, gradient
from tests.conftest import Script
from tests.test_engine import train
from utils import build
from utils.engine import train_step
from utils.run_folder import read_run

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {
    "seg": 1.0,
    "adv": 1e-3,
    "stuff": 1e-2,
    "instances": 1e-2,
    "separation": 0.1,
    "aggregation": 0.1,
    "mixed": 1.0,
}
STAGE: dict[str, Any] = {
    "num_steps": 2,
    "save_pred_every": 2,
    "aim": "adaptive",
    "isia": "paper",
    "weights": WEIGHTS,
}


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every kind of loss."""
    small: dict[str, Any] = {"run": {"report": False}, "model": {"discriminator_width": 4}}
    return train(world, tmp_path_factory.mktemp("runs") / "run", **small, step1=STAGE)


def test_the_parts_make_the_whole(folder: Path) -> None:
    run = read_run(folder)
    classes = build.class_table(run.config)
    state, recipe = _state(run, classes)
    for bank in (state.method.stuff_bank, state.method.thing_bank):  # else little matches in so short a run
        bank.prototypes.normal_()
        bank.inserted.fill_(bank.slots + 1)
    batches = next(iter(_batches(run, classes)))
    parts = {name: gradient(state, recipe, name, batches)[0] for name in WEIGHTS}
    assert {name for name, part in parts.items() if not part.any()} == set()
    train_step(state, recipe, batches)
    backbone, _ = state.method.network.parameter_groups()
    whole = torch.cat([p.grad.flatten().double() for p in backbone if p.grad is not None])
    assert sum(parts.values()) == pytest.approx(whole, rel=1e-3, abs=1e-6)


def test_weights_scale_and_nothing_moves(folder: Path) -> None:
    run = read_run(folder)
    classes = build.class_table(run.config)
    state, recipe = _state(run, classes)
    batches = next(iter(_batches(run, classes)))
    before = copy.deepcopy((state.method.state_dict(), state.teacher.state_dict() if state.teacher else {}))
    once, value = gradient(state, recipe, "aggregation", batches)
    doubled = dataclasses.replace(recipe, weights={**recipe.weights, "aggregation": 0.2})
    twice, same = gradient(state, doubled, "aggregation", batches)
    assert value == same
    torch.testing.assert_close(twice, 2 * once)
    gradient(state, recipe, "mixed", batches)
    torch.testing.assert_close(
        before, (state.method.state_dict(), state.teacher and state.teacher.state_dict()), rtol=0, atol=0
    )


def test_the_command(folder: Path, tmp_path: Path, script: Script) -> None:
    code, printed, errors = script(
        "benchmarks.gradients", str(folder), "--updates", "2", "--json", str(tmp_path / "g.json")
    )
    assert code == 0, errors
    terms = json.loads((tmp_path / "g.json").read_text())["terms"]
    assert list(terms) == [line.split()[0] for line in printed.splitlines()[1:]]
    assert set(terms) == set(WEIGHTS)
    assert terms[SOURCE]["share"] == pytest.approx(1)
    assert terms[SOURCE]["cosine"] == pytest.approx(1)
    for name, of in terms.items():
        assert of["weight"] == WEIGHTS[name]
        assert abs(of["cosine"]) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("argv", "message"),
    [(("missing",), "is not the folder of a run"), (("missing", "--updates", "0"), "not a whole number of at least 1")],
)
def test_a_mistake_is_one_line(script: Script, argv: tuple[str, ...], message: str) -> None:
    code, _, errors = script("benchmarks.gradients", *argv)
    assert code == 2
    assert message in errors.splitlines()[-1]
