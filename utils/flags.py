"""The flags of the scripts: each is a path into the configuration, most of them as old as AdaptSegNet.

`parse` reads `--config`, lays the flags over it, fills in what hands one script over to the next, and returns the
result with what only the command line can say.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from utils.config import (
    DEFAULT_CONFIG,
    PRECISIONS,
    TRANSLATIONS,
    Config,
    ConfigError,
    Parser,
    build_config,
    nearest,
    override,
    read_config,
)


def width_height(text: str) -> list[int]:
    """`W,H` as two whole numbers."""
    try:
        width, height = (int(side) for side in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WIDTH,HEIGHT") from None
    return [width, height]


def _numbers(text: str) -> list[float]:
    """`X,X,...` as numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form X,X,...") from None


@dataclass(frozen=True)
class Flag:
    """A flag that sets one key. In `path`, `{section}` stands for the script's own section of the configuration. One of
    type bool is a switch, `--name` or `--no-name`. choices: all that the flag takes; empty: any."""

    name: str
    path: str
    type: Callable[[str], Any] = str
    help: str = ""
    choices: tuple[str, ...] = ()


SHARED = (
    Flag("--random-seed", "run.seed", int, "seed of everything random"),
    Flag("--num-workers", "run.num_workers", int, "processes that load images"),
    Flag("--precision", "run.precision", str, "fp32, fp16 (with loss scaling) or bf16", PRECISIONS),
    Flag("--model", "model.name", str, "resnet18/34/50/101, DeepLab, VGG, Oracle or timm:<name>"),
)
TRAINING = (
    *SHARED,
    Flag("--restore-from", "{section}.restore_from", str, "start: a file, a run folder, random, torchvision or timm"),
    Flag("--data-dir", "source.root", str, "root folder of the source"),
    Flag("--data-list", "source.train_list", str, "list of source images"),
    Flag("--input-size", "source.size", width_height, "size of source images, W,H"),
    Flag("--data-dir-target", "target.root", str, "root folder of the target"),
    Flag("--data-list-target", "target.train_list", str, "list of target training images"),
    Flag("--data-list-target-test", "target.val_list", str, "list of target validation images"),
    Flag("--input-size-target", "target.size", width_height, "size of target images, W,H"),
    Flag("--set", "{section}.split", str, "split of the target to train on"),
    Flag("--batch-size", "{section}.batch_size", int, "images per domain and batch"),
    Flag("--iter-size", "{section}.iter_size", int, "batches accumulated per update"),
    Flag("--learning-rate", "{section}.learning_rate", float, "learning rate at the start"),
    Flag("--learning-rate-D", "{section}.learning_rate_d", float, "learning rate of the discriminator"),
    Flag("--momentum", "{section}.momentum", float, "momentum of SGD"),
    Flag("--weight-decay", "{section}.weight_decay", float, "weight decay of the network"),
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
    Flag(
        *("--translation", "translation.method", str),
        *("none; source images like the target's: fda, lab, histogram", TRANSLATIONS),
    ),
    Flag("--ssl-target-dir", "{section}.pseudo_labels", str, "folder of pseudo labels"),
    Flag("--tensorboard", "run.tensorboard", bool, "write TensorBoard files"),
    Flag("--log-dir", "run.log_dir", str, "folder of TensorBoard files, if not the run's"),
    Flag("--random-mirror", "{section}.random_mirror", bool, "mirror images with probability 1/2"),
    Flag("--random-scale", "{section}.random_scale", bool, "scale images by 0.5..1.5, then crop or pad"),
    Flag("--random-turn", "{section}.random_turn", bool, "turn images by quarters: for those from above"),
    Flag("--compile", "run.compile", bool, "let torch.compile make the kernels"),
    Flag("--deterministic", "run.deterministic", bool, "the same kernels in the same order every time"),
    Flag("--keep", "{section}.keep", int, "latest snapshots that stay on the disk; 0: all"),
)
VIEWS = (
    Flag("--scales", "{section}.scales", _numbers, "average the probabilities at these multiples of the input size"),
    Flag("--flip", "{section}.flip", bool, "average with the mirror image, too"),
)
WEIGHTS = Flag("--restore-from", "{section}.restore_from", str, "weights: a file or a run folder")
PREDICTION = (
    *SHARED,
    WEIGHTS,
    *VIEWS,
    Flag("--data-dir", "target.root", str, "root folder of the target"),
    Flag("--set", "{section}.split", str, "split of the target"),
    Flag("--save", "{section}.save", str, "output folder"),
)
EVALUATION = (
    *PREDICTION,
    Flag("--label-ids", "{section}.label_ids", str, "folder for PNGs of official label ids, too"),
)
_ALIKE = (
    *(
        "--random-seed",
        "--num-workers",
        "--precision",
        "--log-dir",
        "--snapshot-dir",
        "--random-mirror",
        "--tensorboard",
    ),
    *("--data-dir", "--data-list", "--input-size", "--data-dir-target", "--data-list-target", "--input-size-target"),
    *("--batch-size", "--learning-rate", "--num-steps"),
)
TRANSLATING = (  # many as in training, where the section's own mean the training of a translator
    *(flag for flag in TRAINING if flag.name in _ALIKE),
    Flag("--segmenter", "{section}.segmenter", str, "weights for the semantic loss: a file or a run folder"),
    Flag("--beta", "translation.beta", float, "share of the frequencies that fda exchanges"),
    Flag("--styles", "translation.styles", int, "target images that styles are taken from; 0: all"),
)
PICTURES = (
    *VIEWS,
    Flag("--precision", "run.precision", str, "fp32, fp16 or bf16", PRECISIONS),
    Flag("--model", "model.name", str, "name of the network, for weights that do not tell"),
    WEIGHTS,
    Flag("--save", "{section}.save", str, "output folder"),
)
OPT_LEVELS = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}  # of apex, whose own amp is retired
METAVARS: dict[Any, str] = {int: "N", float: "X", width_height: "W,H", _numbers: "X,X"}
# What every script of a pipeline must agree on.
SHARED_SECTIONS = ("source", "target", "classes", "model", "translation", "run")
Recorded = Callable[[str], tuple[str, dict[str, Any]] | None]
"""Weights file or run folder -> the configuration that travels with it, after a file that holds it, or ""."""
REPORTS = ("json", "csv", "markdown")  # flags that name a file of results
BRACKETS = """In brackets: the key of the configuration that a flag sets, with its value where the file of --config,
or the one that stands in for it, has none."""
WITHOUT_EFFECT = ("--target", "--is-training", "--not-restore-last", "--save-num-images")


@dataclass(frozen=True)
class Options:
    """What only the command line says. notes: lines for the user about flags; name: the configuration's; config_path:
    its file, "" where it came with the weights alone.

    base: the configuration's content before the flags; changes: path -> value of every setting that the command line
    changed; both for the command that comes next.
    """

    name: str
    config_path: str
    continue_train: bool
    json: str
    notes: tuple[str, ...]
    base: Mapping[str, Any]
    changes: Mapping[str, Any]
    arguments: argparse.Namespace


def parse(
    argv: Sequence[str] | None,
    *,
    description: str,
    section: str | Sequence[str],
    flags: Sequence[Flag],
    extend: Callable[[Parser], None] | None = None,
    recorded: Recorded | None = None,
) -> tuple[Config, Options]:
    """Configuration and options from a command line; ConfigError for the user's mistakes.

    section: the script's own section of the configuration; flags of a script that concerns several set them all.
    recorded: gives the configuration that travels with the weights which the section would restore, or None; it stands
    in for the default one where the command line names none.
    """
    sections = (section,) if isinstance(section, str) else tuple(section)
    parser = _parser(description, flags, sections[0])
    if extend:
        extend(parser)
    arguments = parser.parse_args(argv)
    _take_positional_config(arguments)
    changes = _changes(arguments, flags, sections)
    base, notes = _base(arguments, changes, sections[0], recorded)
    where = str(arguments.config) or "the configuration recorded with the weights (name another with --config)"
    data = copy.deepcopy(base)
    for path, value in changes.items():
        override(data, path, value)
    if getattr(arguments, "data_list", None) is not None:
        (own,) = sections
        split = getattr(_built(base, data, where), own).split
        changes[f"target.{split}_list"] = arguments.data_list
        override(data, f"target.{split}_list", arguments.data_list)
    name = Path(arguments.config).stem
    config = hand_over(_built(base, data, where), name)
    _check_ignore_label(arguments)
    _check_outputs(arguments)
    options = Options(
        name=name,
        config_path=str(arguments.config),
        continue_train=getattr(arguments, "continue_train", False),
        json=arguments.json,
        notes=(*_notes(arguments), *notes),
        base=base,
        changes=changes,
        arguments=arguments,
    )
    return config, options


def _base(
    arguments: argparse.Namespace, changes: Mapping[str, Any], section: str, recorded: Recorded | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration below the flags, and a note where no file is named; then `arguments.config` names it."""
    if arguments.config is not None:
        return read_config(arguments.config), ()
    arguments.config = str(DEFAULT_CONFIG)
    default = read_config(DEFAULT_CONFIG)
    if recorded is None:
        return default, ()
    settings = hand_over(build_config(default, where=arguments.config), DEFAULT_CONFIG.stem)
    restore_from = changes.get(f"{section}.restore_from", getattr(settings, section).restore_from)
    found = recorded(restore_from)
    if found is None:
        return default, ()
    arguments.config, data = found
    override(data, f"{section}.restore_from", restore_from)
    return data, (f"no --config: as recorded with the weights in {restore_from}",)


def _built(base: Mapping[str, Any], data: Mapping[str, Any], where: str) -> Config:
    """The configuration `data`, which is `base`, of the file `where`, with the flags laid over it. Raises ConfigError
    that blames the command line for what is no mistake of the file."""
    try:
        return build_config(data, where=where)
    except ConfigError:
        with contextlib.suppress(ConfigError):
            build_config(base, where=where)
            where = "command line"
    return build_config(data, where=where)


def next_command(
    options: Options, script: Sequence[str], *, flags: Sequence[Flag], section: str, hands: Mapping[str, str]
) -> str:
    """The command that continues the pipeline: same configuration, same data, and what this script wrote.

    script: its file and positional arguments; flags, section: those of the next script; hands: path -> value of what
    it should read, left out where the next script finds it by itself.
    """
    shared = {path: value for path, value in options.changes.items() if path.split(".")[0] in SHARED_SECTIONS}
    # What the next script makes of the configuration by itself; the file may have changed since this one read it.
    data = copy.deepcopy(dict(options.base))
    for path, value in shared.items():
        override(data, path, value)
    defaults = hand_over(build_config(data, where=options.config_path), options.name)
    handed = {path: value for path, value in hands.items() if _lookup(defaults, path) != value}
    spelled = {flag.path.format(section=section): flag for flag in flags}
    words = ["python", *script, "--config", options.config_path]
    for path, value in {**shared, **handed}.items():
        if path in spelled:
            words += _spelled(spelled[path], value)
        else:
            words += ["--override", f"{path}={json.dumps(value)}"]
    return shlex.join(words)


def _spelled(flag: Flag, value: Any) -> list[str]:
    """The words that set a flag."""
    if flag.type is bool:
        return [flag.name if value else flag.name.replace("--", "--no-", 1)]
    return [flag.name, ",".join(map(str, value)) if isinstance(value, list) else str(value)]


def _lookup(config: Config, path: str) -> Any:
    section, key = path.split(".")
    return getattr(getattr(config, section), key)


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
    cyclegan = dataclasses.replace(config.cyclegan, snapshot_dir=config.cyclegan.snapshot_dir or str(runs / "cyclegan"))
    evaluate = dataclasses.replace(
        config.evaluate,
        restore_from=config.evaluate.restore_from or step2.snapshot_dir,
        save=config.evaluate.save or str(runs / "predictions"),
    )
    return dataclasses.replace(
        config, cyclegan=cyclegan, step1=step1, pseudo_label=pseudo, step2=step2, evaluate=evaluate
    )


def report_files(parser: Parser) -> None:
    """The flags that write a report's tables."""
    parser.add_argument("--csv", type=output_file, default="", metavar="FILE", help="write the scores as CSV, too")
    parser.add_argument(
        "--markdown", type=output_file, default="", metavar="FILE", help="write the scores as Markdown, too"
    )


def _parser(description: str, flags: Sequence[Flag], section: str) -> Parser:
    parser = Parser(description=description, epilog=BRACKETS)
    parser.add_argument("--config", metavar="FILE", help="TOML file (default: GTA5 -> Cityscapes)")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="any key, e.g. run.seed=1")
    parser.add_argument("--json", type=output_file, default="", metavar="FILE", help="write the result as JSON, too")
    parser.add_argument("--num-classes", type=int, metavar="N", help="checked against the class table")
    parser.add_argument("--ignore-label", type=int, metavar="N", help="checked: always 255")
    parser.add_argument("--devkit_dir", metavar="DIR", help="its info.json is checked against [target] ids")
    _add_network_flags(parser, flags)
    for flag in flags:
        described = f"{flag.help} ({_key_and_default(flag.path.format(section=section))})"
        add_flag(parser, dataclasses.replace(flag, help=described), _destination(flag.name))
    if flags in (TRAINING, TRANSLATING):
        parser.add_argument("--continue-train", action="store_true", help="go on from last.pt of the run folder")
    elif flags is not PICTURES:
        parser.add_argument("--data-list", metavar="FILE", help="list of target images (target.<split>_list)")
    for name in WITHOUT_EFFECT:
        parser.add_argument(name, dest=_destination(name), nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _add_network_flags(parser: Parser, flags: Sequence[Flag]) -> None:
    """The flags of every script that runs a network, which is every one whose precision can be set."""
    if not any(flag.path == "run.precision" for flag in flags):
        parser.set_defaults(cpu=False, gpu=None, download=False, opt_level=None)
        return
    parser.add_argument("--cpu", action="store_true", help="run on the CPU (default: on CUDA, if there is any)")
    parser.add_argument("--gpu", type=int, metavar="N", help="number of the CUDA device (default: CUDA's own choice)")
    parser.add_argument("--download", action="store_true", help="allow torchvision's or timm's hub to fetch weights")
    parser.add_argument("--opt-level", metavar="O0..O3", help="apex's names: O0 is --precision fp32, the others fp16")


def _key_and_default(path: str) -> str:
    """`key = value` of a setting where no file sets it, in TOML; the key alone where its value depends on others."""
    value: Any = Config(source={}, target={})
    for key in path.split("."):
        value = value.get(key, "") if isinstance(value, Mapping) else getattr(value, key)
    return path if value == "" else f"{path} = {json.dumps(value)}"


def add_flag(parser: argparse.ArgumentParser, flag: Flag, destination: str) -> None:
    """Let a parser know a flag; what it does where the flag is not given is the parser's `argument_default`."""
    if flag.type is bool:
        parser.add_argument(flag.name, dest=destination, action=argparse.BooleanOptionalAction, help=flag.help)
    else:
        kind = METAVARS.get(flag.type, "TEXT")
        choices = flag.choices or None
        parser.add_argument(flag.name, dest=destination, type=flag.type, choices=choices, metavar=kind, help=flag.help)


def add_positional_config(parser: argparse.ArgumentParser) -> None:
    """Let the configuration be given without `--config`, too (for `extend` of `parse`)."""
    parser.add_argument("positional_config", nargs="?", metavar="CONFIG", help="the same as --config CONFIG")


def _take_positional_config(arguments: argparse.Namespace) -> None:
    given = getattr(arguments, "positional_config", None)
    if given is None:
        return
    if arguments.config is not None:
        raise ConfigError(f"two configurations are given, {given} and --config {arguments.config}; give one")
    arguments.config = given


def _destination(flag: str) -> str:
    return "flag_" + flag.lstrip("-").replace("-", "_")


def _changes(arguments: argparse.Namespace, flags: Sequence[Flag], sections: Sequence[str]) -> dict[str, Any]:
    """Path -> value of every setting that the flags change; `--override` has the last word."""
    paths = {flag.name: flag.path for flag in flags}
    given = {path: getattr(arguments, _destination(name), None) for name, path in paths.items()}
    given["run.device"] = _device(arguments)
    given["run.precision"] = _precision(arguments)
    given["model.download"] = arguments.download or None
    said = {path: value for path, value in given.items() if value is not None}
    changes = {path.format(section=section): value for path, value in said.items() for section in sections}
    return changes | dict(map(assignment, arguments.override))


def _precision(arguments: argparse.Namespace) -> str | None:
    """The precision that `--precision` or its alias `--opt-level` names."""
    precision, level = getattr(arguments, _destination("--precision"), None), arguments.opt_level
    if level is None:
        return precision
    if level not in OPT_LEVELS:
        raise ConfigError(f"--opt-level {level}: choose one of {', '.join(OPT_LEVELS)}{nearest(level, [*OPT_LEVELS])}")
    if precision not in (None, OPT_LEVELS[level]):
        raise ConfigError(
            f"--opt-level {level} means --precision {OPT_LEVELS[level]}, not {precision}; give one of them"
        )
    return OPT_LEVELS[level]


def _device(arguments: argparse.Namespace) -> str | None:
    """The device that `--cpu` or `--gpu` name."""
    if arguments.cpu and arguments.gpu is not None:
        raise ConfigError("--cpu and --gpu exclude each other")
    if (arguments.gpu or 0) < 0:
        raise ConfigError(f"--gpu {arguments.gpu}: devices are counted from 0; --cpu runs without one")
    return "cpu" if arguments.cpu else None if arguments.gpu is None else f"cuda:{arguments.gpu}"


def at_least_one(text: str) -> int:
    """A positive whole number. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number of 0 or more. Raises ArgumentTypeError."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def output_file(text: str) -> str:
    """Where a result may be written once there is one, after hours perhaps; empty for nowhere.

    Tries it with an empty file, in the folder or where the folder will be made. Raises ArgumentTypeError.
    """
    if not text:
        return text
    path = Path(text)
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
        tempfile.NamedTemporaryFile(dir=above, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written below {above}: {error.strerror}") from None
    return text


def assignment(text: str) -> tuple[str, Any]:
    """Path and value of `KEY=VALUE`; the value is TOML, and text where it is not."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--override {text!r} is not of the form section.key=value")
    try:
        return key.strip(), tomli.loads(f"value = {value}")["value"]
    except tomli.TOMLDecodeError:
        return key.strip(), value


def _check_ignore_label(arguments: argparse.Namespace) -> None:
    if arguments.ignore_label not in (None, 255):
        raise ConfigError(
            f"--ignore-label {arguments.ignore_label}: ignored pixels are always 255 here; list raw ids to ignore "
            "under `ignore` of [source] or [target]"
        )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse a file that two flags name: the later result would replace the earlier one."""
    flags = {f"--{name}": Path(value) for name in REPORTS if (value := getattr(arguments, name, ""))}
    if len({path.absolute() for path in flags.values()}) < len(flags):
        raise ConfigError(f"{', '.join(flags)}: each needs a file of its own")


def _notes(arguments: argparse.Namespace) -> tuple[str, ...]:
    given = [name for name in WITHOUT_EFFECT if getattr(arguments, _destination(name)) is not None]
    notes = [f"{name} is accepted and has no effect; it never had one" for name in given]
    if arguments.opt_level is not None:
        precision = OPT_LEVELS[arguments.opt_level]
        notes.append(
            f"--opt-level {arguments.opt_level} is precision = {precision!r} of torch itself (apex's amp is retired); "
            "fp16 always keeps weights, batch norm and losses in float32 and scales the loss, whichever of O1, O2, O3"
        )
    return tuple(notes)
