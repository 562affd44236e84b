"""When something goes wrong: strange checkpoints, other settings, no numbers, damaged files, full disks, rivals."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rasterio.windows import Window
from safetensors.torch import save_file
from torch import Tensor

from dataset.corpora import UNFINISHED, DataError, Sample
from dataset.loading import tolerated_files, train_loader
from dataset.segmentation import SegmentationDataset
from model.bafft import BAFFT
from model.weights import WeightsError, read_weights, write_weights
from tests.conftest import Script
from tests.test_engine import differences, state_of
from tests.test_engine import train as train_stage
from tests.worlds import own_settings, save_png, write_own, write_settings
from utils import files, networks, quick_check
from utils.background import write_image, write_png
from utils.checkpoint import CheckpointError, load_last, load_state, save_last, save_state
from utils.config import ConfigError
from utils.files import atomic_write
from utils.flags import TRAINING, parse
from utils.inspection import Diagnosis
from utils.json_files import write_json
from utils.launch import launch
from utils.lock import LOCK, FolderInUseError, only_one
from utils.log import RunLog
from utils.nonfinite import MOST_IN_A_ROW, NonFiniteError, Watch
from utils.outputs import unfinished
from utils.products import TiffSheet
from utils.pseudo_label import PredictionCache
from utils.run_files import LAST, PREVIOUS
from utils.run_folder import read_run
from utils.stage import run_stage
from utils.video import written_film

ROOT = Path(__file__).resolve().parents[1]
BRIEF = {"num_steps": 2, "save_pred_every": 1, "batch_size": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


def train(
    world: Path, folder: Path, *flags: str, run: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]
) -> Path:
    """Two updates, a snapshot after each, unless `sections` say otherwise."""
    base = own_settings(world)
    sections = {**sections, "step1": {**BRIEF, **sections.get("step1", {})}}
    return train_stage(world, folder, "step1", *flags, run={**base["run"], **(run or {})}, **sections)


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one of its two updates."""
    return train(world, tmp_path_factory.mktemp("finished") / "run", "--num-steps-stop", "1", step1=BRIEF)


def copy(finished: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in finished.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# ---- checkpoints ----


class Exploit:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def legacy(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def tar(path: Path, content: Any) -> None:
    """The format of torch 0.1: a tar of pickles."""
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(content, protocol=2))
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.add(part, arcname=name)


WRITERS: dict[str, Callable[[Path, Any], Any]] = {
    "zip": lambda path, content: torch.save(content, path),
    "legacy": legacy,
    "pickle": lambda path, content: path.write_bytes(pickle.dumps(content)),
    "tar": tar,
}


@pytest.mark.parametrize("name", ["last.pt", "w.pth", "w.safetensors"])
@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("reader", [load_state, read_weights])
def test_no_code_of_a_file_runs(tmp_path: Path, name: str, container: str, reader: Callable[[Path], Any]) -> None:
    touched = tmp_path / "touched"
    WRITERS[container](tmp_path / name, {"format": "bafft-train-state-1", "network": Exploit(touched)})
    with pytest.raises((CheckpointError, WeightsError)) as refusal:
        reader(tmp_path / name)
    assert not touched.exists()
    assert str(refusal.value).startswith(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_the_exploit_works(tmp_path: Path) -> None:
    """Where code is run, unlike here: else the test above says nothing."""
    torch.save(Exploit(tmp_path / "touched"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["plain.pth", "tensors.safetensors"])
def test_any_name_reads_by_content(tmp_path: Path, name: str) -> None:
    """A safetensors file that calls itself .pth is one nevertheless."""
    save_file({"weight": torch.ones(2)}, tmp_path / name)
    assert read_weights(tmp_path / name).state["weight"].tolist() == [1, 1]


def test_a_flipped_bit_in_plain_weights_is_found(tmp_path: Path) -> None:
    path, tensor = tmp_path / "w.pth", torch.arange(1000.0)
    torch.save({"weight": tensor}, path)  # without the hash that write_weights puts beside it
    content = bytearray(path.read_bytes())
    content[content.find(tensor.numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth is damaged, the checksum of .* does not hold"):
        read_weights(path)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_weights(tmp_path / f"{name}.pth", {"weight": torch.ones(3)}, {})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("linked", [True, False])
def test_the_state_before_the_last_is_offered(tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    for step in (5, 10):
        save_last(tmp_path, {"step": step})
    assert load_last(tmp_path)["step"] == 10
    content = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.pt: truncated.*after 5 updates, is whole.*mv ") as refusal:
        load_last(tmp_path)
    assert "\n" not in str(refusal.value)
    subprocess.run(str(refusal.value).rpartition(": ")[2], shell=True, check=True)
    assert load_last(tmp_path)["step"] == 5


def test_without_a_whole_one_nothing_is_offered(tmp_path: Path) -> None:
    (tmp_path / LAST).write_bytes(b"nothing")
    (tmp_path / PREVIOUS).write_bytes(b"nothing either")
    with pytest.raises(CheckpointError) as refusal:
        load_last(tmp_path)
    assert PREVIOUS not in str(refusal.value)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"branches": 4}}, r"another network, branches: 2 -> 4"),
        ({"model": {"output_stride": 16}}, r"another network, output_stride: 8 -> 16"),
        ({"model": {"width": 8}}, r"another network, width: 4 -> 8"),
        ({"classes": {"things": [2], "stuff": [0, 1, 3]}}, r"other classes, stuff"),
        ({"step1": {"batch_size": 2}}, r"batch_size \* iter_size: 1 -> 2.*twice or never"),
        ({"step1": {"optimizer": "adamw"}}, r"another optimizer"),
        ({"source": {"train_list": "shorter.txt"}}, r"other files of the source"),
        ({"target": {"train_list": "shorter.txt"}}, r"other files of the target"),
        ({"step1": {"num_prototype": 3}}, r"num_prototype: 1 -> 3.*banks"),
    ],
)
def test_what_would_spoil_a_run_is_refused(
    world: Path, tmp_path: Path, finished: Path, sections: dict[str, Any], reason: str
) -> None:
    for name in ("source", "target"):
        names = (world / f"{name}.txt").read_text().split()
        (world / "shorter.txt").write_text("\n".join(names[:-1]) if name[0] == "s" else "")
        if next(iter(sections)) == name:
            (world / "shorter.txt").write_text("\n".join(names[:-1]))
            break
    folder = copy(finished, tmp_path / "run")
    before = (folder / LAST).read_bytes()
    with pytest.raises(CheckpointError, match=reason) as refusal:
        train(world, folder, "--continue-train", **sections)
    assert "config.toml" in str(refusal.value)
    assert (folder / LAST).read_bytes() == before


def test_a_setting_that_an_older_run_did_not_know_is_no_difference(
    world: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(finished, tmp_path / "run")
    saved = load_last(folder)
    for section in ("step1", "step2"):
        del saved["meta"]["config"][section]["random_turn"]
    save_last(folder, saved)
    train(world, folder, "--continue-train")
    output = capsys.readouterr().out
    assert "note: differs from the interrupted run: step1.snapshot_dir" in output
    assert "random_turn" not in output


def test_moved_data_and_another_split_of_a_batch_are_no_obstacle(
    world: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moved").symlink_to(world)
    folder = copy(finished, tmp_path / "run")
    moved = {"root": str(tmp_path / "moved")}
    train(world, folder, "--continue-train", source=moved, step1={"learning_rate": 1e-4})
    output = capsys.readouterr().out
    assert "note: differs from the interrupted run: source.root" in output
    assert "note: differs from the interrupted run: step1.learning_rate: 0.001 -> 0.0001" in output


def test_only_the_latest_snapshots_stay(world: Path, tmp_path: Path) -> None:
    settings = {"num_steps": 3, "keep": 2, "prefix": "A"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "A_best_of_all.pth").touch()
    folder = train(world, tmp_path / "run", step1=settings)
    names = {path.name for path in folder.iterdir()}
    assert {f"A_{step}{end}" for step in (2, 3) for end in (".pth", ".json", "_D.pth", "_D.json")} <= names
    assert not [name for name in names if name.startswith("A_1")]
    assert {"best.pth", "last.pt", "previous.pt", "A_best_of_all.pth"} <= names


@pytest.mark.parametrize("left", ["previous.pt", "manifest.json"])
def test_what_a_run_left_is_not_overwritten(world: Path, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("precious")
    with pytest.raises(ConfigError, match=r"holds what a run left, without the last\.pt to go on from: choose another"):
        train(world, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != LOCK] == [left]
    with pytest.raises(ConfigError, match=r"--continue-train: there is no .*last\.pt to go on from$"):
        train(world, tmp_path / "run", "--continue-train")


def test_a_run_that_failed_in_its_first_snapshot_begins_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "utils.training_run.save_last", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space"))
        )
        with pytest.raises(OSError, match="No space"):
            train(world, tmp_path / "run")
    assert (tmp_path / "run" / "source_1.pth").exists()
    assert state_of(train(world, tmp_path / "run"))["step"] == 2


def test_a_run_left_before_its_first_snapshot_begins_anew(
    world: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command that is printed to go on, whose configuration is that of the folder itself."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "log.jsonl"):
        shutil.copy(finished / name, folder)
    text = (folder / "config.toml").read_text(encoding="utf-8").replace(str(finished), str(folder))
    (folder / "config.toml").write_text(text, encoding="utf-8")
    argv = ["--config", str(folder / "config.toml"), "--continue-train"]
    config, options = parse(argv, description="", section="step1", flags=TRAINING)
    run_stage(config, options, "step1")
    assert "was left before its first snapshot, so it begins anew" in capsys.readouterr().out
    assert state_of(folder)["step"] == state_of(finished)["step"]
    assert (folder / "log.jsonl").read_text().count("\n") == (finished / "log.jsonl").read_text().count("\n")


def test_the_state_before_the_last_is_named_where_the_last_is_gone(finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    (folder / LAST).rename(folder / PREVIOUS)
    with pytest.raises(
        ConfigError, match=r"no .*last\.pt to go on from\. The state before it, after 1 updates, is whole"
    ):
        train(finished.parent, folder, "--continue-train")


def test_a_configuration_of_ones_own_is_not_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = write_settings(tmp_path / "mine" / "config.toml", own_settings(world, step1={"restore_from": "random"}))
    before = path.read_bytes()
    mine = ["--config", str(path), "--snapshot-dir", str(tmp_path / "mine")]
    for flags, said in (
        ([], r"config\.toml would be overwritten by this run's own"),
        (["--continue-train"], "no .*last"),
    ):
        config, options = parse([*mine, *flags], description="", section="step1", flags=TRAINING)
        with pytest.raises(ConfigError, match=said):
            run_stage(config, options, "step1")
    assert path.read_bytes() == before


def test_a_run_that_goes_on_keeps_its_start(world: Path, finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"keeps its start, restore_from: random -> .*w\.pth"):
        train(world, folder, "--continue-train", step1={"restore_from": "w.pth"})


def test_the_start_may_be_spelled_in_another_way(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy(finished, tmp_path / "start")
    spelled = ["start", "./start/", str(tmp_path / "start")]
    for stop, start in enumerate(spelled, start=1):
        flags = ["--continue-train"] * (stop > 1)
        train(world, tmp_path / "run", *flags, step1={"num_steps": 3, "num_steps_stop": stop, "restore_from": start})


@pytest.mark.parametrize("spoiled", ["validation", "training", "diagnosis"])
def test_a_bad_file_costs_no_update(
    world: Path, tmp_path: Path, spoiled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once it is mended, the run ends as if there had been nothing."""
    data = tmp_path / "data"
    shutil.copytree(world, data)
    stage = {"num_steps": 4, "save_pred_every": 2, "batch_size": 1}
    run = {"diagnostics": spoiled == "diagnosis"}
    whole = train(data, tmp_path / "whole", step1=stage, run=run)
    path = {"validation": data / "labels" / "v1.png", "training": data / "images" / "s3.png"}.get(
        spoiled, data / "images" / "s4.png"
    )
    sound = path.read_bytes()

    def spoil(*_: object, **__: object) -> None:
        if spoiled == "validation":
            save_png(path, np.full((48, 64), 77, dtype=np.uint8))
        else:
            path.write_bytes(b"\0" * len(sound))  # files of another size are another data set

    def unreadable(_: object) -> None:
        raise DataError(f"{path.name}: not a readable image")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_check, "check_data", spoil if spoiled != "diagnosis" else lambda *_, **__: None)
        if spoiled == "diagnosis":
            patch.setattr(Diagnosis, "measure", unreadable)
        with pytest.raises(DataError, match=path.name):
            train(data, tmp_path / "run", step1=stage, run=run)
    assert "--continue-train" in capsys.readouterr().out.splitlines()[-1]
    path.write_bytes(sound)
    assert 0 < load_last(tmp_path / "run")["step"] < 4
    train(data, tmp_path / "run", "--continue-train", step1=stage, run=run)
    assert differences(state_of(whole), state_of(tmp_path / "run")) == []
    assert (whole / "log.jsonl").read_text() == (tmp_path / "run" / "log.jsonl").read_text()


# ---- an end on request ----


@pytest.mark.parametrize("moment", ["update", "validation"])
def test_a_signal_changes_nothing_but_the_moment(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """The same files as without, whether it comes in an update or as the snapshot after it is being validated."""
    stage = {"num_steps": 3, "save_pred_every": 2}
    whole = train(world, tmp_path / "whole", step1=stage)
    with monkeypatch.context() as patched:
        if moment == "update":
            observe = BAFFT.observe_target
            patched.setattr(BAFFT, "observe_target", lambda *given: sent(observe(*given)))
        else:
            predicted = "utils.inference.class_map"
            patched.setattr(predicted, lambda *_: sent(torch.zeros(48, 64, dtype=torch.uint8)))
        with pytest.raises(SystemExit) as stop:
            train(world, tmp_path / "run", step1=stage)
    assert stop.value.code == 143
    output = capsys.readouterr().out
    assert f"SIGTERM: saved after update {1 if moment == 'update' else 2}" in output
    assert f"python train_step1.py --config {tmp_path / 'run' / 'config.toml'} --continue-train" in output
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    folder = train(world, tmp_path / "run", "--continue-train", step1=stage)
    assert differences(state_of(whole), state_of(folder)) == []
    assert (whole / "log.jsonl").read_text() == (folder / "log.jsonl").read_text()
    for path in whole.glob("*.pth"):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def sent(result: Any) -> Any:
    """The result, after this process was asked to end."""
    os.kill(os.getpid(), signal.SIGTERM)
    return result


# ---- numbers that are none ----


def poisoned(monkeypatch: pytest.MonkeyPatch, updates: set[int], *, how: str = "loss") -> None:
    """Make a loss, or the gradient alone, infinite in some updates (counted from 1)."""
    calls = iter(range(1, 1000))

    def adversarial(self: BAFFT, probabilities: Tensor) -> Tensor:
        healthy = probabilities.sum() * 0
        if next(calls) not in updates:
            return healthy
        return healthy + math.inf if how == "loss" else torch.sqrt(healthy)  # the slope of a root at 0

    monkeypatch.setattr(BAFFT, "adversarial_loss", adversarial)


@pytest.mark.parametrize(("how", "what"), [("loss", "loss/adv"), ("gradient", "gradient")])
def test_a_number_that_is_none_stops_the_run_and_leaves_evidence(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    poisoned(monkeypatch, {2}, how=how)
    with pytest.raises(NonFiniteError, match=rf"{what}.* not finite at update 2, images s\d\.png, t\d\.png") as stop:
        train(world, tmp_path / "run", run={"log_every": 50}, step1={"num_steps": 4})
    folder = tmp_path / "run"
    assert load_last(folder)["step"] == 1
    assert "nothing later than update 1" in str(stop.value)
    evidence = folder / "nonfinite_2"
    report = json.loads((evidence / "report.json").read_text())
    assert report["update"] == 2
    assert report["config"]["step1"]["num_steps"] == 4
    for stem, name in report["images"].items():
        assert name in str(stop.value)
        stored = np.array(Image.open(world / "images" / name))
        np.testing.assert_array_equal(np.array(Image.open(evidence / f"{stem}.png")), stored)
    assert load_state(evidence / "state.pt")["step"] == 2


def test_a_bad_update_that_is_skipped_leaves_no_trace(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state after it is that before it, but for the number of updates; the log counts it."""
    poisoned(monkeypatch, set())
    good = train(world, tmp_path / "good", run={"nonfinite": "skip"}, step1={"num_steps": 2, "num_steps_stop": 1})
    poisoned(monkeypatch, {2})
    skipping = train(world, tmp_path / "run", run={"nonfinite": "skip"})
    before, after = state_of(good), state_of(skipping)
    for part in ("network", "discriminator", "memory"):
        assert differences(before[part], after[part], part) == []
    for part in ("optimizer", "optimizer_d"):
        assert differences(before[part]["state"], after[part]["state"], part) == []
    assert after["step"] == 2
    assert after["meta"]["counts"]["updates"] == 1
    assert [json.loads(line).get("skipped/updates") for line in (skipping / "log.jsonl").read_text().splitlines()] == [
        *(0, None, 1, None)
    ]
    assert "note: update 2 is skipped, loss/adv" in capsys.readouterr().out


def test_too_many_in_a_row_stop_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, set(range(1, 100)))
    with pytest.raises(NonFiniteError, match=f"update {MOST_IN_A_ROW + 1}"):
        train(world, tmp_path / "run", run={"nonfinite": "skip"}, step1={"num_steps": 30, "save_pred_every": 30})
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize("lesson", ["online", "mixed", "masked"])
def test_a_teacher_that_is_lost_stops_the_run_as_any_bad_loss(world: Path, tmp_path: Path, lesson: str) -> None:
    wild = {"num_steps": 6, "save_pred_every": 6, "learning_rate": 1e30, "weights": {"seg": 1.0, lesson: 1.0}}
    with pytest.raises(NonFiniteError, match=r"not finite at update \d"):
        train(world, tmp_path / "run", run={"log_every": 1}, step1=wild)
    assert list((tmp_path / "run").glob("nonfinite_*"))


def test_a_watch_counts_what_the_loss_scale_skips() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    watch = Watch(torch.device("cpu"), scaled=True)
    for step, gradient in enumerate((1.0, math.inf, math.nan, 2.0), start=1):
        layer.weight.grad = torch.full((1, 1), gradient)
        watch.see(step, {"seg": torch.tensor(1.0)}, layer)
    assert watch.overflows() == 2
    assert watch.first() == (0, [])
    layer.weight.grad = torch.full((1, 1), math.nan)
    watch.see(5, {"seg": torch.tensor(math.nan)}, layer)
    assert watch.overflows() == 2, "a bad loss is no overflow of the loss scale"
    watch.see(6, {"seg": torch.tensor(1.0), "adv": torch.tensor(math.nan)}, layer)
    assert watch.first() == (5, ["loss/seg"])
    assert watch.first() == (0, []), "since the last look"


def test_large_gradients_are_no_flaw() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.full((1, 2), 3e38)  # whose squares no float holds
    watch = Watch(torch.device("cpu"), scaled=False)
    watch.see(1, {"seg": torch.tensor(1.0)}, layer)
    assert watch.first() == (0, [])


# ---- files that cannot be read ----


def rows(folder: Path, n: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    for index in range(n):
        save_png(folder / f"{index}.png", rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return [Sample(f"{index}.png", folder / f"{index}.png") for index in range(n)]


def vanish(path: Path) -> None:
    path.unlink()


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def be_cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def explode(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


DAMAGES = {
    "vanished": vanish,
    "folder": become_a_folder,
    "truncated": be_cut_short,
    "bomb": explode,
    "empty": lambda path: path.write_bytes(b""),
    "wrong mode": lambda path: Image.fromarray(np.zeros((8, 8), np.float32)).save(path, format="TIFF"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("skip", [False, True])
def test_an_unreadable_file_is_named_or_replaced(tmp_path: Path, damage: str, skip: bool) -> None:
    samples = rows(tmp_path, 7)
    DAMAGES[damage](samples[3].image)
    dataset = SegmentationDataset(samples, decoding=None, size=None)
    loader = train_loader(dataset, batch_size=1, seed=1, stop=7, skip=skip)
    if not skip:
        with pytest.raises(DataError, match=r"3\.png"):
            list(loader)
        return
    batches = list(loader)
    names = [name for batch in batches for name in batch.names]
    (reason,) = [reason for batch in batches for reason in batch.skipped]
    assert sorted(names) == sorted(f"{index}.png" for index in (0, 1, 2, 4, 4, 5, 6)), "the next one takes its place"
    assert "3.png" in reason
    again = [
        name
        for batch in train_loader(dataset, batch_size=1, seed=1, start=3, stop=7, skip=True)
        for name in batch.names
    ]
    assert again == names[3:], "a resumed run sees the same"


def test_more_than_a_hundredth_is_an_error(tmp_path: Path) -> None:
    assert [tolerated_files(n) for n in (1, 50, 199, 200, 3000)] == [1, 1, 1, 2, 30]
    samples = rows(tmp_path, 9)
    for index in (2, 6):
        samples[index].image.unlink()
    loader = train_loader(
        SegmentationDataset(samples, decoding=None, size=None), batch_size=1, seed=1, skip=True, stop=9
    )
    with pytest.raises(
        DataError, match=r"2 files of 9 images cannot be read, more than the 1 that may be skipped.*png"
    ):
        list(loader)


def test_an_unplugged_disk_ends_the_run(tmp_path: Path) -> None:
    samples = rows(tmp_path, 9)
    for sample in samples:
        sample.image.unlink()
    loader = train_loader(SegmentationDataset(samples, decoding=None, size=None), batch_size=1, seed=1, skip=True)
    with pytest.raises(DataError, match=r"\d\.png: cannot read the file"):
        list(loader)


def test_a_run_counts_the_files_that_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_own(tmp_path)
    be_cut_short(tmp_path / "images" / "s2.png")
    folder = train(tmp_path, tmp_path / "run", run={"bad_files": "skip"}, step1={"num_steps": 5, "save_pred_every": 5})
    result = json.loads((folder / "manifest.json").read_text())["result"]
    assert result["skipped"] == {"bad_files": 1}
    assert "s2.png" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"s2\.png"):
        train(tmp_path, tmp_path / "strict")


# ---- full disks ----


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """A file-size limit that the kernel enforces in every write beyond 100 bytes, as a full disk would; no scope for
    anything else, since pytest's own output may go to a file."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def film(path: Path) -> None:
    """OpenCV says nothing of a frame that it could not write."""
    with written_film(path, (64, 48), 25.0) as writer:
        for _ in range(20):
            writer.add(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def sheet(path: Path) -> None:
    """Nor does GDAL of what it writes as it closes a file."""
    tiff = TiffSheet(path, (48, 64), None, {})
    try:
        tiff.add(slice(0, 48), np.zeros((48, 64), dtype=np.uint8))
        tiff.close()
    except OSError:
        tiff.discard()
        raise


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
WRITES: dict[str, Callable[[Path], Any]] = {
    "state.pt": lambda path: save_state(path, {"x": torch.zeros(1000)}),
    "weights.pth": lambda path: write_weights(path, {"x": torch.zeros(1000)}, {}),
    "picture.png": lambda path: write_png(path, NOISE),
    "picture.jpg": lambda path: write_image(path, NOISE),
    "film.mp4": film,
    "sheet.tif": sheet,
    "report.json": lambda path: write_json(path, list(range(1000))),
    "text.toml": lambda path: write_text(path),
}


def write_text(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("x" * 1000)


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_leaves_nothing_behind_and_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match="too large") as error:
        WRITES[name](tmp_path / name)
    assert error.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"old"


def test_predictions_that_wait_on_a_full_disk_name_their_folder(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path)
    label = np.zeros((48, 64), dtype=np.uint8)
    with full_disk(), pytest.raises(OSError, match="too large") as error:
        cache.append("x", label, label.astype(np.uint16))
    assert error.value.filename == str(tmp_path)
    cache.close()


def test_a_film_ends_as_soon_as_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []

    def record(path: Path) -> None:
        with written_film(path, (64, 48), 25.0) as writer:
            for index in range(20):
                writer.add(np.zeros((48, 64, 3), dtype=np.uint8))
                frames.append(index)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with full_disk(), pytest.raises(OSError, match="too large"):
        record(tmp_path / "film.mp4")
    assert frames == []
    record(tmp_path / "film.mp4")  # what a file system says of itself is not believed
    assert cv2.VideoCapture(str(tmp_path / "film.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 20


def test_a_tiff_that_lost_rows_is_no_product(tmp_path: Path) -> None:
    tiff = TiffSheet(tmp_path / "x.tif", (48, 64), None, {})
    tiff.add(slice(0, 48), np.ones((48, 64), dtype=np.uint8))
    tiff._file.write(np.zeros((1, 8, 64), dtype=np.uint8), window=Window(0, 40, 64, 8))
    with pytest.raises(OSError, match="does not hold what was written"):
        tiff.close()
    assert list(tmp_path.iterdir()) == []


def test_a_log_on_a_full_disk_names_itself_and_can_be_gone_on_with(tmp_path: Path) -> None:
    def fill() -> None:
        with RunLog(tmp_path, tensorboard=False) as log:
            for step in range(10):
                log.scalars(step, {"loss": 1.0})

    with full_disk(), pytest.raises(OSError, match="too large") as error:
        fill()
    assert error.value.filename == str(tmp_path / "log.jsonl")
    with RunLog(tmp_path, tensorboard=False, resume_step=1):
        steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/last.pt"), 2, "run/last.pt cannot be written: No space"),
        (OSError(errno.EDQUOT, "Quota exceeded", "x"), 2, "Quota exceeded; make room"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            2,
            "2.00 GiB; what needs",
        ),
        (NonFiniteError("loss/seg not finite at update 3"), 1, "loss/seg not finite"),
        (FolderInUseError("run is in use"), 2, "run is in use"),
    ],
)
def test_one_clear_line_for_what_goes_wrong(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    def main(_: Any) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        launch(main)
    assert stop.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    def main(_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        launch(main)


# ---- two processes ----

HOLD = """
import sys, time
from utils.lock import only_one
with only_one(sys.argv[1], "remedy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in `tmp_path`/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(
    world: Path, tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    message = rf"run is in use by process {holder.pid} on \S+ since .*another --snapshot-dir"
    with pytest.raises(FolderInUseError, match=message):
        train(world, tmp_path / "run")
    with pytest.raises(FolderInUseError, match="another --save"), unfinished(tmp_path / "run", {}):
        pass
    (tmp_path / "run" / ".last.0123abcd.tmp.pt").touch()
    holder.kill()  # SIGKILL: the lock's file stays, the lock does not
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with only_one(tmp_path / "run", "remedy"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK], "what it left unfinished is removed"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with only_one(tmp_path, "remedy"):
        assert "is not locked (No locks available)" in capsys.readouterr().out


# ---- folders of predictions ----


def test_pseudo_labels_and_predictions_keep_to_themselves(
    world: Path, finished: Path, tmp_path: Path, script: Script
) -> None:
    """Thresholds vouch for every PNG that lies beside them."""
    where = predicting(tmp_path, world, finished)
    pseudo, predictions = tmp_path / "pseudo", tmp_path / "predictions"
    assert script("Generate_Pseudo_Label.py", *where, "--save", str(pseudo))[0] == 0
    assert script("evaluate_cityscapes.py", *where, "--save", str(predictions))[0] == 0
    before = {path: path.read_bytes() for folder in (pseudo, predictions) for path in folder.iterdir()}
    code, _, errors = script("evaluate_cityscapes.py", *where, "--save", str(pseudo))
    assert (code, "holds pseudo labels (thresholds.json); choose another --save" in errors) == (2, True)
    code, _, errors = script("Generate_Pseudo_Label.py", *where, "--save", str(predictions))
    assert (code, "holds PNGs that are no pseudo labels of this script" in errors) == (2, True)
    assert {path: path.read_bytes() for folder in (pseudo, predictions) for path in folder.iterdir()} == before


def test_a_run_does_not_go_among_the_images(world: Path, tmp_path: Path, script: Script) -> None:
    settings = write_settings(tmp_path / "own.toml", own_settings(world))
    code, _, errors = script("train_step1.py", "--config", str(settings), "--snapshot-dir", str(world / "images"))
    assert code == 2
    assert "images: images of the data are there; choose another folder to write to" in errors
    assert not (world / "images" / "run.lock").exists()


def predicting(folder: Path, data: Path, run: Path, **sections: Mapping[str, Any]) -> tuple[str, ...]:
    """Configuration, written into `folder`, and weights of a script that predicts."""
    settings = write_settings(folder / "own.toml", own_settings(data, **sections))
    return "--config", str(settings), "--restore-from", str(run)


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(
    world: Path,
    finished: Path,
    tmp_path: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("evaluate_cityscapes.py", *predicting(tmp_path, world, finished))
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert script(*command, "--save", str(whole))[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr("utils.background.atomic_write", failing_from("v1"))
        code, _, errors = script(*command, "--save", str(folder))
    assert code == 2
    assert "No space left" in errors
    left = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert UNFINISHED in left
    assert len(left) > 1
    code, _, errors = script("compute_iou.py", *command[1:3], str(world / "labels"), str(folder))
    assert code == 2
    assert "unfinished" in errors
    code, output, _ = script(*command, "--save", str(folder))
    assert code == 0
    assert "1 of 2 predictions are there already" in output
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert now.items() >= {name: at for name, at in left.items() if name.startswith("v0")}.items(), "kept"
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_an_interrupted_evaluation_by_other_settings_of_the_network_begins_anew(
    world: Path, finished: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights without a record take them from [model]."""
    bare = tmp_path / "bare.pth"
    shutil.copy(next(finished.glob("*_1.pth")), bare)
    command = ["evaluate_cityscapes.py", *predicting(tmp_path, world, bare)]
    other = ("--override", "model.input_mean=[0.0,0.0,0.0]")
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert script(*command, *other, "--save", str(whole))[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr("utils.background.atomic_write", failing_from("v1"))
        assert script(*command, "--save", str(folder))[0] == 2
    code, output, _ = script(*command, *other, "--save", str(folder))
    assert code == 0
    assert "are there already" not in output
    assert (folder / "v0.png").read_bytes() == (whole / "v0.png").read_bytes()


def test_an_image_named_as_the_colours_of_another_is_refused(finished: Path, tmp_path: Path, script: Script) -> None:
    own = tmp_path / "world"
    write_own(own)
    for folder in ("images", "labels"):
        (own / folder / "v1.png").rename(own / folder / "v0_color.png")
    (own / "val.txt").write_text("v0.png\nv0_color.png\n")
    code, _, errors = script("evaluate_cityscapes.py", *predicting(tmp_path, own, finished), "--save", "out")
    assert code == 2
    assert "the colours of v0 and the prediction of v0_color share a file" in errors
    (own / "val.txt").write_text("v0_color.png\n")
    (own / "labels" / "v0.png").unlink()
    command = predicting(tmp_path, own, finished)
    save = str(tmp_path / "out")
    assert script("evaluate_cityscapes.py", *command, "--save", save)[0] == 0
    only = tmp_path / "truth"
    only.mkdir()
    (own / "labels" / "v0_color.png").rename(only / "v0_color.png")
    code, output, errors = script("compute_iou.py", *command[:2], str(only), save)
    assert code == 0, errors
    assert "mIoU" in output


def test_predictions_of_pictures_never_replace_the_data(finished: Path, tmp_path: Path, script: Script) -> None:
    """Kinds of products may be called as the folders of the data are."""
    own = tmp_path / "world"
    write_own(own)
    before = (own / "labels" / "v0.png").read_bytes()
    settings = write_settings(tmp_path / "own.toml", own_settings(own))
    command = ("--config", str(settings), "--restore-from", str(finished), "--save", str(own))
    code, _, errors = script("predict.py", str(own / "images" / "v0.png"), *command)
    assert code == 2
    assert "labels: labels of the data are there; choose another folder to write to" in errors
    assert (own / "labels" / "v0.png").read_bytes() == before


def failing_from(name: str) -> Callable[[Path], Any]:
    """`atomic_write` that finds the disk full from a file on, by name."""

    def write(path: Path) -> Any:
        if path.name >= name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return files.atomic_write(path)

    return write


def test_unfinished_pseudo_labels_are_not_trained_on(
    world: Path,
    finished: Path,
    tmp_path: Path,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "pseudo"
    command = ("Generate_Pseudo_Label.py", *predicting(tmp_path, world, finished), "--save", str(folder))
    assert script(*command)[0] == 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert UNFINISHED not in whole
    with monkeypatch.context() as patched:
        patched.setattr("utils.background.atomic_write", failing_from("t2"))
        assert script(*command)[0] == 2
    assert (folder / UNFINISHED).exists(), "all PNGs are there, some of an earlier run"
    with pytest.raises(DataError, match="unfinished, Generate_Pseudo_Label"):
        train_stage(world, tmp_path / "run", "step2", "--ssl-target-dir", str(folder))
    assert script(*command)[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


# ---- determinism ----


@pytest.fixture
def _kernels_as_they_were() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("_kernels_as_they_were")
def test_deterministic_runs_are_equal_and_seeds_differ(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmentation, loading processes and initial weights included."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    stage = {"random_mirror": True, "random_scale": True, "num_steps": 1}
    run = {"num_workers": 1}
    first, again, other = (
        state_of(train(world, tmp_path / name, "--deterministic", "--random-seed", seed, run=run, step1=stage))
        for name, seed in (("first", "1"), ("again", "1"), ("other", "2"))
    )
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert differences(first, again) == []
    for part in ("network", "discriminator", "rng"):
        assert differences(first[part], other[part]), part


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("evaluate_cityscapes.py", "images"),
        ("evaluate_cityscapes.py", "labels"),
        ("Generate_Pseudo_Label.py", "labels"),
    ],
)
def test_nothing_is_written_over_the_data(
    world: Path, finished: Path, tmp_path: Path, script: Script, name: str, place: str
) -> None:
    """A flat corpus has files of the names that predictions get."""
    data = tmp_path / "data"
    shutil.copytree(world, data)
    (tmp_path / "link").symlink_to(data / place)
    where = predicting(tmp_path, data, finished)
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    for folder in (data / place, tmp_path / "link"):
        code, _, errors = script(name, *where, "--save", str(folder))
        assert code == 2
        assert errors.strip().endswith(f"{place} of the data are there; choose another folder to write to")
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before


@pytest.mark.parametrize("name", ["evaluate_cityscapes.py", "Generate_Pseudo_Label.py"])
def test_scores_that_are_no_numbers_become_no_labels(
    world: Path, finished: Path, tmp_path: Path, script: Script, name: str
) -> None:
    path = next(path for path in finished.glob("source_*.pth") if not path.stem.endswith("_D"))
    state = torch.load(path, weights_only=True)
    state["layer6.conv2d_list.0.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    where, folder = predicting(tmp_path, world, tmp_path / "nan.pth"), tmp_path / "out"
    code, _, errors = script(name, *where, "--save", str(folder))
    assert code == 1
    assert "0.png: the network's scores are not numbers; use --precision fp32, or other weights" in errors
    assert not list(folder.glob("*.png"))


# ---- what goes with what ----


def test_whose_pseudo_labels_these_are_is_said(
    world: Path,
    finished: Path,
    tmp_path: Path,
    script: Script,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pseudo = tmp_path / "pseudo"
    where = predicting(tmp_path, world, finished)
    assert script("Generate_Pseudo_Label.py", *where, "--save", str(pseudo))[0] == 0
    stage = {"num_steps": 1, "save_pred_every": 1, "pseudo_labels": str(pseudo)}
    said = {}
    for name, start in (("same", str(finished)), ("other", "random")):
        folder = train_stage(world, tmp_path / name, "step2", step2={**stage, "restore_from": start})
        said[name] = capsys.readouterr().out
        recorded = json.loads((folder / "manifest.json").read_text())["inputs"]["pseudo_labels"]
        assert recorded["restore_from"] == str(finished / LAST)
        assert f"pseudo labels: {pseudo}, of {finished / LAST}, sha256 {recorded['sha256'][:12]}" in said[name]
    note = "note: these pseudo labels are of other weights than the stage starts from"
    assert note in said["other"]
    assert note not in said["same"]
    (pseudo / "thresholds.json").unlink()
    train_stage(world, tmp_path / "unknown", "step2", step2={**stage, "restore_from": "random"})
    assert "has no thresholds.json, so what made these pseudo labels is not known" in capsys.readouterr().out


def test_weights_of_other_classes_are_refused_and_said(
    world: Path,
    finished: Path,
    tmp_path: Path,
    script: Script,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = {"names": ["sky", "road", "car", "person"]}
    where = predicting(tmp_path, world, finished, classes=classes)
    for name in ("evaluate_cityscapes.py", "Generate_Pseudo_Label.py"):
        code, _, errors = script(name, *where)
        assert code == 2
        assert "its class 0 is 'road', that of the class table 'sky'; name the configuration" in errors
    start = {"restore_from": str(finished)}
    train(world, tmp_path / "run", classes=classes, step1={**start, "num_steps": 1})
    assert "its class 0 is 'road', that of the class table 'sky'; a head of the same size" in capsys.readouterr().out


def test_few_labels_among_many_are_enough(world: Path, tmp_path: Path) -> None:
    """None of those that are looked at first has a labelled pixel."""
    data = tmp_path / "data"
    shutil.copytree(world, data)
    names = [f"s{index}.png" for index in range(20)]
    for name in names:
        save_png(data / "labels" / name, np.full((48, 64), 0 if name == "s1.png" else 255, dtype=np.uint8))
        shutil.copyfile(data / "images" / "s0.png", data / "images" / name) if name != "s0.png" else None
    (data / "source.txt").write_text("\n".join(names) + "\n")
    assert train(data, tmp_path / "run").is_dir()
    save_png(data / "labels" / "s1.png", np.full((48, 64), 255, dtype=np.uint8))
    with pytest.raises(DataError, match="labels without a labelled pixel, all of them"):
        train(data, tmp_path / "skipping", run={"bad_files": "skip"})


def test_a_score_is_that_of_the_checkpoint_it_stands_by(world: Path, finished: Path, tmp_path: Path) -> None:
    folder = copy(finished, tmp_path / "run")
    assert json.loads((folder / "manifest.json").read_text())["result"]["last"]["step"] == 1
    train(world, folder, "--continue-train", "--override", "run.validate=false")
    result = json.loads((folder / "manifest.json").read_text())["result"]
    assert (result["steps"], result["last"]) == (2, None)
    assert not read_run(folder).last


def test_diagnostics_do_without_target_labels(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    for path in (data / "labels").glob("[tv]*.png"):
        path.unlink()
    train(data, tmp_path / "run", run={"diagnostics": True, "validate": False})


def test_a_record_of_other_origin_may_be_anything(world: Path, finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "source_1.pth", weights_only=True)
    torch.save({"state_dict": state, "meta": {"classes": ["a", "b"]}}, tmp_path / "x.pth")
    train(world, tmp_path / "run", step1={"restore_from": str(tmp_path / "x.pth")})


@pytest.mark.parametrize(("letter", "title"), [("s", "source train"), ("v", "target val")])
def test_labels_that_are_all_ignored_end_a_training_before_it_begins(
    world: Path, tmp_path: Path, letter: str, title: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    for path in (data / "labels").glob(f"{letter}*.png"):
        save_png(path, np.full((48, 64), 255, dtype=np.uint8))
    with pytest.raises(
        DataError, match=f"{title}: labels without a labelled pixel, all of them.*correct ids and ignore"
    ):
        train(data, tmp_path / "run")


def test_a_stage_that_is_not_there_yet_names_its_script(world: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / LAST).write_bytes((finished / LAST).read_bytes())
    with pytest.raises(WeightsError, match=rf"or take stage 1: --restore-from {tmp_path / 'step1'}, or name a file"):
        networks.last_checkpoint(str(tmp_path / "step2"))
    with pytest.raises(WeightsError, match=r"first run python train_step2\.py --config configs/streets\.toml, or name"):
        networks.last_checkpoint("runs/streets/step2")


def test_the_split_travels_along_the_chain(world: Path, tmp_path: Path, script: Script) -> None:
    """Each script prints the next command; one that forgot `--set` would go on with other images."""
    (world / "few.txt").write_text("t0.png\nt1.png\n")
    stage = {"num_steps": 1, "save_pred_every": 1, "restore_from": "random"}
    made = own_settings(world, step1=stage, step2=stage)
    made["target"]["test_list"] = "few.txt"
    settings = str(write_settings(tmp_path / "own.toml", made))
    run, pseudo = str(tmp_path / "run"), str(tmp_path / "pseudo")
    code, output, errors = script("train_step1.py", "--config", settings, "--set", "test", "--snapshot-dir", run)
    assert code == 0, errors
    assert "Generate_Pseudo_Label.py" in output.splitlines()[-1]
    assert "--set test" in output.splitlines()[-1]
    where = ("--config", settings, "--restore-from", run, "--save", pseudo)
    code, output, errors = script("Generate_Pseudo_Label.py", *where, "--set", "test")
    assert code == 0, errors
    assert "--set test" in output.splitlines()[-1]
    assert "--set" not in script("Generate_Pseudo_Label.py", *where)[1].splitlines()[-1]


def test_official_ids_are_no_predictions(world: Path, tmp_path: Path, script: Script) -> None:
    settings = write_settings(tmp_path / "own.toml", own_settings(world))
    for name in ("v0", "v1"):
        save_png(tmp_path / "ids" / "below" / f"{name}.png", np.full((48, 64), 26, dtype=np.uint8))
    command = ("compute_iou.py", "--config", str(settings), str(world / "labels"), str(tmp_path / "ids"))
    code, _, errors = script(*command)
    assert code == 2
    assert "unknown label ids 26 (found 26); predictions are train ids: those of --save, not of --label-ids" in errors
    (tmp_path / "ids" / "below" / UNFINISHED).write_text("{}")
    code, _, errors = script(*command)
    assert code == 2
    assert f"{tmp_path / 'ids' / 'below'}: unfinished" in errors


def test_a_training_can_do_without_any_label_of_the_target(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    for path in (data / "labels").glob("[tv]*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"missing.*; to train without validation: --override run\.validate=false"):
        train(data, tmp_path / "run")
    folder = train(data, tmp_path / "run", "--override", "run.validate=false")
    assert "note: [run] validate = false, so there is no validation" in capsys.readouterr().out
    assert not (folder / "best.pth").exists()


def test_images_of_one_name_in_two_folders_are_scored_but_not_written(
    world: Path, finished: Path, tmp_path: Path, script: Script
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    for kind in ("images", "labels"):
        for folder, name in (("a", "v0.png"), ("b", "v1.png")):
            (data / kind / folder).mkdir()
            (data / kind / name).rename(data / kind / folder / "0.png")
    (data / "val.txt").write_text("a/0.png\nb/0.png\n")
    command = ("evaluate_cityscapes.py", *predicting(tmp_path, data, finished))
    assert script(*command, "--in-memory")[0] == 0
    code, _, errors = script(*command, "--save", str(tmp_path / "out"))
    assert code == 2
    assert "share the prediction 0.png" in errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "run"), "run: a file is there, where a folder should be"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: a file is there, where a folder should be"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "x.tmp", None, "out"),
            "out: a folder is there",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "run"), "run: Permission denied"),
        (
            FileExistsError(errno.EEXIST, "File exists", "dangling"),
            "dangling: a link that leads nowhere is there, where",
        ),
    ],
)
def test_places_where_nothing_can_be_written_are_named(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("nowhere")

    def main(_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        launch(main)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err
