"""Configurations and flags: every shipped file builds, every historical flag lands, every mistake is one line."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset.transforms import Normalize
from model.deeplab import build_network
from model.extras.lessons import EXTRA_LOSSES
from tests.worlds import own_settings, write_settings
from utils import datasets, networks
from utils.config import (
    Config,
    ConfigError,
    CycleGANSettings,
    Evaluate,
    LossWeights,
    Model,
    PseudoLabels,
    Run,
    Stage,
    Translation,
    build_config,
)
from utils.flags import EVALUATION, PICTURES, PREDICTION, TRAINING, TRANSLATING, Flag, Options, parse
from utils.notes import say_idle_notes

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.toml"))
SECTIONS: dict[str, Sequence[Flag]] = {
    "step1": TRAINING,
    "step2": TRAINING,
    "pseudo_label": PREDICTION,
    "evaluate": PREDICTION,
}
META = torch.device("meta")


def read(section: str, *argv: str) -> tuple[Config, Options]:
    """What the script of a section makes of a command line."""
    return parse(argv, description="", section=section, flags=SECTIONS[section])


def refuse(section: str, *argv: str) -> str:
    """The one line that refuses a command line."""
    with pytest.raises(ConfigError) as caught:
        read(section, *argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def value_at(config: Config, path: str) -> Any:
    """The value of a dotted key."""
    found: Any = config
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    return found


# ---- shipped files ----


def test_files_are_shipped() -> None:
    assert {"gta5_to_cityscapes.toml", "camvid_day_to_dusk.toml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_builds(path: Path) -> None:
    """Down to network, banks and corpora; on the meta device, which has shapes and no numbers."""
    config, _ = read("step1", "--config", str(path))
    classes = datasets.class_table(config)
    for domain in ("source", "target"):
        assert datasets.corpus(config, domain, classes).decoding.num_classes == classes.num_classes
    with META:
        network = build_network(
            config.model.name,
            num_classes=classes.num_classes,
            branches=config.model.branches,
            width=config.model.width,
            output_stride=config.model.output_stride,
        )
        for stage in (config.step1, config.step2):
            method = networks.build_method(network, classes, config, stage, META)
            assert method.stuff_bank.slots == stage.num_prototype
            assert method.thing_bank.slots == 10 * stage.num_prototype


def test_without_config_a_script_means_the_released_settings() -> None:
    """Spec 1, the table of hyper-parameters."""
    config, options = read("step1")
    released = {
        "num_steps": 250000,
        "num_steps_stop": 200000,
        "batch_size": 1,
        "iter_size": 1,
        "learning_rate": 2.5e-4,
        "head_lr_factor": 10.0,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "learning_rate_d": 1e-4,
        "power": 0.9,
        "num_prototype": 50,
        "instances": 10,
        "save_pred_every": 5000,
        "random_mirror": False,
        "random_scale": False,
        "random_turn": False,
    }
    assert {key: getattr(config.step1, key) for key in released} == released
    assert {key: getattr(config.step2, key) for key in released} == {
        **released,
        "num_steps": 300000,
        "num_steps_stop": 0,
    }
    extras = dict.fromkeys(EXTRA_LOSSES, 0.0)
    assert dataclasses.asdict(config.step1.weights) == extras | {
        "seg": 1.0,
        "adv": 1e-3,
        "stuff": 1e-2,
        "instances": 1e-2,
        "separation": 0.0,
        "aggregation": 0.0,
        "pseudo": 0.0,
    }
    assert dataclasses.asdict(config.step2.weights) == extras | {
        "seg": 1.0,
        "adv": 1e-3,
        "stuff": 1e-3,
        "instances": 1e-3,
        "separation": 1e-3,
        "aggregation": 0.0,
        "pseudo": 1.0,
    }
    assert (config.source["size"], config.target["size"]) == ([1280, 720], [1024, 512])
    assert config.pseudo_label.size == (1024, 512)
    assert (config.pseudo_label.cap, config.pseudo_label.proportion) == (0.9, 0.5)
    assert (config.source["root"], config.target["root"]) == ("data/gta5_deeplab", "data/Cityscapes")
    assert (config.model.name, config.model.branches, config.evaluate.save) == ("resnet101", 2, "result/cityscapes")
    assert options.name == "gta5_to_cityscapes"


def test_the_input_mean_is_the_files_then_the_settings_then_the_networks(tmp_path: Path) -> None:
    network = build_network("resnet18", num_classes=4, width=4)
    own = build_config(own_settings(tmp_path), where="own")
    set_ = build_config(own_settings(tmp_path, model={"input_mean": [1, 2, 3]}), where="set")
    recorded = {"input": {"order": "RGB", "mean": [4, 5, 6], "std": [7, 8, 9]}}
    assert networks.normalizer(network, own, {}).mean == pytest.approx((104.00698793, 116.66876762, 122.67891434))
    assert networks.normalizer(network, set_, {}) == Normalize(mean=(1, 2, 3))
    assert networks.normalizer(network, set_, {"step": 3}) == Normalize(mean=(1, 2, 3))
    assert networks.normalizer(network, set_, recorded) == Normalize(order="RGB", mean=(4, 5, 6), std=(7, 8, 9))


@pytest.mark.parametrize("mean", [[1, 2], [1, 2, 256], [1, 2, -1], [1, 2, float("nan")]])
def test_an_input_mean_is_three_grey_values(tmp_path: Path, mean: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"input_mean must be three numbers within 0\.\.255"):
        build_config(own_settings(tmp_path, model={"input_mean": mean}), where="own")


# ---- handing over ----


def test_each_default_input_is_what_the_step_before_wrote() -> None:
    config, _ = read("step2")
    assert config.step1.restore_from == config.model.restore_from == "torchvision"
    assert config.step1.snapshot_dir == "runs/gta5_to_cityscapes/step1"
    assert config.pseudo_label.restore_from == config.step2.restore_from == config.step1.snapshot_dir
    assert config.step2.pseudo_labels == config.pseudo_label.save == "runs/gta5_to_cityscapes/pseudo_labels"
    assert config.evaluate.restore_from == config.step2.snapshot_dir == "runs/gta5_to_cityscapes/step2"
    assert config.step1.prefix == config.step2.prefix == "GTA5"


def test_what_is_given_is_handed_over_in_place_of_the_default(tmp_path: Path) -> None:
    given = own_settings(tmp_path, step1={"snapshot_dir": "here"}, pseudo_label={"save": "there"})
    config, _ = read("step2", "--config", str(write_settings(tmp_path / "own.toml", given)))
    assert config.pseudo_label.restore_from == config.step2.restore_from == "here"
    assert config.step2.pseudo_labels == "there"
    assert config.step2.snapshot_dir == "runs/own/step2"
    assert config.step1.prefix == "source"


def test_a_run_folder_means_its_last_checkpoint_not_the_best(tmp_path: Path) -> None:
    for name in ("last.pt", "best.pth"):
        (tmp_path / name).touch()
    assert networks.last_checkpoint(str(tmp_path)) == tmp_path / "last.pt"
    assert networks.last_checkpoint(str(tmp_path / "best.pth")) == str(tmp_path / "best.pth")
    assert networks.last_checkpoint("random") == "random"


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config, _ = read("step1", "--random-mirror", "--input-size", "640,360")
    text = tomli_w.dumps(config.to_dict())
    assert build_config(tomli.loads(text), where="config.toml") == config


# ---- the historical flags ----

TRAINING_FLAGS = [  # flag, value, key, what the key then holds
    ("--data-dir", "a", "source.root", "a"),
    ("--data-list", "a.txt", "source.train_list", "a.txt"),
    ("--input-size", "640,360", "source.size", [640, 360]),
    ("--data-dir-target", "b", "target.root", "b"),
    ("--data-list-target", "b.txt", "target.train_list", "b.txt"),
    ("--data-list-target-test", "c.txt", "target.val_list", "c.txt"),
    ("--input-size-target", "512,256", "target.size", [512, 256]),
    ("--batch-size", "3", "{section}.batch_size", 3),
    ("--iter-size", "4", "{section}.iter_size", 4),
    ("--num-workers", "0", "run.num_workers", 0),
    ("--learning-rate", "1e-3", "{section}.learning_rate", 1e-3),
    ("--learning-rate-D", "1e-5", "{section}.learning_rate_d", 1e-5),
    ("--momentum", "0.8", "{section}.momentum", 0.8),
    ("--weight-decay", "0", "{section}.weight_decay", 0.0),
    ("--power", "1", "{section}.power", 1.0),
    ("--lambda-adv-target", "0.1", "{section}.weights.adv", 0.1),
    ("--lambda-adv-cls", "0.2", "{section}.weights.stuff", 0.2),
    ("--lambda-adv-ins", "0.3", "{section}.weights.instances", 0.3),
    ("--num-steps", "400000", "{section}.num_steps", 400000),
    ("--num-steps-stop", "7", "{section}.num_steps_stop", 7),
    ("--num-prototype", "20", "{section}.num_prototype", 20),
    ("--random-mirror", None, "{section}.random_mirror", True),
    ("--random-scale", None, "{section}.random_scale", True),
    ("--random-turn", None, "{section}.random_turn", True),
    ("--random-seed", "5", "run.seed", 5),
    ("--restore-from", "w.pth", "{section}.restore_from", "w.pth"),
    ("--save-pred-every", "11", "{section}.save_pred_every", 11),
    ("--snapshot-dir", "s", "{section}.snapshot_dir", "s"),
    ("--ssl-target-dir", "p", "{section}.pseudo_labels", "p"),
    ("--set", "train_extra", "{section}.split", "train_extra"),
    ("--tensorboard", None, "run.tensorboard", True),
    ("--no-tensorboard", None, "run.tensorboard", False),
    ("--log-dir", "l", "run.log_dir", "l"),
    ("--cpu", None, "run.device", "cpu"),
    ("--gpu", "1", "run.device", "cuda:1"),
    ("--model", "DeepLab", "model.name", "DeepLab"),
]
PREDICTION_FLAGS = [
    ("--data-dir", "a", "target.root", "a"),
    ("--set", "test", "{section}.split", "test"),
    ("--save", "out", "{section}.save", "out"),
    ("--restore-from", "w.pth", "{section}.restore_from", "w.pth"),
    ("--model", "VGG", "model.name", "VGG"),
    ("--num-workers", "0", "run.num_workers", 0),
    ("--random-seed", "5", "run.seed", 5),
    ("--cpu", None, "run.device", "cpu"),
    ("--gpu", "0", "run.device", "cuda:0"),
]
FLAG_TABLE = [(section, *row) for section in ("step1", "step2") for row in TRAINING_FLAGS] + [
    ("step2", "--lambda-adv-cate", "0.4", "{section}.weights.separation", 0.4),
    *((section, *row) for section in ("pseudo_label", "evaluate") for row in PREDICTION_FLAGS),
]


@pytest.mark.parametrize(("section", "flag", "text", "path", "expected"), FLAG_TABLE)
def test_a_historical_flag_sets_its_key_and_nothing_else(
    section: str, flag: str, text: str | None, path: str, expected: Any
) -> None:
    path = path.format(section=section)
    config, options = read(section, *([flag] if text is None else [flag, text]))
    assert value_at(config, path) == expected
    assert options.notes == ()
    # What hands over moves with its origin, so the comparison is of what the flag's own section said otherwise.
    data = config.to_dict()
    default = read(section)[0].to_dict()
    handed_on = {"step1.snapshot_dir", "pseudo_label.save", "step2.snapshot_dir"}
    if path not in handed_on:
        assert set(_differences(default, data)) <= {path}


def _differences(left: Any, right: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in left.keys() | right.keys():
            yield from _differences(left.get(key), right.get(key), f"{prefix}{key}.")
    elif left != right:
        yield prefix.rstrip(".")


@pytest.mark.parametrize("flags", [TRAINING, PREDICTION, EVALUATION, TRANSLATING, PICTURES])
def test_every_flag_is_explained(flags: Sequence[Flag]) -> None:
    assert [flag.name for flag in flags if not flag.help] == []


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("step1", "momentum of SGD (step1.momentum = 0.9)"),
        ("step2", "weight of stuff matching (step2.weights.stuff = 0.0)"),
        ("step1", "root folder of the source (source.root)"),
        ("step1", "a run folder, random, torchvision or timm (step1.restore_from)"),
        ("evaluate", "weights: a file or a run folder (evaluate.restore_from)"),
        ("pseudo_label", "weights: a file or a run folder (pseudo_label.restore_from)"),
    ],
)
def test_help_names_the_key_and_its_default(section: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(section, "--help")
    assert said in " ".join(capsys.readouterr().out.split())


def test_continue_train_reaches_the_script() -> None:
    assert not read("step1")[1].continue_train
    assert read("step1", "--continue-train")[1].continue_train


@pytest.mark.parametrize(("section", "split"), [("pseudo_label", "train"), ("evaluate", "val")])
def test_data_list_means_the_target_where_a_script_predicts(section: str, split: str) -> None:
    config, _ = read(section, "--data-list", "names.txt")
    assert config.target[f"{split}_list"] == "names.txt"
    assert not [key for key in config.source if key.endswith("_list")]


@pytest.mark.parametrize("section", ["pseudo_label", "evaluate"])
def test_data_list_is_the_list_of_the_split_that_set_names(section: str) -> None:
    config, _ = read(section, "--data-list", "names.txt", "--set", "test")
    assert config.target["test_list"] == "names.txt"
    assert value_at(config, f"{section}.split") == "test"


@pytest.mark.parametrize("section", SECTIONS)
def test_flags_that_never_had_an_effect_are_accepted_and_said(section: str) -> None:
    argv = ("--target", "cityscapes", "--is-training", "--not-restore-last", "--save-num-images", "2")
    config, options = read(section, *argv)
    assert config == read(section)[0]
    assert [note.split()[0] for note in options.notes] == [item for item in argv if item.startswith("--")]
    assert all("no effect" in note for note in options.notes)


def test_the_flag_wins_over_the_file_and_override_over_the_flag(tmp_path: Path) -> None:
    path = str(write_settings(tmp_path / "own.toml", own_settings(tmp_path, run={"seed": 1})))
    assert read("step1", "--config", path)[0].run.seed == 1
    assert read("step1", "--config", path, "--random-seed", "2")[0].run.seed == 2
    assert read("step1", "--config", path, "--random-seed", "2", "--override", "run.seed=3")[0].run.seed == 3


# ---- override ----


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("run.seed=7", "run.seed", 7),
        ("step2.weights.adv=0.5", "step2.weights.adv", 0.5),
        ("step1.aim_weights=[1, 2.5]", "step1.aim_weights", (1.0, 2.5)),
        ("target.size=[256,128]", "target.size", [256, 128]),
        ("run.tensorboard=false", "run.tensorboard", False),
        ("step1.statistics=source", "step1.statistics", "source"),  # text needs no quotes
        ("model.restore_from=a=b.pth", "model.restore_from", "a=b.pth"),
        ("target.val_list=lists/val.txt", "target.val_list", "lists/val.txt"),
    ],
)
def test_override_sets_any_key(assignment: str, path: str, expected: Any) -> None:
    assert value_at(read("step1", "--override", assignment)[0], path) == expected


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("run.sede=1", "seed"),
        ("stp1.power=1", "step1"),
        ("run.seed", "section.key=value"),
        ("=1", "section.key=value"),
        ("run=1", "run"),
        ("run.seed.deep=1", "seed"),
        ("classes.names=1", "classes"),
        ("run.seed=1979-05-27", "seed"),
        ("step1.weights=1", "weights"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(assignment: str, named: str) -> None:
    assert named in refuse("step1", "--override", assignment)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--batchsize", "2"], ["--batchsize", "--batch-size"]),
        (["--lambda-adv-clss=2"], ["--lambda-adv-clss", "--lambda-adv-cls"]),
        (["--lerning-rate", "1"], ["--learning-rate"]),
        (["--batch-size", "two"], ["--batch-size", "two"]),
        (["--batch-size", "0"], ["batch_size", "at least 1"]),
        (["--num-steps", "5", "--num-steps-stop", "6"], ["num_steps", "num_steps_stop"]),
        (["--learning-rate", "nan"], ["learning_rate"]),
        (["--momentum", "-1"], ["momentum"]),
        (["--momentum", "5"], ["command line: [step1] momentum", "below 1"]),
        (["--learning-rate", "inf"], ["learning_rate", "finite"]),
        (["--lambda-adv-cls", "-1"], ["weights.stuff", "at least 0"]),
        (["--override", "step1.powr=1"], ["command line: step1", "powr", "power"]),
        (["--random-seed", "-1"], ["seed"]),
        (["--random-seed", str(2**70)], ["seed"]),
        (["--lambda-adv-cls", "nan"], ["stuff"]),
        (["--lambda-adv-cls", "inf"], ["stuff"]),
        (["--input-size", "640x360"], ["--input-size", "WIDTH,HEIGHT"]),
        (["--input-size", "16,16"], ["size", "32"]),
        (["--precision", "fp8"], ["precision", "fp16"]),
        (["--cpu", "--gpu", "0"], ["--cpu", "--gpu"]),
        (["--gpu", "-1"], ["--gpu", "-1"]),
        (["--ignore-label", "7"], ["--ignore-label", "255"]),
        (["--override", "step1.statistics=sorce"], ["statistics", "source"]),
        (["--config", "nowhere.toml"], ["nowhere.toml", "configs"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_names_the_remedy(argv: list[str], named: list[str]) -> None:
    message = refuse("step1", *argv)
    assert all(word in message for word in named), message


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"run": {"sed": 1}}, ["sed", "seed"]),
        ({"step1": {"learning_rates": 1}}, ["learning_rates", "learning_rate"]),
        ({"step1": {"weights": {"cls": 1.0}}}, ["cls"]),
        ({"stepp1": {"num_steps": 1}}, ["stepp1", "step1"]),
        ({"run": {"seed": 1.5}}, ["seed", "whole number", "1.5"]),
        ({"run": {"seed": True}}, ["seed", "whole number", "True"]),
        ({"run": {"tensorboard": 1}}, ["tensorboard", "true or false"]),
        ({"run": {"precision": 16}}, ["precision", "text"]),
        ({"step1": {"learning_rate": "fast"}}, ["learning_rate", "number", "fast"]),
        ({"step1": {"weights": [1]}}, ["weights", "section"]),
        ({"pseudo_label": {"size": [64]}}, ["size", "2"]),
        ({"pseudo_label": {"cap": 1.5}}, ["cap", "0..1"]),
        ({"source": {"size": "big"}}, ["[source] size", "big"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_file_and_key(
    tmp_path: Path, sections: dict[str, Any], named: list[str]
) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(tmp_path, **sections))
    message = refuse("step1", "--config", str(path))
    assert all(word in message for word in [str(path), *named]), message


def numbers() -> Iterator[tuple[str, type]]:
    """Dotted key of every number of the configuration, or list of numbers, and its type."""
    sections = {
        "run": Run,
        "model": Model,
        "translation": Translation,
        "cyclegan": CycleGANSettings,
        **{"step1": Stage, "step1.weights": LossWeights, "pseudo_label": PseudoLabels, "evaluate": Evaluate},
    }
    for section, kind in sections.items():
        for key, hint in typing.get_type_hints(kind).items():
            leaf = (*typing.get_args(hint), hint)[0]
            if leaf in (int, float):
                yield f"{section}.{key}", leaf


# Refused with the name of the setting by what they are given to, or with the whole list that they are in.
OTHERWISE = {"model.branches", "model.output_stride", "model.feature_strides", "cyclegan.crop", "model.input_mean"}
OTHERWISE |= {"pseudo_label.scales", "evaluate.scales"}


@pytest.mark.parametrize(("key", "kind"), [entry for entry in numbers() if entry[0] not in OTHERWISE])
def test_every_number_has_its_range(key: str, kind: type) -> None:
    """None may be below 0; what is no whole number may be neither infinite nor no number at all."""
    wrong = ("-1",) if kind is int else ("-1", "-inf", "inf", "nan")
    for value in wrong:
        listed = f"[{value},{value}]" if key in ("step1.aim_weights", "pseudo_label.size") else value
        message = refuse("step1", "--override", f"{key}={listed}")
        section, _, name = key.partition(".")
        assert message.startswith(f"command line: [{section}] {name} must "), message


def test_a_mistake_of_the_file_is_not_blamed_on_the_command_line(tmp_path: Path) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(tmp_path, step1={"momentum": 5}))
    assert refuse("step1", "--config", str(path), "--batch-size", "2").startswith(f"{path}: [step1] momentum")
    assert read("step1", "--config", str(path), "--momentum", "0.5")[0].step1.momentum == 0.5


def test_a_byte_order_mark_before_a_configuration_is_no_mistake(tmp_path: Path) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(tmp_path, run={"seed": 7}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read("step1", "--config", str(path))[0].run.seed == 7


@pytest.mark.parametrize("text", ["a = ", "= 1", "[source", "\x00", "a = 1\na = 2"])
def test_what_is_not_toml_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text, encoding="utf-8")
    assert "broken.toml" in refuse("step1", "--config", str(path))


@pytest.mark.parametrize("missing", ["source", "target"])
def test_a_missing_domain_is_named(tmp_path: Path, missing: str) -> None:
    given = own_settings(tmp_path)
    del given[missing]
    path = write_settings(tmp_path / "own.toml", given)
    assert f"[{missing}]" in refuse("step1", "--config", str(path))


def test_num_classes_is_checked_against_the_class_table() -> None:
    config, options = read("step1", "--num-classes", "19")
    assert datasets.class_table(config, options.arguments).num_classes == 19
    config, options = read("step1", "--num-classes", "16")
    with pytest.raises(ConfigError, match=r"--num-classes 16.*19"):
        datasets.class_table(config, options.arguments)


OFFICIAL = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
OFFICIAL |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


@pytest.mark.parametrize(
    ("changes", "said"), [({}, None), ({7: 3}, "id 7 class 3, the configuration 0"), ({0: 5}, "id 0 class 5")]
)
def test_a_devkit_must_agree_with_the_configuration(tmp_path: Path, changes: dict[int, int], said: str | None) -> None:
    """The released info.json lists every id from -1 to 33, 255 where it is ignored."""
    mapping = {raw: OFFICIAL.get(raw, 255) for raw in range(-1, 34)} | changes
    content = {"classes": 19, "label2train": [list(pair) for pair in mapping.items()], "label": [], "palette": []}
    (tmp_path / "info.json").write_text(json.dumps(content), encoding="utf-8")
    config, options = read("evaluate", "--devkit_dir", str(tmp_path))
    if said is None:
        assert datasets.class_table(config, options.arguments).num_classes == 19
        return
    with pytest.raises(ConfigError, match=said):
        datasets.class_table(config, options.arguments)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"label2train": 3}', '{"label2train": [[1]]}'])
def test_a_devkit_that_is_none_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "info.json").write_text(content, encoding="utf-8")
    config, options = read("evaluate", "--devkit_dir", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--devkit_dir: .*info\.json"):
        datasets.class_table(config, options.arguments)


def test_255_is_the_ignore_label_that_may_be_given() -> None:
    assert read("step1", "--ignore-label", "255")[0] == read("step1")[0]


@pytest.mark.parametrize(
    "alignment", [{"aim": "adaptiv"}, {"isia": "papers"}, {"label_map": "x"}, {"aim": "fixed", "aim_weights": [1.0]}]
)
def test_an_alignment_that_does_not_exist_is_refused(tmp_path: Path, alignment: dict[str, Any]) -> None:
    def build_it() -> None:
        config = build_config(own_settings(tmp_path, step1=alignment), where="own.toml")
        network = build_network("resnet18", num_classes=4, width=2)
        networks.build_method(network, datasets.class_table(config), config, config.step1, META)

    with pytest.raises(ConfigError):
        build_it()


# ---- settings without effect ----


def idle(capsys: pytest.CaptureFixture[str], section: str, *argv: str) -> list[str]:
    """The notes about settings without effect under a command line."""
    config, options = read(section, *argv)
    say_idle_notes(config, options, section)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["step1.aim_weights=[1.0]"], ["[step1] aim_weights has no effect: aim = 'none'"]),
        (["step1.aim=fixed", "step1.aim_weights=[1.0]"], []),
        (["step1.aim=adaptive", "step1.weights.instances=0"], ["[step1] aim has no effect: the loss that it weighs"]),
        (["step1.aim=released", "step1.weights.instances=0"], []),  # it weighs stuff, too
        (["step1.isia=paper"], ["[step1] isia has no effect: separation and aggregation are off"]),
        (["step1.isia=paper", "step1.weights.aggregation=1"], []),
        (["step1.num_prototype=9"], []),
        (
            ["step1.num_prototype=9", "step1.weights.stuff=0", "step1.weights.instances=0"],
            ["[step1] num_prototype has no effect: every loss of regions is off"],
        ),
        (["step1.weights.adv=0", "step1.learning_rate_d=1"], ["[step1] learning_rate_d has no effect: the loss adv"]),
        (["step1.optimizer=adamw", "step1.momentum=0.9"], ["[step1] momentum has no effect: optimizer = 'adamw'"]),
        (["step1.optimizer=adamw"], []),  # 0.9 is nobody's but the default's
        (["step1.teacher_threshold=0.5"], ["[step1] teacher_threshold has no effect: every loss of a teacher is off"]),
        (["step1.mask_ratio=0.5", "step1.weights.online=1"], ["[step1] mask_ratio has no effect: the loss masked"]),
        (["step1.mask_ratio=0.5", "step1.weights.masked=1"], []),
        (["step1.pseudo_labels=p"], ["[step1] pseudo_labels has no effect: nothing reads pseudo labels"]),
        (["step1.pseudo_labels=p", "step1.label_map=merged"], []),
        (["step2.mask_ratio=0.5"], []),  # of the other stage
        (["translation.beta=0.1", "translation.method=lab"], ["[translation] beta has no effect: method = 'lab'"]),
        (["translation.styles=3"], ["[translation] styles has no effect: method = 'none'"]),
        (["translation.styles=3", "translation.method=lab"], []),
        (["run.cache_gb=1.0"], ["[run] cache_gb has no effect: no cache is named"]),
        (["run.log_dir=l", "run.tensorboard=false"], ["[run] log_dir has no effect: tensorboard = false"]),
    ],
)
def test_a_setting_without_effect_is_noted(
    changes: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    notes = idle(capsys, "step1", *(word for change in changes for word in ("--override", change)))
    assert len(notes) == len(expected), notes
    assert all(note.startswith(f"note: {line}") for note, line in zip(notes, expected, strict=True)), notes


def test_a_setting_of_the_file_without_effect_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_settings(tmp_path / "own.toml", own_settings(tmp_path, step1={"aim_weights": [1, 2, 3, 4]}))
    assert idle(capsys, "step1", "--config", str(path)) == ["note: [step1] aim_weights has no effect: aim = 'none'"]


@pytest.mark.parametrize("section", ["step1", "step2"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_configuration_has_settings_without_effect(
    path: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert idle(capsys, section, "--config", str(path)) == []


# ---- anything at all ----

DATACLASSES = (Config, Run, Model, Stage, LossWeights, PseudoLabels, Evaluate)
KEYS = st.sampled_from(
    ["extends", "size", "root", *(key.name for kind in DATACLASSES for key in dataclasses.fields(kind))]
) | st.text(max_size=4)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
@example({"run": {"seed": 10**400}, "step1": {"learning_rate": 10**400}}, True)
@settings(max_examples=200, deadline=None)
def test_any_mapping_is_a_config_or_a_config_error(data: dict[str, Any], with_domains: bool) -> None:
    if with_domains:
        data = {"source": {"size": [64, 48]}, "target": {"size": [64, 48]}} | data
    try:
        config = build_config(data, where="fuzz")
    except ConfigError:
        return
    assert isinstance(config, Config)


@given(st.text(max_size=60), st.booleans())
@example("evaluate = 3", True)
@example("target = 3", False)
@example('extends = "."', False)
@example('extends = "fuzz.toml"', False)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_a_config_or_a_config_error(tmp_path: Path, text: str, with_domains: bool) -> None:
    path = tmp_path / "fuzz.toml"
    domains = "[source]\nsize = [64, 48]\n[target]\nsize = [64, 48]\n" if with_domains else ""
    path.write_bytes(f"{text}\n{domains}".encode("utf-8", "surrogatepass"))
    try:
        config, _ = read("evaluate", "--config", str(path), "--data-list", "x.txt")
    except ConfigError:
        return
    assert isinstance(config, Config)


FLAG_NAMES = st.sampled_from(sorted({flag.name for flag in TRAINING} | {"--override", "--gpu", "--cpu", "--set"}))
WORDS = FLAG_NAMES | st.text(max_size=6) | st.integers().map(str) | st.floats().map(str)


@given(st.lists(WORDS, max_size=5), st.sampled_from(sorted(SECTIONS)))
@example(["--override", "classes.x.y=1"], "step1")
@example(["--override", "evaluate=1", "--data-list", "x"], "evaluate")
@settings(max_examples=200, deadline=None)
def test_any_command_line_is_a_config_or_a_config_error(argv: list[str], section: str) -> None:
    if {"-h", "--help"} & set(argv):
        return  # help ends the script
    try:
        config, _ = read(section, *argv)
    except ConfigError:
        return
    assert isinstance(config, Config)
