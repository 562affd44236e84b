"""The recipes of the paper's benchmarks: published settings, and all five scripts on a tiny world of each layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Script
from tests.worlds import LABEL_IDS, TILES, naive_iou, write_corpus
from utils.config import Config, build_config, read_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
ROADS = ROOT.parent / "shared" / "data" / "roads_epfl_to_massachusetts"
PAIRS = {  # recipe -> source and target corpus
    "gta5_to_cityscapes": ("gta5", "cityscapes"),
    "synthia_to_cityscapes": ("synthia", "cityscapes"),
    "massbuildings_to_inria": ("massachusetts_buildings", "inria"),
    "inria_to_massbuildings": ("inria", "massachusetts_buildings"),
    "massroads_to_deepglobe": ("massachusetts_roads", "deepglobe"),
    "deepglobe_to_massroads": ("deepglobe", "massachusetts_roads"),
}
STREETS, AERIAL = list(PAIRS)[:2], list(PAIRS)[2:]
VARIANTS = [*PAIRS, *(f"{name}_paper" for name in PAIRS), *(f"{name}_improved" for name in STREETS)]


def recipe(name: str) -> Config:
    return build_config(read_config(CONFIGS / f"{name}.toml"), where=name)


def plain(name: str) -> str:
    """The recipe that a variant varies."""
    return name.removesuffix("_paper").removesuffix("_improved")


# ---- settings ----


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recipe_joins_its_two_corpora(name: str) -> None:
    config = recipe(name)
    assert (config.source["corpus"], config.target["corpus"]) == PAIRS[plain(name)]


@pytest.mark.parametrize("name", AERIAL)
def test_the_settings_of_the_aerial_scripts(name: str) -> None:
    """Spec 4, the aerial recipe."""
    config = recipe(name)
    assert config.source["size"] == config.target["size"] == [512, 512]
    assert config.pseudo_label.size == (512, 512)
    assert config.model.input_mean == (103.280916, 108.728603, 100.012306)
    assert [stage.batch_size for stage in (config.step1, config.step2)] == [2, 2]
    assert [stage.last_step for stage in (config.step1, config.step2)] == [200000, 200000]
    assert [stage.learning_rate_d for stage in (config.step1, config.step2)] == [1e-3, 1e-4]


@pytest.mark.parametrize("name", [*PAIRS, "roads_epfl_to_massachusetts"])
def test_released_and_paper_differ_in_their_losses_alone(name: str) -> None:
    """Spec 3.5: the terms of either objective; everything else is the same recipe. Our own adapts by other losses."""
    released = recipe(name if name in PAIRS else f"{name}_released").to_dict()
    paper = recipe(f"{name}_paper").to_dict()
    terms = {
        label: [{term for term, weight in config[stage]["weights"].items() if weight} for stage in ("step1", "step2")]
        for label, config in (("released", released), ("paper", paper))
    }
    matching = {"seg", "adv", "stuff", "instances"}
    assert terms["released"] == [matching, matching | {"pseudo", "separation"}]
    aligned = {"seg", "adv", "instances", "separation", "aggregation"}
    assert terms["paper"] == [aligned, aligned | {"pseudo"}]
    assert [released[stage]["aim"] for stage in ("step1", "step2")] == ["none", "released"]
    assert [released[stage]["isia"] for stage in ("step1", "step2")] == ["none", "released"]
    assert {paper[stage][key] for stage in ("step1", "step2") for key in ("aim", "isia")} == {"adaptive", "paper"}
    for config in (released, paper):
        config.pop("evaluate")
        for stage in ("step1", "step2"):
            for key in ("weights", "aim", "isia"):
                config[stage].pop(key)
    assert released == paper


@pytest.mark.parametrize("name", STREETS)
def test_improved_adds_translation_and_classmix_and_nothing_else(name: str) -> None:
    released, improved = recipe(name).to_dict(), recipe(f"{name}_improved").to_dict()
    assert (released["translation"].pop("method"), improved["translation"].pop("method")) == ("none", "lab")
    for stage in ("step1", "step2"):
        assert (released[stage]["weights"].pop("mixed"), improved[stage]["weights"].pop("mixed")) == (0.0, 1.0)
    assert released.pop("evaluate")["save"] != improved.pop("evaluate")["save"]
    assert released == improved


def test_later_files_are_laid_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[run]\nseed = 1\nnum_workers = 1\n")
    (tmp_path / "b.toml").write_text("[run]\nseed = 2\nprecision = 'bf16'\n")
    (tmp_path / "c.toml").write_text("extends = ['a.toml', 'b.toml']\n[run]\nprecision = 'fp16'\n")
    assert read_config(tmp_path / "c.toml") == {"run": {"seed": 2, "num_workers": 1, "precision": "fp16"}}


# ---- the five scripts ----


def shrunk(name: str, root: Path) -> list[str]:
    """Flags and overrides that make a recipe small; they change sizes and lengths, not what is read or computed."""
    settings: dict[str, Any] = {
        "source.root": str(root / "source"),
        "target.root": str(root / "target"),
        "source.size": [64, 48],
        "target.size": [64, 48],
        "model.name": "resnet18",
        "model.width": 4,
        "model.restore_from": "random",
        "run.device": "cpu",
        "run.num_workers": 0,
        "run.log_every": 1,
        "run.tensorboard": False,
        "pseudo_label.size": [64, 48],
        "evaluate.save": "predictions",
    }
    for stage in ("step1", "step2"):
        settings |= {f"{stage}.{key}": 2 for key in ("num_steps", "num_steps_stop", "save_pred_every")}
        settings[f"{stage}.num_prototype"] = 1
    overrides = [word for key, value in settings.items() for word in ("--override", f"{key}={json.dumps(value)}")]
    return ["--config", str(CONFIGS / f"{name}.toml"), *overrides]


@pytest.mark.parametrize("name", VARIANTS)
def test_all_five_scripts_run_on_the_official_layout(
    name: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = PAIRS[plain(name)]
    write_corpus(source, tmp_path / "source")
    write_corpus(target, tmp_path / "target")
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    common = shrunk(name, tmp_path)
    truth = tmp_path / "target" / ("gtFine/val" if target == "cityscapes" else f"SegmentationClass{folder(target)}")
    for command in ("train_step1.py", "Generate_Pseudo_Label.py", "train_step2.py", "evaluate_cityscapes.py"):
        code, _, errors = script(command, *common)
        assert code == 0, errors
    code, _, errors = script("compute_iou.py", str(truth), "predictions", *common, "--json", "scores.json")
    assert code == 0, errors

    for stage in ("step1", "step2"):
        lines = [json.loads(line) for line in Path("runs", name, stage, "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss/seg" in line] == [1, 2]
        assert all(line["loss/seg"] > 0 for line in lines if "loss/seg" in line)
    scores = json.loads(Path("scores.json").read_text())
    expected = naive_iou(list(pairs(target, tmp_path)), len(scores["iou"]))
    assert [score is None for score in scores["iou"].values()] == [score is None for score in expected]
    assert [score or 0 for score in scores["iou"].values()] == pytest.approx([score or 0 for score in expected])


def folder(target: str) -> str:
    """What the names of a tiled corpus's folders end in."""
    return TILES[target][1]


def pairs(target: str, root: Path) -> Any:
    """(prediction, truth) of every val image, read without the project's readers."""
    for path in sorted(Path("predictions").glob("*.png")):
        if path.stem.endswith("_color"):
            continue
        if target == "cityscapes":
            name = path.name.replace("_leftImg8bit", "_gtFine_labelIds")
            (truth,) = (root / "target" / "gtFine" / "val").rglob(name)
            raw = np.array(Image.open(truth))
            lookup = np.full(256, 255)
            lookup[list(LABEL_IDS)] = (0, 2, 10, 11, 13, 18)  # spec 4
            label = lookup[raw]
        else:
            label = np.array(Image.open(root / "target" / f"SegmentationClass{folder(target)}" / path.name)) > 0
        yield np.array(Image.open(path)), label.astype(np.uint8)


# ---- SYNTHIA's labels ----


def test_the_synthia_world_is_what_users_download(tmp_path: Path) -> None:
    """16-bit RGB: Pillow sees only high bytes, all 0; the class is in OpenCV's last channel."""
    write_corpus("synthia", tmp_path)
    path = tmp_path / "GT" / "LABELS" / "0000000.png"
    assert path.read_bytes()[24:26] == bytes([16, 2])
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    assert stored.dtype == np.uint16
    assert set(np.unique(stored[:, :, 2])) <= {1, 3, 8, 10, 21, 22}
    assert stored[:, :, 1].max() > 255


# ---- real roads ----


@pytest.mark.skipif(not ROADS.is_dir(), reason="the aerial photographs are not beside the repository")
@pytest.mark.parametrize(
    "name", ["roads_epfl_to_massachusetts", "roads_epfl_to_massachusetts_released", "roads_source_only", "roads_oracle"]
)
def test_the_roads_recipes_train_on_real_photographs(
    name: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, _, errors = script(
        "train_step1.py",
        *("--config", f"configs/{name}.toml", "--restore-from", "random", "--cpu", "--num-workers", "0"),
        *("--input-size", "64,64", "--input-size-target", "64,64", "--num-steps", "1", "--no-tensorboard"),
        *("--override", "run.log_every=1"),
        *("--snapshot-dir", str(tmp_path / "run"), "--json", str(tmp_path / "r.json")),
    )
    assert code == 0, errors
    assert 0 <= json.loads((tmp_path / "r.json").read_text())["last"]["iou"]["road"] <= 100
