"""The five scripts from the command line: the historical chain on a tiny world, the user's mistakes, real images."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tomli
import torch
from PIL import Image

from dataset.labels import load_class_table
from model.deeplab import build_network
from model.weights import read_weights, write_weights
from tests.worlds import TINY_NETWORK, naive_iou, own_settings, save_png, write_official, write_own, write_settings
from utils.flags import TRAINING, parse

ROOT = Path(__file__).resolve().parents[1]
CAMVID = ROOT.parent / "shared" / "data" / "camvid_day_to_dusk"
TRAIN_IDS = {7: 0, 11: 2, 23: 10, 24: 11, 26: 13, 33: 18}  # of the ids that tests.worlds draws (spec 4)
PREDICTED = [f"frankfurt_{index:06d}_000019_leftImg8bit" for index in range(2)]
PSEUDO_LABELLED = [f"{city}_{index:06d}_000019_leftImg8bit" for city in ("aachen", "bochum") for index in range(2)]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the historical chain ----


@dataclass
class Checkout:
    """A copy of the project with data behind links, and what its scripts printed."""

    root: Path
    output: dict[str, str] = field(default_factory=dict)

    def run(self, command: str) -> None:
        """Run a historical command from the checkout's folder; it must succeed."""
        program, script, *arguments = shlex.split(command)
        assert program == "python"
        done = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
        self.output[script] = done.stdout

    def labels(self, folder: str, name: str) -> np.ndarray:
        """The stored values of an 8-bit PNG."""
        with Image.open(self.root / folder / name) as image:
            assert image.mode in ("L", "P")
            return np.array(image)

    def scores(self) -> list[float | None]:
        """IoU per class of result/cityscapes, counted naively over the PNGs."""
        lookup = np.full(256, 255)
        lookup[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
        pairs = []
        for stem in PREDICTED:
            truth = stem.replace("_leftImg8bit", "_gtFine_labelIds") + ".png"
            pairs.append(
                (
                    self.labels("result/cityscapes", f"{stem}.png"),
                    lookup[self.labels("data/Cityscapes/gtFine/val/frankfurt", truth)],
                )
            )
        return naive_iou(pairs, 19)


def make_checkout(root: Path, elsewhere: Path) -> Checkout:
    """The project in `root`, its default configuration made small, its data folders links to `elsewhere`."""
    root.mkdir()
    for room in ("model", "dataset", "utils", "configs"):
        shutil.copytree(ROOT / room, root / room)
    for script in ROOT.glob("*.py"):
        shutil.copy2(script, root)
    write_official(elsewhere / "gta", elsewhere / "cs")
    (root / "data").mkdir()
    (root / "data" / "gta5_deeplab").symlink_to(elsewhere / "gta")
    (root / "data" / "Cityscapes").symlink_to(elsewhere / "cs")

    path = root / "configs" / "gta5_to_cityscapes.toml"
    settings = tomli.loads(path.read_text(encoding="utf-8"))
    small = {"num_steps": 4, "num_steps_stop": 0, "save_pred_every": 2, "num_prototype": 1}
    changes: dict[str, dict[str, Any]] = {
        "source": {"size": [96, 64]},
        "target": {"size": [64, 32]},
        "model": TINY_NETWORK,
        "run": {"num_workers": 1, "log_every": 1, "device": "cpu"},
        "step1": small,
        "pseudo_label": {"size": [64, 32]},
        "step2": small,
    }
    for section, keys in changes.items():
        settings[section] = {**settings.get(section, {}), **keys}
    write_settings(path, settings)

    released = root / "pretrained" / "GTA2Cityscapes" / "GTA5_Best.pth"
    released.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(build_network("resnet18", num_classes=19, width=4).state_dict(), released)
    return Checkout(root)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The five historical commands, in their order, each exactly as people have typed it."""
    folder = tmp_path_factory.mktemp("chain")
    checkout = make_checkout(folder / "checkout", folder / "elsewhere")
    checkout.run("python train_step1.py")
    checkout.run("python Generate_Pseudo_Label.py")
    checkout.run("python train_step2.py")
    checkout.run("python evaluate_cityscapes.py --restore-from ./pretrained/GTA2Cityscapes/GTA5_Best.pth")
    checkout.run("python compute_iou.py ./data/Cityscapes/gtFine/val result/cityscapes")
    return checkout


@pytest.mark.parametrize("section", ["step1", "step2"])
def test_a_runs_folder_holds_what_was_promised(chain: Checkout, section: str) -> None:
    folder = chain.root / "runs" / "gta5_to_cityscapes" / section
    files = {path.name for path in folder.iterdir()}
    for stem in ("best", "GTA5_2", "GTA5_4"):
        assert {f"{stem}.pth", f"{stem}_D.pth"} <= files
    assert {"last.pt", "log.jsonl", "tensorboard", "config.toml", "manifest.json"} <= files
    assert any(path.name.startswith("events.out.tfevents") for path in (folder / "tensorboard").iterdir())
    assert not [name for name in files if name.startswith(".") or ".tmp" in name]

    config = tomli.loads((folder / "config.toml").read_text(encoding="utf-8"))
    assert config[section]["snapshot_dir"] == f"runs/gta5_to_cityscapes/{section}"
    assert config["model"]["width"] == 4
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss/seg" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "miou" in line] == [2, 4]

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {"packages", "commit", "device", "command", "inputs", "result"} <= manifest.keys()
    result = manifest["result"]
    assert (result["section"], result["steps"], result["last"]["step"]) == (section, 4, 4)
    best = max((line["miou"], -line["step"]) for line in lines if "miou" in line)
    assert result["best_selected_on_target_labels"] == {"miou": best[0], "step": -best[1]}
    assert result["seconds"] > 0
    assert result["peak_memory_mb"] > 0


@pytest.mark.parametrize("section", ["step1", "step2"])
def test_snapshots_are_plain_weights_in_the_released_layout(chain: Checkout, section: str) -> None:
    folder = chain.root / "runs" / "gta5_to_cityscapes" / section
    expected = build_network("resnet18", num_classes=19, width=4).state_dict()
    last = torch.load(folder / "last.pt", weights_only=True)
    for stem in ("best", "GTA5_2", "GTA5_4"):
        weights = torch.load(folder / f"{stem}.pth", weights_only=True)
        assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in expected.items()}
        assert read_weights(folder / f"{stem}_D.pth").layout == "discriminator"
    assert all(torch.equal(value, last["network"][name]) for name, value in weights.items())
    assert all(
        torch.equal(value, last["discriminator"][name])
        for name, value in torch.load(folder / "GTA5_4_D.pth", weights_only=True).items()
    )


def test_each_step_reads_what_the_step_before_wrote(chain: Checkout) -> None:
    """The *last* checkpoint of stage 1, by its hash, not the one chosen on target labels."""
    runs = chain.root / "runs" / "gta5_to_cityscapes"
    last = hashlib.sha256((runs / "step1" / "last.pt").read_bytes()).hexdigest()
    thresholds = json.loads((runs / "pseudo_labels" / "thresholds.json").read_text(encoding="utf-8"))
    assert thresholds["restore_from"] == "runs/gta5_to_cityscapes/step1/last.pt"
    assert thresholds["sha256"] == last
    manifest = json.loads((runs / "step2" / "manifest.json").read_text(encoding="utf-8"))
    assert f"step1/last.pt: DeepLab-v2 weights, sha256 {last[:12]}" in manifest["inputs"]["weights"][0]
    assert manifest["inputs"]["target"]["images"] == 4
    log = (runs / "step2" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[0])["loss/pseudo"] > 0


def test_pseudo_labels_are_flat_8_bit_and_as_many_as_images(chain: Checkout) -> None:
    folder = chain.root / "runs" / "gta5_to_cityscapes" / "pseudo_labels"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{stem}.png" for stem in PSEUDO_LABELLED), "thresholds.json"]
    )
    labels = np.stack([chain.labels(str(folder), f"{stem}.png") for stem in PSEUDO_LABELLED])
    assert labels.shape == (4, 32, 64)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels).tolist()) <= {*range(19), 255}

    report = json.loads((folder / "thresholds.json").read_text(encoding="utf-8"))
    names = load_class_table("cityscapes").names
    assert list(report["classes"]) == list(names)
    for train_id, name in enumerate(names):
        entry = report["classes"][name]
        assert entry["kept"] == (labels == train_id).sum()
        assert 0 <= entry["threshold"] <= 0.9 + 1e-6
        if entry["predicted"]:
            assert entry["coverage"] == pytest.approx(100 * entry["kept"] / entry["predicted"])
    assert report["total"]["predicted"] == labels.size
    assert report["total"]["kept"] == (labels != 255).sum()
    assert 0 < report["total"]["kept"] < labels.size


def test_predictions_are_train_ids_and_their_colours_at_native_size(chain: Checkout) -> None:
    folder = chain.root / "result" / "cityscapes"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name for stem in PREDICTED for name in (f"{stem}.png", f"{stem}_color.png")
    )
    palette = np.array(load_class_table("cityscapes").palette)
    for stem in PREDICTED:
        labels = chain.labels("result/cityscapes", f"{stem}.png")
        assert labels.shape == (64, 96)
        assert labels.max() < 19
        with Image.open(folder / f"{stem}_color.png") as image:
            np.testing.assert_array_equal(np.array(image.convert("RGB")), palette[labels])


def test_the_printed_scores_are_those_of_a_naive_count(chain: Checkout) -> None:
    printed = re.findall(r"^===>([^:\n]+):\t(\S+)$", chain.output["compute_iou.py"], flags=re.MULTILINE)
    expected = chain.scores()
    assert [name for name, _ in printed] == list(load_class_table("cityscapes").names)
    for (name, value), score in zip(printed, expected, strict=True):
        assert (None if value == "nan" else float(value)) == pytest.approx(score, abs=0.005), name
    present = [score for score in expected if score is not None]
    mean = re.search(r"^===> mIoU: (\S+)$", chain.output["compute_iou.py"], flags=re.MULTILINE)
    assert mean is not None
    assert float(mean[1]) == pytest.approx(np.mean(present), abs=0.005)
    assert "have no truth" not in chain.output["compute_iou.py"], "coloured predictions were not passed over"
    for protocol in ("all 19", "16 of 19", "13 of 19"):
        assert f"mIoU over {protocol} classes" in chain.output["compute_iou.py"]


def test_the_json_of_compute_iou_is_unrounded(
    chain: Checkout, script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.root)
    scores = tmp_path / "scores.json"
    code, _, _ = script("compute_iou.py", "data/Cityscapes/gtFine/val", "result/cityscapes", "--json", str(scores))
    assert code == 0
    written = json.loads(scores.read_text(encoding="utf-8"))
    expected = chain.scores()
    names = load_class_table("cityscapes").names
    assert written["iou"] == {name: pytest.approx(score) for name, score in zip(names, expected, strict=True)}
    subset = load_class_table("cityscapes").subsets["13"]
    thirteen = [score for index, score in enumerate(expected) if index in subset and score is not None]
    assert written["miou_subsets"]["13"] == pytest.approx(np.mean(thirteen))


def test_without_restore_from_evaluation_reads_the_last_of_stage_2(
    chain: Checkout, script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.root)
    report = tmp_path / "report.json"
    argv = ["--config", "configs/gta5_to_cityscapes.toml", "--save", str(tmp_path / "out"), "--json", str(report)]
    code, output, _ = script("evaluate_cityscapes.py", *argv)
    assert code == 0
    last = Path("runs/gta5_to_cityscapes/step2/last.pt")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["restore_from"] == str(last)
    assert written["sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert written["images"] == 2
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert f"compute_iou.py data/Cityscapes/gtFine/val {tmp_path / 'out'}" in output


def test_scores_in_memory_are_those_of_the_pngs(
    chain: Checkout, script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass writes trainId and labelId PNGs and scores; the PNGs then give the same report, but for calibration."""
    monkeypatch.chdir(chain.root)
    weights = ("--restore-from", "pretrained/GTA2Cityscapes/GTA5_Best.pth")
    configured = ("--config", "configs/gta5_to_cityscapes.toml")
    folders = ("--save", str(tmp_path / "ids"), "--label-ids", str(tmp_path / "official"))
    tables = ("--csv", str(tmp_path / "memory.csv"), "--markdown", str(tmp_path / "memory.md"))
    written = ("--json", str(tmp_path / "memory.json"))
    code, output, _ = script(EVALUATE, *configured, *weights, "--in-memory", *folders, *tables, *written)
    assert code == 0
    scoring = shlex.split(output.splitlines()[-1].removeprefix("next: "))
    assert scoring[:4] == ["python", SCORE, "data/Cityscapes/gtFine/val", str(tmp_path / "ids")]
    code, scored, _ = script(SCORE, *scoring[2:], "--json", str(tmp_path / "files.json"))
    assert code == 0

    memory, files = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("memory", "files"))
    calibrated = memory.pop("calibration")
    assert 0 <= calibrated["ece"] <= 100
    assert sum(entry["pixels"] for entry in calibrated["bins"]) == memory["pixels"]
    assert files.pop("calibration") is None
    assert {key: memory[key] for key in files} == files
    assert memory.keys() - files.keys() == {"restore_from", "sha256", "save", "label_ids"}
    assert files["boundary_iou"]["ratio"] == 0.005
    historical = [line for line in scored.splitlines() if line.startswith("===>")]
    assert historical == [line for line in output.splitlines() if line.startswith("===>")]
    assert f"miou,19,{memory['miou']!r}," in (tmp_path / "memory.csv").read_text(encoding="utf-8")
    assert "| mIoU over all 19 classes |" in (tmp_path / "memory.md").read_text(encoding="utf-8")

    label_ids = np.array(load_class_table("cityscapes").label_ids)
    assert sorted(path.name for path in (tmp_path / "official").iterdir()) == [f"{stem}.png" for stem in PREDICTED]
    for stem in PREDICTED:
        train_ids = chain.labels(str(tmp_path / "ids"), f"{stem}.png")
        np.testing.assert_array_equal(chain.labels(str(tmp_path / "official"), f"{stem}.png"), label_ids[train_ids])
        np.testing.assert_array_equal(train_ids, chain.labels("result/cityscapes", f"{stem}.png"))


def test_in_memory_without_save_writes_no_pngs(
    chain: Checkout, script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chain.root)
    before = {path: path.stat().st_mtime_ns for path in chain.root.rglob("*.png")}
    report = tmp_path / "report.json"
    argv = ["--config", "configs/gta5_to_cityscapes.toml", "--in-memory", "--json", str(report)]
    code, output, _ = script(EVALUATE, *argv)
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in chain.root.rglob("*.png")} == before
    assert "save" not in json.loads(report.read_text(encoding="utf-8"))
    assert "next:" not in output, "there are no PNGs to score"
    assert "pixel accuracy" in output


@pytest.mark.parametrize(
    ("script_name", "successor"),
    [
        ("train_step1.py", "Generate_Pseudo_Label.py"),
        ("Generate_Pseudo_Label.py", "train_step2.py"),
        ("train_step2.py", "evaluate_cityscapes.py"),
        ("evaluate_cityscapes.py", "compute_iou.py data/Cityscapes/gtFine/val result/cityscapes"),
    ],
)
def test_each_script_ends_by_printing_the_next_command(chain: Checkout, script_name: str, successor: str) -> None:
    last = chain.output[script_name].splitlines()[-1]
    config = chain.root / "configs" / "gta5_to_cityscapes.toml"
    assert last == f"next: python {successor} --config {config}"


def test_counts_and_sources_are_said(chain: Checkout) -> None:
    output = chain.output["train_step1.py"]
    assert "gta5 train: 3 images, the published corpus has 24966" in output
    assert "data/gta5_deeplab/images/00001.png" in output
    assert "chosen on target labels" in output
    assert "peak memory" in output


# ---- mistakes ----


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run scripts from: own data in world/, predictions equal to the truth in out/, weights w.pth."""
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "world")
    small = {"num_steps": 1, "num_prototype": 1, "save_pred_every": 1}
    settings = own_settings(Path("world"), step1=small, step2=small)
    write_settings(tmp_path / "own.toml", settings)
    for path in (tmp_path / "world" / "labels").glob("v*.png"):
        save_png(tmp_path / "out" / path.name, np.array(Image.open(path)))
    torch.save(build_network("resnet18", num_classes=4, width=4).state_dict(), tmp_path / "w.pth")
    return tmp_path


def fill(folder: str, letter: str, value: int) -> Callable[[Path], None]:
    """Makes every PNG of a folder whose name starts with a letter hold one id alone."""

    def change(root: Path) -> None:
        for path in (root / folder).glob(f"{letter}*.png"):
            save_png(path, np.full((48, 64), value, np.uint8))

    return change


def repaint(folder: str, letter: str, value: int) -> Callable[[Path], None]:
    """Puts an id into every PNG of a folder whose name starts with a letter."""

    def change(root: Path) -> None:
        for path in (root / folder).glob(f"{letter}*.png"):
            label = np.array(Image.open(path))
            label[0, 0] = value
            save_png(path, label)

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    """Writes a file."""

    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return change


def save_network(name: str, /, **architecture: Any) -> Callable[[Path], None]:
    """Writes the plain weights of a network."""
    return lambda root: torch.save(build_network(**architecture).state_dict(), root / name)


TRAIN, GENERATE, STAGE_2 = "train_step1.py", "Generate_Pseudo_Label.py", "train_step2.py"
EVALUATE, SCORE = "evaluate_cityscapes.py", "compute_iou.py"
SCORED = ("world/labels", "out")


def official_ids(root: Path) -> None:
    """Adds label ids to the class table."""
    write_settings(root / "own.toml", own_settings(Path("world"), classes={"label_ids": [7, 23, 26, 24]}))


def nothing(root: Path) -> None:
    """No preparation."""


def turned_truth(root: Path) -> None:
    """An image that EXIF turns by a quarter, and a label that was drawn on it then."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "world/images/v1.png") as image:
        image.save(root / "world/images/v1.png", exif=exif)
    save_png(root / "world/labels/v1.png", np.zeros((64, 48), np.uint8))


MISTAKES: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...], tuple[str, ...]]] = {
    # id: (what goes wrong on disk, script, arguments, what the one line names)
    "no such source": (nothing, TRAIN, ("--data-dir", "nowhere"), ("nowhere",)),
    "no such target": (nothing, EVALUATE, ("--data-dir", "nowhere", "--restore-from", "w.pth"), ("nowhere",)),
    "no such list": (nothing, TRAIN, ("--data-list", "gone.txt"), ("gone.txt",)),
    "empty list": (write("world/source.txt", b"\n"), TRAIN, (), ("source.txt", "empty")),
    "list of absent images": (write("world/source.txt", b"x.png\n"), TRAIN, (), ("source.txt", "x.png")),
    "list leaves its folder": (write("world/source.txt", b"../x.png\n"), TRAIN, (), ("source.txt", "../x.png")),
    "label id outside the table": (repaint("world/labels", "s", 77), TRAIN, (), ("world/labels/s", "77")),
    "label id found by a worker": (
        *(repaint("world/labels", "s", 77), TRAIN, ("--num-workers", "1"), ("world/labels/s", "77")),
    ),
    "label id of validation": (repaint("world/labels", "v", 77), TRAIN, (), ("world/labels/v", "77")),
    "image without a label": (lambda root: (root / "world/labels/s2.png").unlink(), TRAIN, (), ("s2.png",)),
    "image that is none": (write("world/images/v0.png", b"?"), EVALUATE, ("--restore-from", "w.pth"), ("v0.png",)),
    "unknown flag": (nothing, TRAIN, ("--batchsize", "2"), ("--batchsize", "--batch-size")),
    "unknown key": (nothing, TRAIN, ("--override", "step1.powr=1"), ("powr", "power")),
    "unknown network": (nothing, TRAIN, ("--model", "resnet102"), ("resnet102", "resnet101")),
    "other class count": (nothing, TRAIN, ("--num-classes", "7"), ("--num-classes 7", "4 classes")),
    "other ignore label": (nothing, TRAIN, ("--ignore-label", "0"), ("--ignore-label 0",)),
    "device that is not there": (nothing, TRAIN, ("--gpu", "99"), ("cuda:99", "--cpu")),
    "weights that are not there": (nothing, EVALUATE, ("--restore-from", "gone.pth"), ("gone.pth",)),
    "weights that are none": (write("t.pth", b"text"), EVALUATE, ("--restore-from", "t.pth"), ("t.pth",)),
    "weights of another network": (
        *(save_network("o.pth", name="resnet34", num_classes=4, width=4), TRAIN, ("--restore-from", "o.pth")),
        ("o.pth", "resnet34", "resnet18"),
    ),
    "weights of other classes": (
        *(save_network("o.pth", name="resnet18", num_classes=5, width=4), EVALUATE, ("--restore-from", "o.pth")),
        ("o.pth", "5 classes", "4"),
    ),
    "no run to predict with": (nothing, GENERATE, (), ("runs/own/step1",)),
    "no pseudo labels": (nothing, STAGE_2, ("--restore-from", "w.pth"), ("pseudo_labels", "Generate_Pseudo_Label.py")),
    "run folder in use": (
        write("runs/own/step1/last.pt", b""),
        *(TRAIN, (), ("runs/own/step1", "--continue-train", "--snapshot-dir")),
    ),
    "nothing to continue": (nothing, TRAIN, ("--continue-train",), ("no runs/own/step1/last.pt", "leave the flag out")),
    "state that is none": (write("runs/own/step1/last.pt", b"?"), TRAIN, ("--continue-train",), ("last.pt",)),
    "run folder is a file": (nothing, TRAIN, ("--snapshot-dir", "own.toml"), ("own.toml",)),
    "output folder is a file": (nothing, EVALUATE, ("--restore-from", "w.pth", "--save", "own.toml"), ("own.toml",)),
    "missing prediction": (lambda root: (root / "out/v1.png").unlink(), SCORE, SCORED, ("v1.png", "out")),
    "wrong-sized prediction": (
        lambda root: save_png(root / "out/v0.png", np.zeros((24, 32), np.uint8)),
        *(SCORE, SCORED, ("out/v0.png", "32x24", "64x48")),
    ),
    "prediction of label ids": (repaint("out", "v", 33), SCORE, SCORED, ("out/v", "33")),
    "a device where none is used": (nothing, SCORE, (*SCORED, "--gpu", "0"), ("unknown argument --gpu",)),
    "no folder of predictions": (nothing, SCORE, ("world/labels", "gone"), ("gone",)),
    "no folder of truth": (nothing, SCORE, ("gone", "out"), ("gone",)),
    "report below a file": (nothing, SCORE, (*SCORED, "--csv", "own.toml/scores.csv"), ("--csv", "own.toml")),
    "two reports in one file": (nothing, SCORE, (*SCORED, "--csv", "r", "--json", "./r"), ("--json", "--csv", "own")),
    "truth without a labelled pixel": (
        fill("world/labels", "v", 255),
        *(SCORE, SCORED, ("world/labels", "no labelled pixel")),
    ),
    "report is a folder": (nothing, SCORE, (*SCORED, "--json", "out"), ("out",)),
    "table is a folder": (nothing, SCORE, (*SCORED, "--csv", "out"), ("out",)),
    "no arguments": (nothing, SCORE, (), ("gt_dir",)),
    "tables of no scores": (nothing, EVALUATE, ("--restore-from", "w.pth", "--csv", "s.csv"), ("--in-memory",)),
    "no official ids": (
        *(nothing, EVALUATE, ("--restore-from", "w.pth", "--label-ids", "ids")),
        ("label_ids", "[classes]"),
    ),
    "two kinds of ids in one folder": (
        official_ids,
        *(EVALUATE, ("--restore-from", "w.pth", "--save", "p", "--label-ids", "./p"), ("--save", "--label-ids", "p")),
    ),
    "truth of another shape than its image": (
        lambda root: save_png(root / "world/labels/v1.png", np.zeros((32, 32), np.uint8)),
        *(EVALUATE, ("--restore-from", "w.pth", "--in-memory"), ("labels/v1.png", "32x32", "64x48")),
    ),
    "truth of an image as EXIF turns it": (
        turned_truth,
        *(EVALUATE, ("--restore-from", "w.pth", "--in-memory"), ("labels/v1.png", "48x64", "turn the image files")),
    ),
    "truth with an unknown id": (
        repaint("world/labels", "v", 77),
        *(EVALUATE, ("--restore-from", "w.pth", "--in-memory"), ("error: world/labels/v", "unknown label ids 77")),
    ),
    "truth that is missing": (
        lambda root: (root / "world/labels/v1.png").unlink(),
        *(EVALUATE, ("--restore-from", "w.pth", "--in-memory"), ("labels", "v1.png")),
    ),
    "boundaries of no width": (
        *(nothing, SCORE, (*SCORED, "--override", "evaluate.boundary_ratio=0")),
        ("boundary_ratio", "above 0"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_clear_line_and_code_2(
    own: Path, script: Callable[..., tuple[int, str, str]], mistake: str
) -> None:
    prepare, name, argv, named = MISTAKES[mistake]
    prepare(own)
    code, _, errors = script(name, "--config", "own.toml", *argv)
    assert code == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    missing = [word for word in named if word not in lines[0]]
    assert not missing, lines[0]


def test_the_own_world_has_no_mistake(own: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    """Else the tests above could pass for another reason. Continuing with another network is one more mistake."""
    assert script(TRAIN, "--config", "own.toml")[0] == 0
    assert script(EVALUATE, "--config", "own.toml", "--restore-from", "w.pth", "--save", "out")[0] == 0
    assert script(SCORE, *SCORED, "--config", "own.toml")[0] == 0
    for change in ("model.width=8", "step1.optimizer=adamw", "step1.num_prototype=2"):
        code, _, errors = script(TRAIN, "--config", "own.toml", "--continue-train", "--override", change)
        assert code == 2, change
        assert "last.pt does not fit this configuration" in errors
    # With a loss scale, which the run had none of, it may go on; the scale then begins.
    code, output, _ = script(TRAIN, "--config", "own.toml", "--continue-train", "--override", "run.precision=fp16")
    assert code == 0
    assert "note: differs from the interrupted run: run.precision: fp32 -> fp16" in output
    # The run that is there can be continued past its end: nothing is left to do.
    code, output, _ = script(TRAIN, "--config", "own.toml", "--continue-train", "--learning-rate", "1")
    assert code == 0
    assert "note: differs from the interrupted run: step1.learning_rate: 0.001 -> 1.0" in output
    assert "target val, last checkpoint" in output


def test_perfect_predictions_score_100(own: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = script(SCORE, *SCORED, "--config", "own.toml")
    assert code == 0
    assert "===> mIoU: 100.0" in output


def test_scoring_reads_the_list_that_it_is_given(own: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    """A prediction that is missing is no mistake where the list does not name its image."""
    (own / "out" / "v1.png").unlink()
    (own / "one.txt").write_text("v0.png\n", encoding="utf-8")
    assert script(SCORE, *SCORED, "--config", "own.toml")[0] == 2
    assert script(SCORE, *SCORED, "--config", "own.toml", "--data-list", "one.txt")[0] == 0


def test_the_printed_command_hands_on_what_the_next_script_cannot_guess(
    own: Path, script: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.move(own / "world", own / "moved")
    moved = ("--data-dir", "moved", "--restore-from", "w.pth", "--save", "elsewhere")
    code, output, _ = script(GENERATE, "--config", "own.toml", *moved)
    assert code == 0
    python, successor, *argv = shlex.split(output.splitlines()[-1].removeprefix("next: "))
    assert (python, successor) == ("python", STAGE_2)
    config, _ = parse(argv, description="", section="step2", flags=TRAINING)
    assert (config.step2.restore_from, config.step2.pseudo_labels) == ("w.pth", "elsewhere")
    assert config.target["root"] == "moved"
    assert sorted(path.name for path in (own / "elsewhere").glob("*.png")) == [f"t{index}.png" for index in range(5)]


@pytest.mark.parametrize("size", [(32, 24), (128, 96)])
def test_the_next_command_scores_labels_of_another_size(
    own: Path, script: Callable[..., tuple[int, str, str]], size: tuple[int, int]
) -> None:
    evaluate = (EVALUATE, "--config", "own.toml", "--restore-from", "w.pth", "--save", "other")
    assert "next: python compute_iou.py world/labels other" in script(*evaluate)[1]
    for path in (own / "world/labels").glob("v*.png"):
        save_png(path, cv2.resize(np.array(Image.open(path)), size, interpolation=cv2.INTER_NEAREST))
    code, output, _ = script(*evaluate)
    assert code == 0
    assert "next: the same command with --in-memory; labels in world/labels have another size" in output
    score = (SCORE, "world/labels", "other", "--config", "own.toml")
    assert "evaluate_cityscapes.py --in-memory scores them" in script(*score)[2]
    code, output, _ = script(*evaluate, "--in-memory")
    assert code == 0
    assert "===> mIoU" in output
    assert "next: python compute_iou.py world/labels other" in output
    assert script(*score)[0] == 0


def test_weights_without_their_record_are_read_with_the_settings_of_the_model(
    own: Path, script: Callable[..., tuple[int, str, str]]
) -> None:
    """Output stride cannot be read off tensors: with the same setting the same predictions, and it is said."""
    network = build_network("resnet18", width=4, num_classes=4, output_stride=16)
    torch.save(network.state_dict(), own / "bare.pth")
    write_weights(own / "recorded.pth", network.state_dict(), {"architecture": network.architecture()})
    stride = ("--override", "model.output_stride=16")
    runs = {"bare": ("bare.pth", *stride), "recorded": ("recorded.pth",)}
    said = {}
    for name, (weights, *flags) in runs.items():
        code, said[name], _ = script(
            EVALUATE, "--config", "own.toml", "--restore-from", weights, "--save", name, *flags
        )
        assert code == 0
    assert "output_stride = 16 are taken from [model]" in said["bare"]
    assert "taken from [model]" not in said["recorded"]
    pictures = sorted((own / "bare").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes() == (own / "recorded" / picture.name).read_bytes()


def test_flags_without_effect_are_noted(own: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = script(EVALUATE, "--config", "own.toml", "--restore-from", "w.pth", "--save-num-images", "3")
    assert code == 0
    assert "note: --save-num-images is accepted and has no effect" in output


def test_no_more_workers_than_processors(
    own: Path, script: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 1)
    weights = ("--restore-from", "w.pth", "--save", "predicted")
    code, output, _ = script(EVALUATE, "--config", "own.toml", *weights, "--num-workers", "2")
    assert code == 0
    assert "num_workers = 2, but there are 1 processors; 1 are used" in output


def test_a_mistake_in_a_process_of_its_own(own: Path) -> None:
    """The same contract through the real exit code and the real streams."""
    done = subprocess.run(
        [sys.executable, str(ROOT / TRAIN), "--config", "own.toml", "--data-dir", "nowhere"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line


def test_a_fault_of_ours_is_not_called_a_mistake(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its traceback; Python leaves with code 1."""

    def fault(*_: Any, **__: Any) -> None:
        raise KeyError("fault")

    monkeypatch.setattr("utils.stage.fit", fault)
    monkeypatch.setattr(sys, "argv", [TRAIN, "--config", "own.toml"])
    with pytest.raises(KeyError, match="fault"):
        runpy.run_path(str(ROOT / TRAIN), run_name="__main__")


def test_truth_of_train_ids_is_refused_by_both_evaluators(
    script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0..18 are official ids too, most of them ignored: without a check the scores would be silently wrong."""
    monkeypatch.chdir(tmp_path)
    write_official(tmp_path / "gta", tmp_path / "cs")
    lookup = np.full(256, 255, dtype=np.uint8)
    lookup[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    for path in (tmp_path / "cs" / "gtFine" / "val").rglob("*_labelIds.png"):
        save_png(path, lookup[np.array(Image.open(path))])
        save_png(
            tmp_path / "out" / f"{path.stem.replace('_gtFine_labelIds', '_leftImg8bit')}.png",
            np.array(Image.open(path)),
        )
    torch.save(build_network("resnet18", num_classes=19, width=4).state_dict(), tmp_path / "w.pth")
    target = ("--override", "target.root=cs", "--override", "target.size=[64, 32]")
    for command in (
        (SCORE, "cs/gtFine/val", "out", *target),
        (EVALUATE, "--restore-from", "w.pth", "--in-memory", "--cpu", "--num-workers", "0", *target),
    ):
        code, _, errors = script(*command)
        assert code == 2, errors
        assert "seem to hold train ids" in errors
        assert script(*command, "--override", "target.trust_ids=true")[0] == 0


# ---- real images ----


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the CamVid images are not beside the repository")
def test_the_example_of_own_data_trains_on_real_photographs(
    script: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    names = (CAMVID / "target_val.txt").read_text(encoding="utf-8").split()[:2]
    (tmp_path / "val.txt").write_text("\n".join(names), encoding="utf-8")
    code, output, errors = script(
        TRAIN,
        *("--config", "configs/camvid_day_to_dusk.toml", "--restore-from", "random", "--cpu"),
        *(
            "--input-size",
            "96,64",
            "--input-size-target",
            "96,64",
            "--data-list-target-test",
            str(tmp_path / "val.txt"),
        ),
        *("--num-steps", "2", "--save-pred-every", "2", "--batch-size", "2", "--num-workers", "0", "--no-tensorboard"),
        *("--override", "run.log_every=1", "--snapshot-dir", str(tmp_path / "run"), "--json", str(tmp_path / "r.json")),
    )
    assert code == 0, errors
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss/seg" in line] == [1, 2]
    assert all(np.isfinite(line["loss/seg"]) for line in lines if "loss/seg" in line)
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["last"]["pixels"] > 0
    assert f"--restore-from {tmp_path / 'run'}" in output.splitlines()[-1]


@pytest.mark.parametrize("flags", [("--help",), ("--batchsize", "2"), ("--opt-level", "O9"), ("--precision", "fp33")])
@pytest.mark.parametrize("name", [TRAIN, GENERATE, STAGE_2, EVALUATE, SCORE, "predict.py"])
def test_a_mistyped_flag_is_answered_before_torch_is_imported(name: str, flags: tuple[str, ...]) -> None:
    """Which takes seconds."""
    inputs = {SCORE: ("labels", "predictions"), "predict.py": ("photo.jpg",)}.get(name, ())
    code, imported = imports_of(str(ROOT / name), *inputs, *flags)
    assert code == (0 if flags == ("--help",) else 2)
    assert "utils.launch" in imported
    assert not imported & {"torch", "torchvision"}


@pytest.mark.parametrize(
    "module", ["dataset.check", "dataset.streets", "dataset.tile", "dataset.translate", "utils.report"]
)
def test_help_of_a_module_imports_no_torch(module: str) -> None:
    """Nor do the worker processes of those in dataset/, which import them again."""
    code, imported = imports_of("-m", module, "--help")
    assert code == 0
    assert "utils.launch" in imported
    assert not imported & {"torch", "torchvision"}


def imports_of(*command: str) -> tuple[int, set[str]]:
    """The exit code of a Python command and every module that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip() for line in lines}
