"""How hard each loss pulls: the parts make the whole, weights scale them, and nothing moves."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gradients import SOURCE, Subject, measure, pull
from tests.conftest import Script
from tests.test_engine import differences, train
from utils.config import ConfigError
from utils.engine import accumulate

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {
    "seg": 1.0,
    "adv": 30.0,  # heavy enough for a part that lacks to show
    "stuff": 0.1,
    "instances": 0.1,
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
    return train(world, tmp_path_factory.mktemp("runs") / "run", step1=STAGE)


@pytest.fixture
def subject(folder: Path) -> Subject:
    found = Subject.read(folder)
    for bank in (found.state.method.stuff_bank, found.state.method.thing_bank):  # else little matches in so short a run
        bank.prototypes.normal_()
        bank.inserted.fill_(bank.slots + 1)
    return found


def test_the_parts_make_the_whole(subject: Subject) -> None:
    batches = next(iter(subject.updates()))
    parts = {name: pull(subject.state, subject.rule, name, batches)[0] for name in WEIGHTS}
    accumulate(subject.state, subject.rule, batches)
    backbone, _ = subject.state.method.network.parameter_groups()
    whole = torch.cat([p.grad.flatten().double() for p in backbone if p.grad is not None])
    error = (sum(parts.values()) - whole).norm()
    assert {name for name, part in parts.items() if part.norm() < 20 * error} == set()
    assert error < 1e-4 * whole.norm()


def test_nothing_is_learnt(subject: Subject) -> None:
    before = copy.deepcopy(subject.state.state_dict())
    measure(subject, updates=2)
    subject.state.step = before["step"]
    assert differences(before, subject.state.state_dict()) == []


def test_a_weight_scales(subject: Subject) -> None:
    batches = next(iter(subject.updates()))
    once, value = pull(subject.state, subject.rule, "aggregation", batches)
    doubled = dataclasses.replace(subject.rule, weights={**subject.rule.weights, "aggregation": 0.2})
    twice, same = pull(subject.state, doubled, "aggregation", batches)
    assert value == same
    torch.testing.assert_close(twice, 2 * once)


def test_the_command_reads_what_the_state_says(folder: Path, tmp_path: Path, script: Script) -> None:
    """Of a moved run without manifest, whose configuration file says something else."""
    moved = tmp_path / "step2"
    shutil.copytree(folder, moved)
    (moved / "manifest.json").unlink()
    (moved / "config.toml").write_text("classes = 'cityscapes'\n")
    code, printed, errors = script("benchmarks.gradients", str(moved), "--json", str(tmp_path / "g.json"))
    assert code == 0, errors
    assert printed.startswith("note: the run has 2 updates in all\n")
    content = json.loads((tmp_path / "g.json").read_text())
    assert content["command"].startswith("python -m benchmarks.gradients ")
    terms = content["terms"]
    assert content["updates"] == 2
    assert list(terms) == [line.split()[0] for line in printed.splitlines()[2:]]
    assert {name: of["weight"] for name, of in terms.items()} == WEIGHTS
    assert (terms[SOURCE]["share"], terms[SOURCE]["cosine"]) == (pytest.approx(1), pytest.approx(1))
    assert all(abs(of["cosine"]) <= 1 + 1e-9 for of in terms.values())


def test_gradients_that_are_no_numbers_are_said(subject: Subject) -> None:
    backbone, _ = subject.state.method.network.parameter_groups()
    with torch.no_grad():
        backbone[0].fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"seg nan.*nothing can be compared"):
        measure(subject, updates=1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(("missing",), "last.pt"), (("missing", "--updates", "0"), "not a whole number of at least 1")],
)
def test_a_mistake_is_one_line(script: Script, argv: tuple[str, ...], message: str) -> None:
    code, _, errors = script("benchmarks.gradients", *argv)
    assert code == 2
    assert message in errors.splitlines()[-1]
