"""Who may import whom, read off the syntax trees.

`model/` and `dataset/` import neither each other nor `utils/`. Of `utils/`, `COMPOSING` brings the two rooms together;
every other module there is a leaf and imports neither. Nobody imports a script: neither those at the top nor a module
with an `if __name__ == "__main__"`. Such modules may compose, wherever they stand. Tests may import what they test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "dataset", "utils", "benchmarks", "tests")
COMPOSING = {
    *("utils.datasets", "utils.prepared", "utils.networks", "utils.quick_check", "utils.prediction_run"),
    *("utils.pseudo_label_run", "utils.evaluation_run", "utils.scoring_run", "utils.pictures_run", "utils.recorded"),
    *("utils.launch", "utils.mistakes", "utils.notes", "utils.resume", "utils.training", "utils.training_run"),
    *("utils.cyclegan", "utils.engine", "utils.inspection", "utils.report.write", "utils.stage"),
}
ALLOWED_ROOMS = {"model": {"model"}, "dataset": {"dataset"}, "utils": {"utils"}}


def sources() -> dict[str, ast.Module]:
    """Dotted module name -> syntax tree, of every Python file of the project."""
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_bytes()) for path in files}


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of what a module imports, inside functions too; of `from a import b`, both a and a.b."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_script(tree: ast.Module) -> bool:
    """Whether the module has an `if __name__ == "__main__"`."""
    return any(isinstance(node, ast.If) and "'__main__'" in ast.unparse(node.test) for node in tree.body)


TREES = sources()
SCRIPTS = {name for name, tree in TREES.items() if is_script(tree) or "." not in name}
ROOM_MODULES = sorted(name for name in TREES if name.split(".")[0] in ALLOWED_ROOMS and name not in SCRIPTS)


def rooms_used(module: str) -> set[str]:
    """The rooms of the project that a module imports from."""
    return {name.split(".")[0] for name in imported(module, TREES[module])} & {"model", "dataset", "utils"}


def test_the_scan_sees_the_house() -> None:
    historical = {"train_step1", "Generate_Pseudo_Label", "train_step2", "evaluate_cityscapes", "compute_iou"}
    assert historical <= SCRIPTS
    assert {"model.bafft", "dataset.corpora", "utils.config", *COMPOSING} <= set(ROOM_MODULES)


@pytest.mark.parametrize("module", ROOM_MODULES)
def test_a_room_imports_itself_alone_unless_it_composes(module: str) -> None:
    allowed = {"model", "dataset", "utils"} if module in COMPOSING else ALLOWED_ROOMS[module.split(".")[0]]
    assert rooms_used(module) <= allowed


@pytest.mark.parametrize("module", sorted(COMPOSING))
def test_a_composing_module_composes(module: str) -> None:
    """Else it belongs among the leaves."""
    assert rooms_used(module) & {"model", "dataset"}


@pytest.mark.parametrize("module", sorted(name for name in TREES if not name.startswith("tests.")))
def test_nobody_imports_a_script(module: str) -> None:
    assert not set(imported(module, TREES[module])) & SCRIPTS


def test_distributed_training_has_one_home() -> None:
    users = {name for name in TREES if any("torch.distributed" in used for used in imported(name, TREES[name]))}
    assert users <= {"utils.runtime"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import utils.log", {"utils.log"}),
        ("from utils import datasets", {"utils", "utils.datasets"}),
        ("def f():\n    from dataset.labels import IGNORE", {"dataset.labels", "dataset.labels.IGNORE"}),
        ("from . import sibling", {"model", "model.sibling"}),
        ("from .regions import pool", {"model.regions", "model.regions.pool"}),
    ],
)
def test_the_reader_of_imports(source: str, expected: set[str]) -> None:
    assert set(imported("model.bafft", ast.parse(source))) == expected
