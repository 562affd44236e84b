"""`python -m dataset.translate`: the translator's losses and training, and the copies that three methods write."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from benchmarks import translated_source
from dataset import translate
from dataset.labels import same_shape
from dataset.translation import COPIES, METHODS
from model.deeplab import build_network
from model.translator import (
    LEAST_SIZE,
    CycleGAN,
    Generator,
    ImagePool,
    PatchDiscriminator,
    least_squares,
    semantic_consistency,
    to_bytes,
    to_unit,
)
from model.weights import write_weights
from tests.conftest import Script
from tests.worlds import NAMES, own_settings, write_official, write_own, write_settings
from utils import cyclegan, datasets
from utils.config import CycleGANSettings, build_config, read_config
from utils.mistakes import MISTAKES
from utils.nonfinite import NonFiniteError
from utils.sheet import BAR, MARGIN

ROOT = Path(__file__).resolve().parents[1]
TINY = {"width": 2, "blocks": 1, "discriminator_width": 2, "crop": [40, 32], "pool": 2, "num_steps": 4, "save_every": 2}


def images(*shape: int, seed: int = 0) -> Tensor:
    """(*shape) within -1..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny(**keys: Any) -> CycleGAN:
    torch.manual_seed(0)
    return CycleGAN(**{"width": 2, "blocks": 1, "discriminator_width": 2, "pool": 2, "crop": (32, 32), **keys})


# ---- the networks ----


@pytest.mark.parametrize("size", [(LEAST_SIZE, LEAST_SIZE), (9, 13), (33, 30), (35, 64)])
def test_a_translation_has_the_size_of_its_image(size: tuple[int, int]) -> None:
    painted = Generator(width=2, blocks=1)(images(2, 3, *size))
    assert painted.shape == (2, 3, *size)
    assert painted.abs().max() <= 1


def test_a_discriminator_answers_for_every_eighth_pixel() -> None:
    judge = PatchDiscriminator(width=2)
    assert judge(images(2, 3, 64, 96)).shape == (2, 1, 6, 10)
    assert judge(images(1, 3, 32, 32)).shape == (1, 1, 2, 2)


def test_bytes_survive_the_networks_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(values)), values)
    assert (to_unit(values).min(), to_unit(values).max()) == (-1, 1)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


# ---- the losses ----


def test_least_squares_by_hand() -> None:
    scores = torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    assert least_squares(scores, 1.0).item() == pytest.approx((0.25 + 0 + 4 + 1) / 4)
    assert least_squares(torch.zeros(3), 0.0) == 0


def test_semantic_consistency_agrees_with_the_naive_divergence() -> None:
    before, after = images(2, 4, 3, 5, seed=1) * 4, images(2, 4, 3, 5, seed=2) * 4
    total = 0.0
    for b in range(2):
        for y in range(3):
            for x in range(5):
                p, q = ([math.exp(v) for v in logits[b, :, y, x].tolist()] for logits in (before, after))
                p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
                total += sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
    assert semantic_consistency(before, after).item() == pytest.approx(total / 30, rel=1e-5)


def test_semantic_consistency_moves_the_translation_alone() -> None:
    before, after = (images(1, 3, 2, 2, seed=seed).requires_grad_() for seed in (1, 2))
    semantic_consistency(before, after).backward()
    assert before.grad is None
    assert after.grad is not None
    assert after.grad.abs().max() > 0
    shifted = before.detach() + 5.0  # the same opinion, other logits
    assert semantic_consistency(before, shifted).item() == pytest.approx(0, abs=1e-6)


def test_the_generators_losses_are_those_of_the_paper() -> None:
    method, source, target = tiny(), images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    segment = nn.Conv2d(3, 4, 3)
    losses, fake_target, fake_source = method.generator_losses(source, target, segment=segment)
    to_target, to_source = method.to_target, method.to_source
    assert torch.equal(fake_target, to_target(source))
    assert torch.equal(fake_source, to_source(target))
    expected = {
        "adv": (1 - method.judge_target(to_target(source))).pow(2).mean()
        + (1 - method.judge_source(to_source(target))).pow(2).mean(),
        "cycle": (to_source(to_target(source)) - source).abs().mean()
        + (to_target(to_source(target)) - target).abs().mean(),
        "identity": (to_target(target) - target).abs().mean() + (to_source(source) - source).abs().mean(),
        "semantic": F.kl_div(segment(fake_target).log_softmax(1), segment(source).softmax(1), reduction="none")
        .sum(1)
        .mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert method.generator_losses(source, target, identity=False)[0].keys() == {"adv", "cycle"}


def test_generators_that_change_nothing_lose_only_against_the_discriminators() -> None:
    method, source, target = tiny(), images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    method.to_target = method.to_source = nn.Identity()  # type: ignore[assignment]
    losses, *_ = method.generator_losses(source, target, segment=nn.Conv2d(3, 4, 3))
    assert losses["cycle"] == losses["identity"] == losses["semantic"] == 0 < losses["adv"]


def test_discriminators_learn_from_real_and_translated_alike() -> None:
    method = tiny(pool=0)
    source, target, fake_target, fake_source = (images(1, 3, 32, 32, seed=seed) for seed in range(4))
    losses = method.discriminator_losses(source, target, fake_target, fake_source)
    for name, judge, real, fake in (
        ("judge_target", method.judge_target, target, fake_target),
        ("judge_source", method.judge_source, source, fake_source),
    ):
        torch.testing.assert_close(losses[name], ((judge(real) - 1).pow(2).mean() + judge(fake).pow(2).mean()) / 2)


# ---- the pool ----


def test_a_pool_fills_and_then_swaps() -> None:
    torch.manual_seed(0)
    pool, seen, swapped = ImagePool(3, crop=(2, 2)), [], 0
    for number in range(200):
        image = torch.full((1, 3, 2, 2), float(number))
        held = set(pool.images[: int(pool.filled), 0, 0, 0].tolist())
        (given,) = pool.swap(image)[:, 0, 0, 0].tolist()
        seen.append(number)
        assert given == number or given in held
        assert int(pool.filled) == min(3, number + 1)
        if given != number:
            assert set(pool.images[:, 0, 0, 0].tolist()) == held - {given} | {number}
            swapped += 1
    assert 60 < swapped < 140  # one half


def test_a_pool_of_none_hands_images_through() -> None:
    batch = images(2, 3, 4, 4)
    assert ImagePool(0, crop=(4, 4)).swap(batch) is batch


# ---- the training ----


@given(st.integers(0, 1000), st.booleans())
def test_a_crop_is_a_part_of_its_image(seed: int, mirror: bool) -> None:
    whole = torch.arange(2 * 3 * 7 * 9).reshape(2, 3, 7, 9)
    parts = cyclegan.crops(whole, (4, 5), np.random.default_rng(seed), mirror=mirror)
    assert parts.shape == (2, 3, 5, 4)
    for part, image in zip(parts, whole, strict=True):
        windows = [image[:, y : y + 5, x : x + 4] for y in range(3) for x in range(6)]
        assert any(torch.equal(part, window) or (mirror and torch.equal(part.flip(-1), window)) for window in windows)


def test_the_rate_is_constant_and_then_falls_to_nothing() -> None:
    settings = CycleGANSettings(num_steps=10, learning_rate=1.0)
    rates = [cyclegan.learning_rate(settings, step) for step in range(11)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of one's own without target labels, a segmenter, and a configuration; the folder that scripts run in."""
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "data", images=6)
    names = [f"s{number}.png\n" for number in range(6)]
    (tmp_path / "data" / "source.txt").write_text("".join(names[:5]))
    (tmp_path / "data" / "held_out.txt").write_text(names[5])
    for path in (tmp_path / "data" / "labels").glob("t*.png"):
        path.unlink()
    network = build_network("resnet18", num_classes=len(NAMES), width=4)
    write_weights(tmp_path / "segmenter.pth", network.state_dict(), {"architecture": network.architecture()})
    settings = own_settings(tmp_path / "data", cyclegan={**TINY, "segmenter": "segmenter.pth"})
    settings["source"]["val_list"] = "held_out.txt"
    write_settings(tmp_path / "tiny.toml", settings)
    return tmp_path


def train(world: Path, *flags: str) -> None:
    translate.main(["tiny.toml", "--method", "cyclegan", *flags])


def refused(*flags: str) -> str:
    """The one line that answers a user's mistake."""
    with pytest.raises(MISTAKES) as mistake:
        translate.main(["tiny.toml", *flags])
    assert len(str(mistake.value).splitlines()) == 1
    return str(mistake.value)


def state(folder: Path) -> dict[str, Any]:
    saved = torch.load(folder / "last.pt", weights_only=True)
    del saved["meta"]["seconds"], saved["meta"]["settings"]["snapshot_dir"]
    return saved


def assert_same(left: Any, right: Any) -> None:
    """Equal to the bit, however nested."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    elif isinstance(left, Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def test_a_training_goes_on_as_if_it_had_not_been_stopped(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(world, "--snapshot-dir", "whole", "--save", "a")

    save = cyclegan.TranslatorRun.snapshot

    def stop(run: cyclegan.TranslatorRun) -> None:
        save(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cyclegan.TranslatorRun, "snapshot", stop)
        with pytest.raises(KeyboardInterrupt):
            train(world, "--snapshot-dir", "parts", "--save", "b")
    assert state(world / "parts")["step"] == 2
    torch.manual_seed(99)  # whatever else has drawn
    train(world, "--snapshot-dir", "parts", "--save", "b", "--continue-train")

    assert_same(state(world / "parts"), state(world / "whole"))
    logs = [(world / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [1, 2, 3, 4]
    for name in ("s0.png", "s4.png"):
        assert (world / "a" / "images" / name).read_bytes() == (world / "b" / "images" / name).read_bytes()


def test_a_training_that_is_asked_to_end_saves_what_it_has(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(world, "--snapshot-dir", "whole", "--save", "a")
    update = cyclegan.TranslatorRun.update

    def interrupted(run: cyclegan.TranslatorRun, *arguments: Any) -> str:
        if run.state.step == 3:
            run.request.take(signal.SIGTERM, None)
        return update(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cyclegan.TranslatorRun, "update", interrupted)
        with pytest.raises(SystemExit) as stop:
            train(world, "--snapshot-dir", "parts", "--save", "b")
    assert stop.value.code == 143
    assert state(world / "parts")["step"] == 3
    train(world, "--snapshot-dir", "parts", "--save", "b", "--continue-train")
    assert_same(state(world / "parts"), state(world / "whole"))


def test_a_training_goes_on_with_the_same_images_alone(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(world, "--num-steps", "2")
    more = ("--method", "cyclegan", "--continue-train")
    assert "other images of the source" in refused(*more, "--data-list", "held_out.txt")
    assert "batch_size: 1 -> 2" in refused(*more, "--batch-size", "2")
    capsys.readouterr()
    train(world, "--num-steps", "2", "--save", "one", "--data-list", "held_out.txt", "--random-seed", "7")
    out = capsys.readouterr().out
    assert "trained on other images of the source (by" in out
    assert "other images of the target" not in out
    assert "[run] seed: 1234 -> 7" in out


def test_weights_that_are_no_numbers_are_not_saved(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(state: cyclegan.TranslatorState, *_: Any, **__: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            state.method.generators()[0].fill_(math.inf)
        return {"adv": torch.zeros(())}

    monkeypatch.setattr(cyclegan, "train_step", step)
    with pytest.raises(NonFiniteError, match="weights are not finite at update 2"):
        train(world)
    assert not (world / "runs" / "tiny" / "cyclegan" / "last.pt").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_moves_every_network_and_leaves_the_segmenter(world: Path, precision: str) -> None:
    config = build_config(read_config(world / "tiny.toml"), where="tiny")
    device = torch.device("cpu")
    segment = cyclegan.segmenter(config, datasets.class_table(config), device)
    assert segment is not None
    probe = images(1, 3, 32, 40)
    opinion = segment(probe)
    torch.manual_seed(0)
    trained = cyclegan.TranslatorState.fresh(config.cyclegan, device=device, precision=precision)
    before = {name: value.clone() for name, value in trained.method.named_parameters() if value.dim() > 1}
    losses = cyclegan.train_step(
        trained, config.cyclegan, images(1, 3, 32, 40, seed=1), probe, segment=segment, precision=precision
    )
    assert losses.keys() == {"adv", "cycle", "identity", "semantic", "judge_target", "judge_source"}
    assert all(value.isfinite() for value in losses.values())
    after = dict(trained.method.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(segment(probe), opinion)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--segmenter", ""], "--segmenter RUN"),
        (["--override", "cyclegan.crop=[72,16]"], "crop must be [width, height]"),
        (["--override", "cyclegan.blocks=-1"], "[cyclegan] blocks must be at least 0"),
        (["--override", "cyclegan.lamda_cycle=1"], "did you mean lambda_cycle"),
        (["--continue-train"], "no runs/tiny/cyclegan/last.pt to go on from"),
        (["--method", "fad"], "choose from"),
    ],
)
def test_a_mistake_is_one_clear_line(world: Path, flags: list[str], said: str) -> None:
    assert said in refused("--method", "cyclegan", *flags)


def test_a_crop_is_never_larger_than_the_images(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(world, "--override", "cyclegan.crop=[99,36]")
    assert "crop = [99, 36] is larger than the images; it is [64, 36]" in capsys.readouterr().out
    assert state(world / "runs" / "tiny" / "cyclegan")["method"]["pool_target.images"].shape == (2, 3, 36, 64)


def test_a_training_left_before_its_first_state_begins_anew(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world / "runs" / "tiny" / "cyclegan"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").touch()
    train(world, "--continue-train")
    assert "was left before its first snapshot, so it begins anew" in capsys.readouterr().out
    assert (folder / "last.pt").exists()


def test_an_unfinished_translator_is_not_taken_for_a_finished_one(world: Path) -> None:
    train(world, "--num-steps", "2")
    line = refused("--method", "cyclegan")
    assert "add --continue-train" in line
    assert "--num-steps 2" in line


# ---- the copies ----


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def size_of(path: Path) -> tuple[int, int]:
    """(W, H)."""
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("method", COPIES)
def test_a_copy_of_the_source(world: Path, script: Script, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    translate.main(["tiny.toml", "--method", method, "--json", "copy.json"])
    out = capsys.readouterr().out
    copy, data = world / "runs" / "tiny" / "translated" / method, world / "data"
    names = [f"s{number}.png" for number in range(5)]
    assert sorted(path.name for path in (copy / "images").iterdir()) == names
    for name in names:
        assert (copy / "labels" / name).read_bytes() == (data / "labels" / name).read_bytes()
        assert pixels(copy / "images" / name).shape == pixels(data / "images" / name).shape
        assert not np.array_equal(pixels(copy / "images" / name), pixels(data / "images" / name))
    rows = 5
    assert size_of(copy / "before_after.png") == (3 * 64 + 2 * MARGIN, rows * (48 + MARGIN) + BAR)
    assert json.loads((world / "copy.json").read_text())["splits"]["train"]["state"] == "complete"

    fragment = copy / f"tiny_{method}.toml"
    assert str(fragment.relative_to(world)) in out.splitlines()[-1]
    config = build_config(read_config(fragment), where=str(fragment))
    classes = datasets.class_table(config)
    samples = datasets.corpus(config, "source", classes).samples("train", labelled=True)
    assert [sample.image for sample in samples] == [Path("runs/tiny/translated") / method / "images" / n for n in names]
    by_flag = build_config({**read_config("tiny.toml"), "source": {**config.source, "images": "images"}}, where="")
    assert datasets.corpus(by_flag, "source", classes).samples("train", labelled=True) == samples
    code, out, error = script("dataset.check", str(fragment))
    assert code == 0, out + error


def run(*flags: str) -> None:
    translate.main(["tiny.toml", "--method", "lab", *flags])


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_processes_changes_nothing(method: str, world: Path) -> None:
    run("--method", method, "--save", "none", "--num-workers", "0")
    run("--method", method, "--save", "one", "--num-workers", "1")
    for path in sorted((world / "none" / "images").iterdir()):
        assert path.read_bytes() == (world / "one" / "images" / path.name).read_bytes()


def test_a_stopped_copy_is_completed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--save", "copy")
    folder = world / "copy" / "images"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = (folder / "s0.png").stat().st_mtime_ns
    (folder / "s1.png").unlink()
    (folder / "s2.png").write_bytes(before["s2.png"][:40])
    (folder / ".s3.0123abcd.tmp.png").write_bytes(b"unfinished")
    run("--save", "copy")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (folder / "s0.png").stat().st_mtime_ns == kept
    assert "3 of an earlier run" in capsys.readouterr().out


def test_another_split_joins_the_copy(world: Path) -> None:
    run("--save", "copy")
    run("--save", "copy", "--set", "val")
    manifest = json.loads((world / "copy" / "translation.json").read_text())
    assert {split: entry["state"] for split, entry in manifest["splits"].items()} == {
        "train": "complete",
        "val": "complete",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "fda"], "translation = "),
        (["--random-seed", "7"], "seed = 1234, not 7"),
        (["--styles", "2"], "styles = 6, not 2"),
        (["--input-size", "40,40"], "size = [64, 48], not [40, 40]"),
        (["--data-list", "val.txt"], "train: images = 5, not 2"),
    ],
)
def test_copies_are_not_mixed(world: Path, flags: list[str], said: str) -> None:
    run("--save", "copy")
    line = refused("--method", "lab", "--save", "copy", *flags)
    assert said in line
    assert "choose another --save" in line


def test_a_folder_of_something_else_is_left_alone(world: Path) -> None:
    (world / "other" / "images").mkdir(parents=True)
    (world / "other" / "images" / "s3.png").write_bytes(b"mine")
    assert "was not written by dataset.translate" in refused("--method", "lab", "--save", "other")
    assert "this is the source itself" in refused("--method", "lab", "--save", "data")


@pytest.mark.parametrize("theirs", ["source.txt", "tiny_lab.toml", "before_after.png", "images/deep/other.png"])
def test_no_file_of_something_else_is_replaced_or_joined(world: Path, theirs: str) -> None:
    """The root of a target that is laid out as the source, for one."""
    path = world / "other" / theirs
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert f"{path.name}: exists and was not written by" in refused("--method", "lab", "--save", "other")
    assert path.read_bytes() == b"mine"


def test_labels_of_something_else_are_not_taken_for_the_sources(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "other" / "labels").mkdir(parents=True)
    (world / "other" / "labels" / "s3.png").write_bytes((world / "data" / "labels" / "s1.png").read_bytes())
    monkeypatch.setattr(cyclegan, "trained_translator", None)  # refused before hours of training
    for method in COPIES:
        assert "s3.png: exists and was not written by" in refused("--method", method, "--save", "other")


def test_a_label_that_was_lost_or_changed_is_made_again(world: Path) -> None:
    run("--save", "copy")
    labels = {path.name: path.read_bytes() for path in (world / "data" / "labels").glob("s[0-4].png")}
    lost, changed = (world / "copy" / "labels" / name for name in ("s0.png", "s1.png"))
    lost.unlink()
    changed.unlink()  # else the source's would be written to
    changed.write_bytes(labels["s2.png"])
    run("--save", "copy")
    assert {path.name: path.read_bytes() for path in lost.parent.iterdir()} == labels
    assert {name: (world / "data" / "labels" / name).read_bytes() for name in labels} == labels


def test_a_copy_is_not_translated_once_more_while_it_is_read(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_config("tiny.toml") | {"translation": {"method": "lab", "styles": 2}}
    write_settings(world / "tiny.toml", settings)
    run("--save", "copy", "--override", "translation.method=lab")
    assert "--data-dir copy --translation none" in (out := capsys.readouterr().out)
    assert "--translation" not in out.splitlines()[-1]
    fragment = read_config(world / "copy" / "tiny_lab.toml")
    assert fragment["translation"] == {"method": "none", "styles": 2}


def test_a_copy_names_the_validation_list_that_it_has(world: Path) -> None:
    run("--save", "copy")
    assert read_config(world / "copy" / "tiny_lab.toml")["source"]["val_list"] == ""
    run("--save", "copy", "--set", "val")
    assert read_config(world / "copy" / "tiny_lab.toml")["source"]["val_list"] == "held_out.txt"


def test_the_benchmark_reads_a_copy_as_stored(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def noted(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(translated_source.subprocess, "run", noted)
    flags = ["tiny.toml", "--cyclegan", "copy", "--out", "runs/t", "--results", "results"]
    translated_source.main(flags)
    said = [" ".join(command).partition("--snapshot-dir ")[2] for command in commands]
    assert said[0] == "runs/t/none_seed0 --translation none"
    assert said[-1] == "runs/t/cyclegan_seed0 --data-dir copy --translation none"


def test_the_style_of_an_image_depends_on_its_name_alone(world: Path) -> None:
    run("--save", "all")
    (world / "data" / "source.txt").write_text("s3.png\ns1.png\n")
    run("--save", "two")
    for name in ("s1.png", "s3.png"):
        assert (world / "two" / "images" / name).read_bytes() == (world / "all" / "images" / name).read_bytes()


def test_labels_are_copied_where_they_cannot_be_linked(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    run("--save", "linked")
    assert (world / "linked" / "labels" / "s0.png").samefile(world / "data" / "labels" / "s0.png")
    monkeypatch.setattr(translate.os, "link", refuse)
    run("--save", "copied")
    twin, label = world / "copied" / "labels" / "s0.png", world / "data" / "labels" / "s0.png"
    assert not twin.samefile(label)
    assert twin.read_bytes() == label.read_bytes()


def test_images_of_many_sizes_go_through_the_generator(world: Path) -> None:
    """Neighbours of one size share a batch; a copy is never larger than its image, and too small is one line."""
    for name, size in (("s1.png", (70, 40)), ("s2.png", (70, 40)), ("s3.png", (200, 100))):
        for folder in ("images", "labels"):
            path = world / "data" / folder / name
            Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)
    train(world, "--override", "evaluate.batch_size=3")
    copy = world / "runs" / "tiny" / "translated" / "cyclegan" / "images"
    assert [size_of(copy / f"s{i}.png") for i in range(5)] == [(64, 48), (70, 40), (70, 40), (96, 48), (64, 48)]
    Image.new("RGB", (1, 1)).save(world / "data" / "images" / "s4.png")
    assert "s4.png: 1x1 pixels" in refused("--method", "cyclegan", "--save", "new")


def test_official_folders_keep_their_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_official(tmp_path / "gta5", tmp_path / "city")
    config = str(ROOT / "configs" / "gta5_to_cityscapes.toml")
    flags = [
        "--data-dir",
        "gta5",
        "--data-list",
        "",
        "--data-dir-target",
        "city",
        "--save",
        "copy",
        "--num-workers",
        "0",
    ]
    lists = ["--override", 'target.train_list=""', "--override", "source.expected={}"]
    translate.main([config, "--method", "fda", *flags, *lists])
    assert (tmp_path / "copy" / "labels" / "00001.png").samefile(tmp_path / "gta5" / "labels" / "00001.png")
    fragment = read_config(tmp_path / "copy" / "gta5_to_cityscapes_fda.toml")
    assert fragment["source"]["root"] == "copy"
    assert fragment["target"] == read_config(config)["target"]


@given(*[st.tuples(st.integers(1, 3000), st.integers(1, 3000)) for _ in range(2)])
def test_a_translated_image_covers_the_input_in_its_own_shape(native: tuple[int, int], size: tuple[int, int]) -> None:
    found = translate.covering(native, size)
    assert same_shape(found, native)
    assert all(1 <= side <= own for side, own in zip(found, native, strict=True))
    covered = all(side >= wanted for side, wanted in zip(found, size, strict=True))
    assert covered or found == native
    assert any(side <= wanted for side, wanted in zip(found, size, strict=True)) or found == (1, 1)


# ---- the criterion ----


def test_the_criterion_scores_copies_between_source_and_target(world: Path, script: Script) -> None:
    for method in COPIES:  # copies that are the source
        (world / "translated").mkdir(exist_ok=True)
        (world / "translated" / method).symlink_to(world / "data")
    code, out, error = script(
        "benchmarks.translation",
        *("tiny.toml", "--oracle", "segmenter.pth", "--translated", "translated", "--json", "scores.json"),
    )
    assert code == 0, error
    result = json.loads((world / "scores.json").read_text())
    assert result["gap_closed"] == {method: 0 for method in COPIES}
    assert result["scores"]["lab"] == result["scores"]["source"] != result["scores"]["target"]
    assert "cyclegan: " in out
