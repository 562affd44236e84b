"""Target labels are for the oracle, validation and diagnostics: without them a training is the same training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Script
from tests.test_engine import differences, state_of, train
from tests.worlds import ALIGNED, SELF_TRAINED, write_own
from utils.config import Stage, build_config, read_config

EXTRAS = {"entropy": 1e-2, "online": 1.0, "mixed": 1.0, "masked": 1.0}
STEPS: dict[str, Any] = {"num_steps": 3, "save_pred_every": 3, "rare_classes": 0.05, "teacher_threshold": 0.3}
EVERYTHING: dict[str, Any] = {
    "translation": {"method": "lab"},
    "step1": {**STEPS, "weights": {**ALIGNED, **EXTRAS}},
    "step2": {
        **STEPS,
        "weights": {**SELF_TRAINED, **EXTRAS},
        "label_map": "merged",
        "aim": "adaptive",
        "isia": "paper",
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


def pipeline(world: Path, folder: Path, script: Script, **sections: Any) -> list[Any]:
    """Both stages with every part of the method and every extra; thresholds and pseudo labels, and the two states."""
    folder.mkdir()
    settings = EVERYTHING | sections
    first = train(world, folder / "step1", "step1", **settings)
    labels = folder / "pseudo"
    flags = ("--config", str(folder / "step1.toml"), "--restore-from", str(first), "--save", str(labels))
    code, _, errors = script("Generate_Pseudo_Label.py", *flags)
    assert code == 0, errors
    step2 = {**settings["step2"], "restore_from": str(first), "pseudo_labels": str(labels)}
    second = train(world, folder / "step2", "step2", **(settings | {"step2": step2}))
    written = {path.name: path.read_bytes() for path in sorted(labels.glob("*.png"))}
    return [state_of(first), written, state_of(second)]


def test_training_without_the_targets_labels_gives_the_same_weights(tmp_path: Path, script: Script) -> None:
    """Those of target train are gone, or garbage, and with validation off those of target val, too."""
    seeing = tmp_path / "seeing"
    write_own(seeing, images=3, validation=1)
    first = pipeline(seeing, tmp_path / "a", script)
    assert first[1], "no pseudo labels: the comparison is empty"
    for name in ("removed", "garbage"):
        blind = tmp_path / name
        shutil.copytree(seeing, blind)
        for path in [*(blind / "labels").glob("t*.png"), *(blind / "labels").glob("v*.png")]:
            path.unlink()
            if name == "garbage":
                path.write_bytes(b"no label")
        second = pipeline(blind, tmp_path / f"{name}_runs", script, target={"val_list": ""})
        for ours, theirs in zip(first, second, strict=True):
            assert differences(comparable(ours), comparable(theirs)) == []


def comparable(state: Any) -> Any:
    """A state without the scores of validation, which one of the two runs does not have, and without its places."""
    return {key: value for key, value in state.items() if key not in ("meta", "best", "best_step")}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_no_recipe_but_an_oracle_trains_on_the_targets_own_labels(path: Path) -> None:
    config = build_config(read_config(path), where=str(path))
    stages: tuple[Stage, ...] = (config.step1, config.step2)
    images = [
        {key: domain.get(key) or "" for key in ("root", "images", "train_list")}
        for domain in (config.source, config.target)
    ]
    assert (images[0] == images[1]) == path.stem.endswith("_oracle")
    assert all(stage.split == "train" for stage in stages)
