"""The loop and one update of it, on a tiny world: determinism, resuming, switches, statistics, rates, precision."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks import profile
from benchmarks.iteration import Iteration, PlainIteration, published
from dataset.corpora import DataError
from dataset.loading import Batch
from model.bafft import BAFFT
from model.extras.lessons import LessonSettings
from tests.test_bafft import Waits
from tests.worlds import ALIGNED, SELF_TRAINED, own_settings, save_png, write_own, write_settings
from utils import datasets, engine, networks
from utils.checkpoint import CheckpointError
from utils.config import Config, ConfigError, build_config
from utils.engine import Pair, TrainState, UpdateRule, frozen, set_learning_rates, train_step
from utils.flags import TRAINING, parse
from utils.runtime import compile_network, prefetch, seed_everything
from utils.stage import run_stage

CPU = torch.device("cpu")
SEG_ONLY = {"seg": 1.0, "adv": 0.0, "stuff": 0.0, "instances": 0.0}
ALL_OFF = {**SEG_ONLY, "separation": 0.0, "aggregation": 0.0, "pseudo": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of one's own, with pseudo labels (noisy truth) for the target's training images in pseudo/."""
    root = tmp_path_factory.mktemp("world")
    write_own(root)
    for path in sorted((root / "labels").glob("t*.png")):
        label = np.array(Image.open(path))
        label[:, ::7] = 255
        save_png(root / "pseudo" / path.name, label)
    return root


# ---- whole runs ----


def train(world: Path, folder: Path, section: str = "step1", *flags: str, **sections: Mapping[str, Any]) -> Path:
    """A stage as its script runs it, into `folder`, which is returned."""
    keys = {"snapshot_dir": str(folder), "restore_from": "random", "pseudo_labels": str(world / "pseudo")}
    sections = {**sections, section: {**keys, **sections.get(section, {})}}
    path = write_settings(folder.with_suffix(".toml"), own_settings(world, **sections))
    config, options = parse(["--config", str(path), *flags], description="", section=section, flags=TRAINING)
    run_stage(config, options, section)
    return folder


def state_of(folder: Path) -> dict[str, Any]:
    """What a run would resume from, without its configuration."""
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["meta"]["config"], state["meta"]["seconds"]
    return state


def differences(left: Any, right: Any, place: str = "state") -> list[str]:
    """Places where two nested states differ by a single bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        missing = [f"{place}[{key!r}] on one side" for key in left.keys() ^ right.keys()]
        return missing + [
            d for k in left.keys() & right.keys() for d in differences(left[k], right[k], f"{place}[{k!r}]")
        ]
    if isinstance(left, (list, tuple)) and len(left) == len(right):
        return [d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in differences(a, b, f"{place}[{i}]")]
    same = torch.equal(left, right) if isinstance(left, Tensor) else left == right
    return [] if same else [place]


EVENTFUL = {"iter_size": 2, "random_mirror": True, "random_scale": True}


def test_the_seed_decides_every_bit(world: Path, tmp_path: Path) -> None:
    brief = {"num_steps": 3, "save_pred_every": 3, **EVENTFUL}
    first, again = (state_of(train(world, tmp_path / name, step1=brief)) for name in ("first", "again"))
    other = state_of(train(world, tmp_path / "other", "step1", "--random-seed", "5", step1=brief))
    assert differences(first, again) == []
    assert differences(first["network"]["layer6.conv2d_list.0.weight"], other["network"]["layer6.conv2d_list.0.weight"])


def test_source_and_target_are_augmented_apart(world: Path) -> None:
    """Of the same files at the same positions of their streams, some are mirrored in one domain alone."""
    stage = {"random_mirror": True, "weights": {"seg": 1.0}}
    settings = own_settings(world, target={**own_settings(world)["target"], "train_list": "source.txt"}, step1=stage)
    config = build_config(settings, where="test")
    classes = datasets.class_table(config)
    source = datasets.source_dataset(config, config.step1, classes)
    target = datasets.target_dataset(config, config.step1, classes)
    keys = [(position, position % len(source)) for position in range(20)]
    same = [torch.equal(source[key].image, target[key].image) for key in keys]
    assert 0 < sum(same) < len(keys)


@pytest.fixture(scope="module", params=["step1", "step2"])
def straight(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A section and a run of its twelve updates in one go."""
    folder = tmp_path_factory.mktemp("straight") / request.param
    return request.param, train(world, folder, request.param, **{request.param: EVENTFUL})


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    world: Path, tmp_path: Path, straight: tuple[str, Path], workers: int
) -> None:
    """Six updates, stop, six more: the same as twelve, whatever the number of workers."""
    section, uninterrupted = straight
    overlay = {section: EVENTFUL, "run": {**own_settings(world)["run"], "num_workers": workers}}
    folder = train(world, tmp_path / "run", section, "--num-steps-stop", "6", **overlay)
    assert state_of(folder)["step"] == 6
    train(world, folder, section, "--continue-train", **overlay)

    resumed, whole = state_of(folder), state_of(uninterrupted)
    assert whole["step"] == 12
    assert whole["memory"]["stuff_bank"]["inserted"].sum() > 0, "nothing was observed: the comparison is empty"
    assert differences(whole, resumed) == []
    assert (folder / "log.jsonl").read_text() == (uninterrupted / "log.jsonl").read_text()


def test_what_a_run_logs(straight: tuple[str, Path]) -> None:
    section, folder = straight
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss/seg" in line]
    assert [line["step"] for line in updates] == list(range(1, 13))
    assert [line["step"] for line in lines if "miou" in line] == [6, 12]
    losses = {key.removeprefix("loss/") for key in updates[0] if key.startswith("loss/")}
    weighted = ALIGNED if section == "step1" else SELF_TRAINED
    assert losses == {*weighted, "D_source", "D_target", "accepted"}
    assert updates[-1]["loss/seg"] < updates[0]["loss/seg"], "twelve updates teach the colours"
    rates = [line["learning_rate"] for line in updates]
    assert rates == pytest.approx([1e-3 * (1 - step / 12) ** 0.9 for step in range(12)])


def test_validation_does_not_disturb_training(world: Path, tmp_path: Path) -> None:
    often, seldom = (
        train(world, tmp_path / str(every), step1={"num_steps": 3, "save_pred_every": every}) for every in (1, 3)
    )
    left, right = state_of(often), state_of(seldom)
    assert differences(left["network"], right["network"]) == []
    assert differences(left["rng"], right["rng"]) == []


def test_source_only_reads_no_target_image_and_leaves_its_statistics_alone(tmp_path: Path) -> None:
    write_own(tmp_path)
    source_only = {"num_steps": 2, "save_pred_every": 2, "statistics": "source", "weights": SEG_ONLY}
    intact = state_of(train(tmp_path, tmp_path / "intact", step1=source_only))
    for path in (tmp_path / "images").glob("t*.png"):
        path.write_bytes(b"no image")
    blind = state_of(train(tmp_path, tmp_path / "blind", step1=source_only))
    assert differences(intact["network"], blind["network"]) == []
    # The same corruption stops a run that wants the target's statistics, and names the file.
    with pytest.raises(DataError, match=r"t\d\.png"):
        train(tmp_path, tmp_path / "both", step1={**source_only, "statistics": "both"})


def test_pseudo_labels_of_255_cost_nothing_and_training_goes_on(world: Path, tmp_path: Path) -> None:
    for path in sorted((world / "pseudo").glob("*.png")):
        save_png(tmp_path / "empty" / path.name, np.full((48, 64), 255, dtype=np.uint8))
    keys = {"num_steps": 2, "save_pred_every": 2, "pseudo_labels": str(tmp_path / "empty"), "iter_size": 2}
    folder = train(world, tmp_path / "run", "step2", step2=keys)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["loss/pseudo"] for line in lines if "loss/seg" in line] == [0.0, 0.0]
    assert all(value is not None for line in lines for key, value in line.items() if key.startswith("loss/"))
    weights = state_of(folder)["network"].values()
    assert all(torch.isfinite(weight).all() for weight in weights)


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    def broken(self: BAFFT, probabilities: Tensor) -> Tensor:
        return probabilities.sum() * math.nan

    monkeypatch.setattr(BAFFT, "adversarial_loss", broken)
    run = {**own_settings(world)["run"], "log_every": log_every}
    with pytest.raises(FloatingPointError, match=r"loss/adv.*update 1.*s\d.png"):
        train(world, tmp_path / "run", step1={"num_steps": 1}, run=run)
    assert not (tmp_path / "run" / "last.pt").exists()


# ---- one update ----


@dataclasses.dataclass
class Update:
    """What one update needs, taken from a configuration; `pair` holds the first source and target batches."""

    config: Config
    state: TrainState
    rule: UpdateRule
    batches: list[Pair]

    def run(self, **changes: Any) -> dict[str, Tensor]:
        """One update by a changed rule."""
        return train_step(self.state, dataclasses.replace(self.rule, **changes), self.batches)


@pytest.fixture
def update(world: Path) -> Callable[..., Update]:
    """Makes the first update of a stage that has pseudo labels."""

    def make(precision: str = "fp32", device: torch.device = CPU, **stage_keys: Any) -> Update:
        keys = {"pseudo_labels": str(world / "pseudo"), **stage_keys}
        config = build_config(own_settings(world, step2=keys), where="test")
        stage, classes = config.step2, datasets.class_table(config)
        seed_everything(3)
        network, normalize, _ = networks.initial_network("random", config, classes, device)
        method = networks.build_method(network, classes, config, stage, device)
        state = TrainState.fresh(method, stage, device=device, precision=precision)
        rule = UpdateRule(
            weights={**ALL_OFF, **dataclasses.asdict(stage.weights)},
            statistics=stage.statistics,
            precision=precision,
            normalize=normalize,
        )
        pairs = datasets.training_pairs(
            config,
            stage,
            datasets.source_dataset(config, stage, classes),
            datasets.target_dataset(config, stage, classes),
            start=0,
        )
        set_learning_rates(state, stage)
        state.method.train()
        return Update(config, state, rule, list(next(pairs)))

    return make


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients there are, by parameter."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def running_means(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if name.endswith("running_mean")}


def norms(module: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [child for child in module.modules() if isinstance(child, torch.nn.BatchNorm2d)]


def joined(pairs: list[Pair]) -> Pair:
    """Several batches as one, for source and target."""

    def join(batches: Any) -> Batch:
        images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
        return Batch(images, labels, [name for b in batches for name in b.names])

    source, target = zip(*pairs, strict=True)
    return join(source), join(target)


@pytest.mark.parametrize(
    "weights", [{"seg": 1.0}, {"pseudo": 1.0, "seg": 0.0}, {"seg": 1.0, "adv": 1.0, "pseudo": 0.5}]
)
def test_accumulated_batches_weigh_as_one_large_batch(update: Callable[..., Update], weights: dict[str, float]) -> None:
    """Statistics must be kept here: otherwise batch norm normalises each batch by that batch's own mean and variance,
    so two batches of one and one batch of two are different functions of the same images."""
    single = update(batch_size=1, iter_size=2)
    # Labels of unequal number show that the mean is over the pixels of the whole update.
    for side in single.batches[0]:
        side.labels[:, :30] = 255
    whole = [joined(single.batches)]
    found = []
    for batches in (single.batches, whole):
        fresh = update(batch_size=1, iter_size=2, statistics="kept")
        losses = train_step(fresh.state, dataclasses.replace(fresh.rule, weights={**ALL_OFF, **weights}), batches)
        found.append((losses, gradients(fresh.state.method)))
    (losses, left), (whole_losses, right) = found
    assert left.keys() == right.keys()
    assert left
    for name, loss in losses.items():
        torch.testing.assert_close(loss, whole_losses[name], rtol=1e-5, atol=1e-6)
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-4, atol=1e-6 * float(gradient.abs().max() + 1))


OFF_SWITCHES = {
    "adv": ["adversarial_loss", "discriminator_losses"],
    "alignment": ["view_source", "observe_and_describe", "observe_target", "alignment_losses"],
}


@pytest.mark.parametrize("term", OFF_SWITCHES)
def test_a_weight_of_zero_switches_the_term_off(
    update: Callable[..., Update], monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    for name in OFF_SWITCHES[term]:
        monkeypatch.setattr(BAFFT, name, lambda *_, name=name, **__: pytest.fail(f"{name} was computed"))
    on = {"adv": 0.0, **{key: 0.1 for key in ("stuff", "instances", "separation", "aggregation")}}
    weights = {**ALL_OFF, "pseudo": 1.0, **(on if term == "adv" else {"adv": 1.0})}
    losses = update().run(weights=weights)
    computed = {name for name, weight in weights.items() if weight}
    extra = {"accepted"} if term == "adv" else {"D_source", "D_target"}
    assert losses.keys() == computed | extra


def test_without_a_target_loss_the_target_leaves_no_gradient(update: Callable[..., Update]) -> None:
    """Its images still move the statistics when asked to (`both`), so the pass happens, without a graph."""
    both, source = update(), update()
    graphs: list[bool] = []
    both.state.method.network.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    both.run(weights=ALL_OFF, statistics="both")
    source.batches = [(pair[0], None) for pair in source.batches]
    source.run(weights=ALL_OFF, statistics="source")
    assert graphs == [True, False]
    assert differences(gradients(both.state.method), gradients(source.state.method)) == []
    assert gradients(both.state.method.discriminator) == {}


def test_the_discriminator_rests_where_there_is_no_adversary(update: Callable[..., Update]) -> None:
    fresh = update()
    before = {name: value.clone() for name, value in fresh.state.method.discriminator.state_dict().items()}
    fresh.run(weights={**ALL_OFF, "pseudo": 1.0})
    assert differences(before, fresh.state.method.discriminator.state_dict()) == []


def test_the_teacher_follows_what_the_update_made_of_the_network(update: Callable[..., Update]) -> None:
    """After its first update it is half of the network before and half of the network after."""
    fresh = update(weights={"seg": 1.0, "online": 1.0})
    before = {name: value.detach().clone() for name, value in fresh.state.method.network.named_parameters()}
    fresh.run()
    after = {name: value.detach() for name, value in fresh.state.method.network.named_parameters()}
    assert fresh.state.teacher is not None
    for name, value in fresh.state.teacher.network.named_parameters():
        torch.testing.assert_close(value, (before[name] + after[name]) / 2, rtol=0, atol=1e-7)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) > 1e-4


def test_the_teachers_labels_are_made_as_pseudo_labels_are(update: Callable[..., Update]) -> None:
    """Softmax on the feature grid, then upsampled (3.6)."""
    fresh = update(weights={"seg": 1.0, "online": 1.0})
    teacher, images = fresh.state.teacher, fresh.batches[0][1].images
    assert teacher is not None
    settings = LessonSettings(threshold=0.3, weighted_by="pixel")
    found = engine._teachers_labels(teacher, dataclasses.replace(fresh.rule, lessons=settings), images)
    with torch.no_grad():
        probabilities = teacher(fresh.rule.normalize(images)).logits.softmax(dim=1)
    full = F.interpolate(probabilities, size=images.shape[-2:], mode="bilinear", align_corners=True)
    confidence, labels = full.max(dim=1)
    certain = (confidence - 0.3).abs() > 1e-5  # beside the threshold rounding decides
    assert 0 < (confidence > 0.3).double().mean() < 1
    assert torch.equal((found.weights > 0)[certain], (confidence > 0.3)[certain])
    assert (found.labels == labels).double().mean() > 0.99


@pytest.mark.parametrize("statistics", ["source", "target", "both", "kept"])
def test_the_chosen_domain_moves_the_running_statistics(update: Callable[..., Update], statistics: str) -> None:
    """Against a network that has only seen the chosen images, in that order, in train mode."""
    fresh = update()
    start = running_means(fresh.state.method.network)
    fresh.run(statistics=statistics)
    moved = running_means(fresh.state.method.network)

    reference = update()
    chosen = {"source": [0], "target": [1], "both": [0, 1], "kept": []}[statistics]
    with torch.no_grad():
        for pair in reference.batches:
            for side in chosen:
                reference.state.method.network(reference.rule.normalize(pair[side].images))
    expected = running_means(reference.state.method.network)
    for name, mean in moved.items():
        torch.testing.assert_close(mean, expected[name])
        assert torch.equal(mean, start[name]) == (statistics == "kept")
    assert {str(norm.num_batches_tracked) for norm in norms(fresh.state.method.network)} == {f"tensor({len(chosen)})"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_frozen_stays_to_the_bit_while_the_head_learns(world: Path, tmp_path: Path, optimizer: str) -> None:
    model = {**own_settings(world)["model"], "freeze_backbone": True}
    brief = {"num_steps": 3, "save_pred_every": 3, "optimizer": optimizer, "statistics": "kept"}
    one, three = (
        state_of(train(world, tmp_path / str(stop), model=model, step1={**brief, "num_steps_stop": stop}))["network"]
        for stop in (1, 3)
    )
    with pytest.raises(CheckpointError, match="the backbone is frozen"):
        train(world, tmp_path / "1", "step1", "--continue-train", step1={**brief, "num_steps_stop": 2})
    moved = {name for name, value in one.items() if not torch.equal(value, three[name])}
    assert moved == {f"layer6.conv2d_list.{branch}.{part}" for branch in (0, 1) for part in ("weight", "bias")}


def test_a_run_takes_the_input_statistics_of_the_weights_that_it_starts_from(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mean(folder: Path) -> list[float]:
        return json.loads(next(folder.glob("*_1.json")).read_text())["input"]["mean"]

    model, brief = own_settings(world)["model"], {"num_steps": 2, "save_pred_every": 1}
    first = train(world, tmp_path / "a", model={**model, "input_mean": [10.0, 20.0, 30.0]}, step1=brief)
    started = {**brief, "restore_from": str(first), "num_steps_stop": 1}
    second = train(world, tmp_path / "b", model=model, step1=started)
    assert mean(first) == mean(second) == [10, 20, 30]
    assert "input_mean" not in capsys.readouterr().out
    train(world, second, "step1", "--continue-train", model=model, step1={**started, "num_steps_stop": 2})
    assert json.loads(next(second.glob("*_2.json")).read_text())["input"]["mean"] == [10, 20, 30]
    train(world, tmp_path / "c", model={**model, "input_mean": [1.0, 2.0, 3.0]}, step1=started)
    assert mean(tmp_path / "c") == [10, 20, 30]
    assert "note: [model] input_mean has no effect: the weights were trained with [10.0, 20.0, 30.0]" in (
        capsys.readouterr().out
    )


def test_losses_without_effect_on_a_frozen_backbone_are_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**own_settings(world)["model"], "freeze_backbone": True}
    networks, said = {}, {}
    alone = {"seg": 1.0, "stuff": 0.1, "instances": 0.1}
    ways = {"aligned": ALIGNED, "adversary": {**SEG_ONLY, "adv": ALIGNED["adv"]}, "alone": alone, "source": SEG_ONLY}
    for name, weights in ways.items():
        stage = {"num_steps": 2, "save_pred_every": 2, "statistics": "kept", "weights": weights}
        networks[name] = state_of(train(world, tmp_path / name, model=model, step1=stage))["network"]
        said[name] = "".join(capsys.readouterr())
    assert differences(networks["aligned"], networks["adversary"]) == []
    assert differences(networks["alone"], networks["source"]) == []
    assert "note: stuff, instances: no effect" in said["aligned"]
    assert "frozen backbone" not in said["adversary"]


@pytest.mark.parametrize("step", [0, 7, 11])
def test_learning_rates_fall_polynomially_and_the_head_learns_ten_times_as_fast(
    update: Callable[..., Update], step: int
) -> None:
    fresh = update(learning_rate=2.5e-4, learning_rate_d=1e-4, num_steps=12)
    fresh.state.step = step
    decay = (1 - step / 12) ** 0.9
    rates = {"learning_rate": 2.5e-4 * decay, "learning_rate_D": 1e-4 * decay}
    assert set_learning_rates(fresh.state, fresh.config.step2) == pytest.approx(rates)
    assert [group["lr"] for group in fresh.state.optimizer.param_groups] == pytest.approx(
        [2.5e-4 * decay, 2.5e-3 * decay]
    )
    assert [group["lr"] for group in fresh.state.optimizer_d.param_groups] == pytest.approx([1e-4 * decay])


def test_each_trainable_parameter_is_in_exactly_one_group(update: Callable[..., Update]) -> None:
    """The released backbone group held parameters three times, at three times the rate."""
    state = update().state
    listed = [id(p) for group in state.optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in state.method.network.parameters() if p.requires_grad]
    assert sorted(listed) == sorted(trainable)
    head = {id(p) for p in state.method.network.head.parameters() if p.requires_grad}
    assert {id(p) for p in state.optimizer.param_groups[1]["params"]} == head
    (group,) = state.optimizer_d.param_groups
    assert sorted(map(id, group["params"])) == sorted(map(id, state.method.discriminator.parameters()))
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.99), 0)
    assert {g["momentum"] for g in state.optimizer.param_groups} == {0.9}
    assert {g["weight_decay"] for g in state.optimizer.param_groups} == {5e-4}


def test_an_update_moves_by_the_head_factor(update: Callable[..., Update]) -> None:
    """Plain SGD's first step is lr * (gradient + decay * weight), the head at ten times lr."""
    fresh = update(weight_decay=5e-4)
    before = {name: p.detach().clone() for name, p in fresh.state.method.network.named_parameters()}
    fresh.run(weights=ALL_OFF)
    for name, parameter in fresh.state.method.network.named_parameters():
        if parameter.grad is None:
            assert torch.equal(parameter, before[name])
            continue
        rate = 1e-2 if name.startswith("layer6") else 1e-3
        expected = before[name] - rate * (parameter.grad + 5e-4 * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_adversarial_loss_reaches_the_network_and_not_the_discriminator(update: Callable[..., Update]) -> None:
    fresh = update()
    method = fresh.state.method
    logits = torch.randn(1, 4, 48, 64, requires_grad=True)
    with frozen(method.discriminator):
        method.adversarial_loss(logits.softmax(dim=1)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert gradients(method.discriminator) == {}
    assert all(p.requires_grad for p in method.discriminator.parameters())


def test_the_discriminators_gradient_does_not_depend_on_the_adversarial_weight(update: Callable[..., Update]) -> None:
    found = []
    for weight in (1e-3, 1e3):
        fresh = update()
        fresh.run(weights={**ALL_OFF, "adv": weight})
        found.append(gradients(fresh.state.method.discriminator))
    assert found[0]
    assert differences(found[0], found[1]) == []


def test_frozen_leaves_what_was_frozen_before_as_it_was() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[0].requires_grad_(False)
    with contextlib.suppress(KeyError), frozen(module):
        assert not any(p.requires_grad for p in module.parameters())
        raise KeyError
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


# ---- precision ----


def check_precision(update: Callable[..., Update], precision: str, device: torch.device) -> None:
    exact = update(device=device).run()
    fresh = update(precision, device)
    losses = fresh.run()
    assert losses.keys() == exact.keys()
    assert all(p.dtype == torch.float32 for p in fresh.state.method.parameters())
    for name in ("seg", "pseudo", "adv", "D_source", "D_target"):
        torch.testing.assert_close(losses[name].float(), exact[name], rtol=0.05, atol=0.02)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_bf16_on_the_cpu_is_close_to_fp32(update: Callable[..., Update]) -> None:
    check_precision(update, "bf16", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_on_cuda_is_close_to_fp32(update: Callable[..., Update], precision: str) -> None:
    check_precision(update, precision, torch.device("cuda"))


def test_fp16_scales_the_loss_and_recovers_from_an_overflow(update: Callable[..., Update]) -> None:
    """A scale that overflows costs an update and halves the scale; the weights stay as they were."""
    fresh = update("fp16")
    fresh.state.scaler.load_state_dict({**fresh.state.scaler.state_dict(), "scale": 2.0**125})
    before = {name: p.detach().clone() for name, p in fresh.state.method.network.named_parameters()}
    # fp32 arithmetic, so that the CPU needs no half-precision convolutions: the scaler alone is in question.
    fresh.run(precision="fp32", weights={**ALL_OFF, "seg": 1e6})
    assert differences(before, dict(fresh.state.method.network.named_parameters())) == []
    assert fresh.state.scaler.get_scale() == 2.0**124


def test_fp16_without_any_loss_moves_statistics_alone(update: Callable[..., Update]) -> None:
    fresh = update("fp16")
    network = fresh.state.method.network
    weights, means = {n: p.detach().clone() for n, p in network.named_parameters()}, running_means(network)
    fresh.run(precision="fp32", weights={**ALL_OFF, "seg": 0.0})
    assert differences(weights, dict(network.named_parameters())) == []
    assert differences(means, running_means(network))


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (["--opt-level", "O0"], "fp32"),
        (["--opt-level", "O2"], "fp16"),
        (["--opt-level", "O1", "--precision", "fp16"], "fp16"),
    ],
)
def test_apexs_levels_are_names_for_precisions(world: Path, tmp_path: Path, flags: list[str], precision: str) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(world))
    config, options = parse(["--config", str(path), *flags], description="", section="step1", flags=TRAINING)
    assert config.run.precision == precision
    assert any("apex's amp is retired" in note for note in options.notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--opt-level", "O4"], "--opt-level O4: choose one of O0, O1, O2, O3"),
        (["--opt-level", "O1", "--precision", "bf16"], "--opt-level O1 means --precision fp16, not bf16"),
    ],
)
def test_a_level_that_means_something_else_is_refused(
    world: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(world))
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(path), *flags], description="", section="step1", flags=TRAINING)


# ---- speed and memory ----


class Operations(Waits):
    """Every operation by its name, and those that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize(("precision", "scalars"), [("fp32", 0), ("fp16", 4)])
def test_an_update_waits_for_the_device_once_and_takes_one_softmax_per_image(
    update: Callable[..., Update], monkeypatch: pytest.MonkeyPatch, precision: str, scalars: int
) -> None:
    """The label maps go to the host in one copy; the optimisers are fused, as on CUDA, and ask for nothing.

    scalars: what the loss scaler copies from its device to its device; here that is the host.
    """
    monkeypatch.setattr(engine, "fuses", lambda device: True)
    fresh = update(precision, batch_size=1)
    # fp32 arithmetic, so that the CPU needs no half-precision convolutions: the scaler alone is in question.
    fresh.run(precision="fp32")
    with Operations() as operations:
        fresh.run(precision="fp32")
    assert operations.calls == ["_to_copy"] * (1 + scalars)
    assert {name: operations.count[name] for name in ("_log_softmax", "_softmax", "exp")} == {
        "_log_softmax": 2,  # source and target
        "_softmax": 0,
        "exp": 2,
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("resumed_fused", [True, False])
def test_fused_and_unfused_runs_resume_each_other(
    update: Callable[..., Update], monkeypatch: pytest.MonkeyPatch, optimizer: str, resumed_fused: bool
) -> None:
    def make(fused: bool) -> Update:
        monkeypatch.setattr(engine, "fuses", lambda device: fused)
        return update(optimizer=optimizer)

    first, second, reference = make(not resumed_fused), make(resumed_fused), make(not resumed_fused)
    first.run()
    reference.run()
    second.state.load_state_dict(first.state.state_dict() | {"format": "", "meta": {}})
    for half in (second, reference):
        half.run()
    for pair in zip(second.state.optimizer.param_groups, reference.state.optimizer.param_groups, strict=True):
        assert [group["fused"] for group in pair] == [resumed_fused, not resumed_fused]
    expected = reference.state.method.state_dict()
    for name, value in second.state.method.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_gradients_lie_in_memory_as_their_weights_do(update: Callable[..., Update]) -> None:
    """Fused kernels need that; it is also what shows that channels_last reaches the backward pass."""
    fresh = update()
    fresh.run()
    weights = {name: p for name, p in fresh.state.method.named_parameters() if p.grad is not None}
    assert all(p.grad is not None and _layout(p.grad) == _layout(p) for p in weights.values())
    wide = [p for name, p in weights.items() if name.startswith("network.layer") and p.shape[-1] == 3]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)


def _layout(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have any extent."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def test_checkpointed_training_is_the_same_to_the_bit(world: Path, tmp_path: Path) -> None:
    brief = {"num_steps": 2, "save_pred_every": 2, "statistics": "source", "iter_size": 2}
    model = own_settings(world)["model"]
    plain, recomputed = (
        state_of(train(world, tmp_path / str(on), "step2", step2=brief, model={**model, "checkpointing": on}))
        for on in (False, True)
    )
    assert differences(plain, recomputed) == []


def test_a_compiled_run_has_the_same_checkpoints(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that traces and generates no code: whether kernels can be made here is not in question."""
    compiled = []

    def traced(network: torch.nn.Module, device: torch.device) -> None:
        compile_network(network, device, backend="eager")
        compiled.append(network)

    monkeypatch.setattr("utils.stage.compile_network", traced)
    brief = {"num_steps": 2, "save_pred_every": 1, "weights": ALIGNED}
    plain = state_of(train(world, tmp_path / "plain", step1=brief))
    folder = train(world, tmp_path / "compiled", "step1", "--compile", "--num-steps-stop", "1", step1=brief)
    assert len(compiled) == 1
    train(world, folder, "step1", "--continue-train", step1=brief)
    resumed = state_of(folder)
    assert plain["network"].keys() == resumed["network"].keys()
    for name, value in plain["network"].items():
        torch.testing.assert_close(resumed["network"][name], value, rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_compiled_a_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nlong story")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(ConfigError, match=r"\[run\] compile: .*\(No working C\+\+ compiler found\); leave it out"):
        compile_network(torch.nn.Identity(), CPU)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"compile": True}, "model": {"checkpointing": True}}, "compile cannot look into .* checkpointing"),
        ({"run": {"compile": True}, "model": {"inplace_abn": True}}, "compile cannot look into .* inplace_abn"),
        ({"run": {"precision": "bf16"}, "model": {"inplace_abn": True}}, "inplace_abn knows no bf16"),
    ],
)
def test_switches_that_exclude_each_other(world: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(own_settings(world, **sections), where="test")


def test_prefetching_keeps_the_order_and_reads_nothing_ahead_on_the_cpu() -> None:
    read = []

    def items() -> Iterator[int]:
        for item in range(3):
            read.append(item)
            yield item

    stream = prefetch(items(), lambda item: 10 * item, CPU)
    assert next(stream) == 0
    assert read == [0]
    assert list(stream) == [10, 20]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefetching_on_cuda_copies_every_item() -> None:
    device = torch.device("cuda")
    items = [torch.full((1000, 1000), float(number)).pin_memory() for number in range(8)]
    moved = prefetch(items, lambda item: item.to(device, non_blocking=True), device)
    assert [float(item.mean()) for item in moved] == list(range(8))


def test_loaders_pin_memory_for_cuda_alone(world: Path) -> None:
    config = build_config(own_settings(world), where="test")
    assert not datasets.prediction_loader(config, "val", datasets.class_table(config), labelled=True).pin_memory


# ---- benchmarks ----


def test_the_iteration_that_is_written_down_plainly_has_the_same_losses() -> None:
    config = published(quick=True)
    ours = Iteration.random(config, "step2", CPU)
    plain = PlainIteration(Iteration.random(config, "step2", CPU), None)
    losses, expected = ours.run(), plain.run()
    assert losses.keys() - {"accepted"} == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-3, atol=1e-5)
    assert expected["separation"] > 0
    torch.testing.assert_close(ours.run(), losses, rtol=0, atol=0)


@pytest.mark.parametrize("flags", [[], ["--data"]])
def test_the_profile_accounts_for_an_iteration(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    keys = {"pseudo_labels": str(world / "pseudo")}
    path = write_settings(tmp_path / "own.toml", own_settings(world, step2=keys))
    arguments = ["--config", str(path), "--iterations", "1", "--json", str(tmp_path / "profile.json"), *flags]
    profile.main(arguments)
    seconds = json.loads((tmp_path / "profile.json").read_text())["seconds"]
    parts = {"source forward", "source backward", "target forward", "target backward", "alignment", "adversary"}
    assert parts < seconds.keys()
    assert all(value >= 0 for value in seconds.values())
    assert "% of a large matrix product" in capsys.readouterr().out


def test_the_profile_reads_images_as_training_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def noted(config: Any, stage: Any, source: Any, target: Any, *, start: int) -> Iterator[Any]:
        seen.append(source)
        return iter(())

    monkeypatch.setattr(profile.datasets, "training_pairs", noted)
    translation = {"method": "lab", "styles": 2}
    settings = own_settings(
        world, translation=translation, step1={"rare_classes": 0.1, "snapshot_dir": str(tmp_path / "run")}
    )
    config = build_config(settings, where="test")
    list(profile._real(config, "step1", CPU))
    [source] = seen
    assert source.translate is not None
    assert source.shows is not None
    assert not (tmp_path / "run").exists()
