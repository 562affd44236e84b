"""The flags of the scripts: each is a path into the configuration, most of them as old as AdaptSegNet.

`parse` reads `--config`, lays the flags over it, fills in what hands one script over to the next, and returns the
result with what only the command line can say.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from utils.config import DEFAULT_CONFIG, Config, ConfigError, Parser, build_config, override, read_config


def _size(text: str) -> list[int]:
    """`W,H` as two whole numbers."""
    try:
        width, height = (int(side) for side in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTH,HEIGHT") from None
    return [width, height]


@dataclass(frozen=True)
class Flag:
    """A flag that sets one key. In `path`, `{section}` stands for the script's own section of the configuration."""

    name: str
    path: str
    type: Callable[[str], Any] = str
    help: str = ""


SHARED = (
    Flag("--random-seed", "run.seed", int, "seed of everything random"),
    Flag("--num-workers", "run.num_workers", int, "processes that load images"),
    Flag("--precision", "run.precision", str, "fp32, fp16 (with loss scaling) or bf16"),
    Flag("--model", "model.name", str, "resnet18/34/50/101, DeepLab, VGG, Oracle or timm:<name>"),
    Flag("--restore-from", "{section}.restore_from", str, "weights: a file, a run folder or random/torchvision/timm"),
)
TRAINING = (
    *SHARED,
    Flag("--data-dir", "source.root", str, "root folder of the source"),
    Flag("--data-list", "source.train_list", str, "list of source images"),
    Flag("--input-size", "source.size", _size, "size of source images, W,H"),
    Flag("--data-dir-target", "target.root", str, "root folder of the target"),
    Flag("--data-list-target", "target.train_list", str, "list of target training images"),
    Flag("--data-list-target-test", "target.val_list", str, "list of target validation images"),
    Flag("--input-size-target", "target.size", _size, "size of target images, W,H"),
    Flag("--set", "{section}.split", str, "split of the target to train on"),
    Flag("--batch-size", "{section}.batch_size", int),
    Flag("--iter-size", "{section}.iter_size", int, "batches accumulated per update"),
    Flag("--learning-rate", "{section}.learning_rate", float),
    Flag("--learning-rate-D", "{section}.learning_rate_d", float, "learning rate of the discriminator"),
    Flag("--momentum", "{section}.momentum", float),
    Flag("--weight-decay", "{section}.weight_decay", float),
    Flag("--power", "{section}.power", float, "exponent of the learning rates' decay"),
    Flag("--lambda-adv-target", "{section}.weights.adv", float, "weight of the adversarial loss"),
    Flag("--lambda-adv-cls", "{section}.weights.stuff", float, "weight of stuff matching"),
    Flag("--lambda-adv-ins", "{section}.weights.instances", float, "weight of instance matching (AIM)"),
    Flag("--lambda-adv-cate", "{section}.weights.separation", float, "weight of inter-class separation"),
    Flag("--num-steps", "{section}.num_steps", int, "updates over which the learning rates fall to 0"),
    Flag("--num-steps-stop", "{section}.num_steps_stop", int, "updates to run; 0: all"),
    Flag("--num-prototype", "{section}.num_prototype", int, "bank slots per stuff class, x10 per thing class"),
    Flag("--save-pred-every", "{section}.save_pred_every", int, "updates between snapshots and validations"),
    Flag("--snapshot-dir", "{section}.snapshot_dir", str, "folder of the run"),
    Flag("--ssl-target-dir", "{section}.pseudo_labels", str, "folder of pseudo labels"),
    Flag("--log-dir", "run.log_dir", str, "folder of TensorBoard files"),
)
PREDICTION = (
    *SHARED,
    Flag("--data-dir", "target.root", str, "root folder of the target"),
    Flag("--set", "{section}.split", str, "split of the target"),
    Flag("--save", "{section}.save", str, "output folder"),
)
SWITCHES = {  # on/off flags of the training scripts
    "--random-mirror": "{section}.random_mirror",
    "--random-scale": "{section}.random_scale",
}
WITHOUT_EFFECT = ("--target", "--is-training", "--not-restore-last", "--save-num-images")


@dataclass(frozen=True)
class Options:
    """What only the command line says. notes: lines for the user about flags; name: the configuration's."""

    name: str
    config_path: str
    continue_train: bool
    json: str
    notes: tuple[str, ...]
    arguments: argparse.Namespace


def parse(
    argv: Sequence[str] | None,
    *,
    description: str,
    section: str,
    flags: Sequence[Flag],
    extend: Callable[[Parser], None] | None = None,
) -> tuple[Config, Options]:
    """Configuration and options from a command line; ConfigError for the user's mistakes."""
    parser = _parser(description, section, flags)
    if extend:
        extend(parser)
    arguments = parser.parse_args(argv)
    data = read_config(arguments.config)
    if flags is PREDICTION and getattr(arguments, "data_list", None) is not None:
        split = arguments.flag_set or data.get(section, {}).get("split", "val" if section == "evaluate" else "train")
        override(data, f"target.{split}_list", arguments.data_list)
    for flag in flags:
        value = getattr(arguments, _destination(flag.name))
        if value is not None:
            override(data, flag.path.format(section=section), value)
    for name, path in SWITCHES.items():
        if getattr(arguments, _destination(name), None) is not None:
            override(data, path.format(section=section), getattr(arguments, _destination(name)))
    _device_and_board(data, arguments)
    for assignment in arguments.override:
        _assign(data, assignment)
    name = Path(arguments.config).stem
    config = hand_over(build_config(data, where=str(arguments.config)), name)
    _check_ignore_label(arguments)
    options = Options(
        name=name,
        config_path=str(arguments.config),
        continue_train=getattr(arguments, "continue_train", False),
        json=arguments.json,
        notes=_notes(arguments),
        arguments=arguments,
    )
    return config, options


def hand_over(config: Config, name: str) -> Config:
    """Fill in the folders that were not given, so that each script reads what the one before it wrote.

    Everything goes to `runs/<name of the configuration>/`; the *last* checkpoint of a run is handed on, never the
    one selected on target labels.
    """
    runs = Path("runs") / name
    prefix = str(config.source.get("corpus", "")).upper() or "source"
    step1 = dataclasses.replace(
        config.step1,
        snapshot_dir=config.step1.snapshot_dir or str(runs / "step1"),
        restore_from=config.step1.restore_from or config.model.restore_from,
        prefix=config.step1.prefix or prefix,
    )
    pseudo = dataclasses.replace(
        config.pseudo_label,
        restore_from=config.pseudo_label.restore_from or step1.snapshot_dir,
        save=config.pseudo_label.save or str(runs / "pseudo_labels"),
    )
    step2 = dataclasses.replace(
        config.step2,
        snapshot_dir=config.step2.snapshot_dir or str(runs / "step2"),
        restore_from=config.step2.restore_from or step1.snapshot_dir,
        prefix=config.step2.prefix or prefix,
        pseudo_labels=config.step2.pseudo_labels or pseudo.save,
    )
    evaluate = dataclasses.replace(config.evaluate, restore_from=config.evaluate.restore_from or step2.snapshot_dir)
    return dataclasses.replace(config, step1=step1, pseudo_label=pseudo, step2=step2, evaluate=evaluate)


def _parser(description: str, section: str, flags: Sequence[Flag]) -> Parser:
    parser = Parser(description=description)
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="TOML file (default: GTA5 -> Cityscapes)")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="any key, e.g. run.seed=1")
    parser.add_argument("--json", default="", metavar="FILE", help="write the result as JSON, too")
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    parser.add_argument("--gpu", type=int, help="number of the CUDA device")
    parser.add_argument("--download", action="store_true", help="allow torchvision's or timm's hub to fetch weights")
    parser.add_argument("--num-classes", type=int, help="checked against the class table")
    parser.add_argument("--ignore-label", type=int, help="checked: always 255")
    parser.add_argument("--devkit_dir", help="folder with info.json, the class table to use")
    for flag in flags:
        parser.add_argument(flag.name, dest=_destination(flag.name), type=flag.type, help=flag.help)
    if flags is TRAINING:
        parser.add_argument("--continue-train", action="store_true", help="go on from last.pt of the run folder")
        parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=None)
        for name in SWITCHES:
            parser.add_argument(name, dest=_destination(name), action=argparse.BooleanOptionalAction, default=None)
    else:
        parser.add_argument("--data-list", help="list of target images")
    for name in WITHOUT_EFFECT:
        parser.add_argument(name, dest=_destination(name), nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _destination(flag: str) -> str:
    return "flag_" + flag.lstrip("-").replace("-", "_")


def _device_and_board(data: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Flags that are not simply a value for a key."""
    if arguments.cpu and arguments.gpu is not None:
        raise ConfigError("--cpu and --gpu exclude each other")
    if arguments.cpu:
        override(data, "run.device", "cpu")
    if arguments.gpu is not None:
        override(data, "run.device", f"cuda:{arguments.gpu}")
    if arguments.download:
        override(data, "model.download", True)
    if getattr(arguments, "tensorboard", None) is not None:
        override(data, "run.tensorboard", arguments.tensorboard)


def _assign(data: dict[str, Any], assignment: str) -> None:
    """Apply `KEY=VALUE`; the value is TOML, and text where it is not."""
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--override {assignment!r} is not of the form section.key=value")
    try:
        value = tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        value = text
    override(data, key.strip(), value)


def _check_ignore_label(arguments: argparse.Namespace) -> None:
    if arguments.ignore_label not in (None, 255):
        raise ConfigError(
            f"--ignore-label {arguments.ignore_label}: ignored pixels are always 255 here; list raw ids to ignore "
            "under `ignore` of [source] or [target]"
        )


def _notes(arguments: argparse.Namespace) -> tuple[str, ...]:
    given = [name for name in WITHOUT_EFFECT if getattr(arguments, _destination(name)) is not None]
    return tuple(f"{name} is accepted and has no effect; it never had one" for name in given)
