"""Settings: dataclasses filled from a TOML file and then from flags, strictly.

A section of the TOML is a dataclass below; a flag is a path into them. An unknown key or flag is an error that names
the nearest valid one. `[source]`, `[target]` and `[classes]` are kept as mappings: the data room knows their keys.
Relative paths are relative to the folder the script is run from.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import tomli

PRECISIONS = ("fp32", "fp16", "bf16")
STATISTICS = ("source", "target", "both", "kept")
POLICIES = ("error", "skip")
OPTIMIZERS = ("sgd", "adamw")
TRANSLATIONS = ("none", "fda", "lab", "histogram")
# The modes of the method, as model/aim.py, model/isia.py and model/bafft.py know them; a test compares.
AIM = ("none", "fixed", "adaptive", "released")
ISIA = ("none", "paper", "released")
LABEL_MAPS = ("prediction", "merged")
TEACHER_WEIGHTS = ("image", "pixel")
MAX_SEED = 2**63 - 1  # torch's
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "gta5_to_cityscapes.toml"


LEAVES: dict[Any, tuple[tuple[type, ...], str]] = {  # annotated type -> types accepted from TOML, and their name
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; one line that says what, where, and how to mend it."""


@dataclass(frozen=True)
class Run:
    """What concerns every script. device: `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`. log_every: updates
    between log lines. log_dir: where TensorBoard files go, empty for the run's own folder. cache: folder for resized
    images, empty for none; cache_gb: what it may take on the disk, in 10^9 bytes. compile: let torch.compile
    make the network's kernels in training. deterministic: the same kernels in the same order whenever it runs again.
    nonfinite, bad_files: what becomes of an update with a number that is none, and of a training image or label that
    cannot be read, `error` or `skip` (docs/reliability.md). report: end a training with `report.html`; diagnostics:
    measure at every snapshot how far classes and domains lie apart (docs/report.md); validate: score every snapshot on
    target val, whose labels nothing but this and the diagnostics reads."""

    seed: int = 1234
    device: str = "auto"
    precision: str = "fp32"
    num_workers: int = 4
    log_every: int = 10
    tensorboard: bool = True
    log_dir: str = ""
    cache: str = ""
    cache_gb: float = 20.0
    compile: bool = False
    deterministic: bool = False
    nonfinite: str = "error"
    bad_files: str = "error"
    report: bool = True
    diagnostics: bool = False
    validate: bool = True


@dataclass(frozen=True)
class Model:
    """The networks; the widths scale every channel count, 64 is the published size. restore_from: `random`,
    `torchvision`, `timm` or a file, where stage 1 starts; download: allow the two hubs to fetch what is not on disk.
    feature_strides: of a timm network, strides of the maps that are its features together; empty: the last map alone.
    freeze_backbone: let only what is new on it learn.
    input_mean: three channel means in 0..255, in the network's channel order (BGR but for timm); empty: its own.
    checkpointing: keep less for the backward pass and compute it again; inplace_abn: the norms of inplace-abn, which
    make another network (docs/performance.md)."""

    name: str = "resnet101"
    branches: int = 2
    width: int = 64
    discriminator_width: int = 64
    output_stride: int = 8
    feature_strides: tuple[int, ...] = ()
    freeze_backbone: bool = False
    train_norm_affine: bool = False
    input_mean: tuple[float, ...] = ()
    restore_from: str = "torchvision"
    download: bool = False
    checkpointing: bool = False
    inplace_abn: bool = False


@dataclass(frozen=True)
class Translation:
    """Source images in the style of target images while they are loaded (docs/translation.md). beta: FDA exchanges the
    frequencies up to this share of the input's shorter side. styles: random target training images that the styles are
    taken from, 0 for all; probability: that an image is translated."""

    method: str = "none"
    beta: float = 0.01
    styles: int = 200
    probability: float = 1.0


@dataclass(frozen=True)
class CycleGANSettings:
    """The training of a translator (`dataset.translate --method cyclegan`, docs/translation.md).

    segmenter: weights of the frozen network of the semantic loss, a file or a run folder; needed unless
    lambda_semantic is 0. crop: (W, H) that is cut out of images at input size. pool: translated images that each
    discriminator's memory holds. The rate is constant for half of num_steps and falls to 0 over the other half.
    """

    snapshot_dir: str = ""
    segmenter: str = ""
    num_steps: int = 200000
    save_every: int = 5000
    batch_size: int = 1
    crop: tuple[int, int] = (400, 400)
    random_mirror: bool = True
    width: int = 64
    blocks: int = 9
    discriminator_width: int = 64
    learning_rate: float = 2e-4
    pool: int = 50
    lambda_cycle: float = 10.0
    lambda_identity: float = 5.0
    lambda_semantic: float = 1.0

    @property
    def last_step(self) -> int:
        """The update after which the training ends."""
        return self.num_steps

    def saves_after(self, step: int) -> bool:
        """Whether a snapshot follows update number `step`."""
        return step % self.save_every == 0 or step == self.last_step


@dataclass(frozen=True)
class LossWeights:
    """Factor of each loss (spec 3.5, the last four model/extras); 0 switches the term off."""

    seg: float = 1.0
    adv: float = 0.0
    stuff: float = 0.0
    instances: float = 0.0
    separation: float = 0.0
    aggregation: float = 0.0
    pseudo: float = 0.0
    entropy: float = 0.0
    online: float = 0.0
    mixed: float = 0.0
    masked: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One training run. The rates fall as (1 - it/num_steps)^power; num_steps_stop 0: run all of num_steps.

    restore_from: weights to start from, a file or a run folder; empty: `[model] restore_from`.
    pseudo_labels: folder of pseudo labels for the target, empty for none.
    statistics: the domain whose images move the batch-norm running statistics, `source`, `target` or `both`; `kept`:
    none, and training, too, normalises with those that the network starts from.
    num_prototype: bank slots per stuff class, ten times as many per thing class.
    split: the part of the target to train on.
    keep: how many of the latest snapshots stay on the disk; 0: all.
    teacher_*, mask_*: of the losses `online`, `mixed` and `masked` (docs/extras.md); a block is a number of pixels.
    rare_classes: temperature of rare-class sampling from the source; 0: every image once per epoch.
    """

    snapshot_dir: str = ""
    restore_from: str = ""
    prefix: str = ""
    num_steps: int = 250000
    num_steps_stop: int = 0
    save_pred_every: int = 5000
    keep: int = 0
    batch_size: int = 1
    iter_size: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 2.5e-4
    head_lr_factor: float = 10.0
    learning_rate_d: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    random_mirror: bool = False
    random_scale: bool = False
    random_turn: bool = False
    statistics: str = "both"
    split: str = "train"
    pseudo_labels: str = ""
    num_prototype: int = 50
    instances: int = 10
    aim: str = "none"
    aim_weights: tuple[float, ...] = ()
    isia: str = "none"
    label_map: str = "prediction"
    teacher_momentum: float = 0.99
    teacher_threshold: float = 0.968
    teacher_weights: str = "image"
    mask_block: int = 32
    mask_ratio: float = 0.7
    rare_classes: float = 0.0
    weights: LossWeights = field(default_factory=LossWeights)

    @property
    def last_step(self) -> int:
        """The update after which the run ends."""
        return self.num_steps_stop or self.num_steps

    def saves_after(self, step: int) -> bool:
        """Whether a snapshot follows update number `step`."""
        return step % self.save_pred_every == 0 or step == self.last_step


@dataclass(frozen=True)
class PseudoLabels:
    """restore_from: a file or run folder; save: output folder; size: (W, H) of the PNGs; split of the target.

    scales, flip: views of each image whose probabilities are averaged (utils.inference.Views).
    """

    restore_from: str = ""
    save: str = ""
    size: tuple[int, int] = (1024, 512)
    cap: float = 0.9
    proportion: float = 0.5
    split: str = "train"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class Evaluate:
    """restore_from: a file or run folder; save: output folder; split of the target.

    label_ids: folder for PNGs of official label ids, empty for none. boundary_ratio: width of the boundaries that
    boundary IoU compares, as a share of the image's diagonal. scales, flip: as of pseudo labels.
    """

    restore_from: str = ""
    save: str = ""
    label_ids: str = ""
    split: str = "val"
    batch_size: int = 1
    boundary_ratio: float = 0.02
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class Config:
    """Everything a script was told. source and target hold the data room's keys and `size` = [W, H]."""

    source: Mapping[str, Any]
    target: Mapping[str, Any]
    classes: str | Mapping[str, Any] = "cityscapes"
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    translation: Translation = field(default_factory=Translation)
    cyclegan: CycleGANSettings = field(default_factory=CycleGANSettings)
    step1: Stage = field(default_factory=Stage)
    pseudo_label: PseudoLabels = field(default_factory=PseudoLabels)
    step2: Stage = field(default_factory=Stage)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, ready for TOML."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`; `above`, `below`: the bound itself is none of them."""

    least: float = 0
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.least if self.above else value >= self.least
        under = value < self.most if self.below else value <= self.most
        return over and under and value < math.inf

    def __str__(self) -> str:
        """What such a number must do."""
        if not (self.above or self.below or self.most == math.inf):
            return f"lie in {self.least}..{self.most}"
        low = f"be {'above' if self.above else 'at least'} {self.least}"
        return low if self.most == math.inf else f"{low} and {'below' if self.below else 'at most'} {self.most}"


COUNT, NOT_NEGATIVE, SHARE, RATE = Range(1), Range(0), Range(0, 1), Range(0, 1, below=True)
RANGES: dict[type, dict[str, Range]] = {  # of every number that is not checked by what it is given to
    Run: {
        "seed": Range(0, MAX_SEED),
        "num_workers": NOT_NEGATIVE,
        "log_every": COUNT,
        "cache_gb": Range(0, above=True),
    },
    Model: {"width": COUNT, "discriminator_width": COUNT},
    Translation: {"beta": Range(0, 0.5), "styles": NOT_NEGATIVE, "probability": SHARE},
    CycleGANSettings: {
        **dict.fromkeys(("num_steps", "save_every", "batch_size", "width", "discriminator_width"), COUNT),
        **dict.fromkeys(("blocks", "pool", "learning_rate"), NOT_NEGATIVE),
        **dict.fromkeys(("lambda_cycle", "lambda_identity", "lambda_semantic"), NOT_NEGATIVE),
    },
    LossWeights: {term.name: NOT_NEGATIVE for term in dataclasses.fields(LossWeights)},
    Stage: {
        **dict.fromkeys(("num_steps", "batch_size", "iter_size", "save_pred_every", "num_prototype"), COUNT),
        **dict.fromkeys(("instances", "mask_block"), COUNT),
        **dict.fromkeys(("num_steps_stop", "keep", "learning_rate", "head_lr_factor", "learning_rate_d"), NOT_NEGATIVE),
        **dict.fromkeys(("weight_decay", "power", "aim_weights", "rare_classes"), NOT_NEGATIVE),
        **dict.fromkeys(("teacher_momentum", "teacher_threshold", "mask_ratio"), SHARE),
        "momentum": RATE,
    },
    PseudoLabels: {"size": COUNT, "cap": SHARE, "proportion": SHARE},
    Evaluate: {"batch_size": COUNT, "boundary_ratio": Range(0, 1, above=True)},
}


def nearest(name: str, choices: Sequence[str]) -> str:
    """` (did you mean X?)`, or nothing when nothing is close."""
    found = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def read_config(path: str | Path, *, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A TOML file as a dict, laid over those that its key `extends` names: one file, or a list in which later ones
    are laid over earlier ones, each relative to the file itself.

    Raises ConfigError naming the file when it is missing or not TOML, or when files extend each other in a circle.
    """
    path = Path(path)
    if path.resolve() in below:
        raise ConfigError(f"configuration {path} extends itself")
    data = _read_toml(path)
    bases = data.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"configuration {path}: extends must be the name of a file, or a list of them, not {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, read_config(path.parent / base, below=(*below, path.resolve())))
    return merge(merged, data)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section. A map of label ids is one value: it replaces the other."""
    merged = dict(base)
    for key, value in over.items():
        both = key != "ids" and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text(encoding="utf-8-sig"))  # as Windows editors write it, too
    except FileNotFoundError:
        raise ConfigError(f"configuration {path} not found; the shipped ones are in {DEFAULT_CONFIG.parent}") from None
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise ConfigError(f"configuration {path} is not readable TOML: {error}") from None


def build_config(data: Mapping[str, Any], *, where: str) -> Config:
    """A nested mapping as a checked `Config`; `where` names its origin in errors."""
    data = dict(data)
    for domain in ("source", "target"):
        if not isinstance(data.get(domain), Mapping):
            raise ConfigError(f"{where}: section [{domain}] is missing")
        _check_size(data[domain].get("size"), f"{where}: [{domain}] size")
    config: Config = _build(Config, data, where)
    _check(config, where)
    return config


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A whole configuration that was written down once, with the defaults of settings that are younger."""
    return merge(Config(source={}, target={}).to_dict(), saved)


def override(data: dict[str, Any], path: str, value: Any) -> None:
    """Set `data["a"]["b"]` for the path `a.b`, making sections on the way; ConfigError where one is no section."""
    *sections, key = path.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{path} cannot be set: {section} is {data!r}, not a section")
    data[key] = value


def _build(kind: type, data: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping; unknown keys and wrong types are errors."""
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, list(hints))}")
    return kind(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; int passes for float, lists for tuples, nothing else is bent."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section")
        return _build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, where)
    accepted, spelled = LEAVES.get(hint, ((str, dict), "text or a section"))
    if type(value) not in accepted:
        raise ConfigError(f"{where} must be {spelled}, not {value!r}")
    try:
        return hint(value) if hint in LEAVES else value
    except OverflowError:  # a whole number that no float can hold
        raise ConfigError(f"{where} is a number too large") from None


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    variadic = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (variadic or len(value) == len(args)):
        raise ConfigError(f"{where} must be a list of {'numbers' if variadic else len(args)}, not {value!r}")
    return tuple(_convert(args[0], item, where) for item in value)


def _check_size(size: Any, where: str) -> None:
    good = isinstance(size, (list, tuple)) and len(size) == 2
    if not good or not all(type(side) is int and side >= 32 for side in size):
        raise ConfigError(f"{where} must be [width, height], two whole numbers of at least 32, not {size!r}")


def _check(config: Config, where: str) -> None:
    """Values that no type can rule out."""
    _check_ranges(config, f"{where}: ")
    _one_of(config.run.precision, PRECISIONS, f"{where}: [run] precision")
    for key in ("nonfinite", "bad_files"):
        _one_of(getattr(config.run, key), POLICIES, f"{where}: [run] {key}")
    _check_switches(config, where)
    _one_of(config.translation.method, TRANSLATIONS, f"{where}: [translation] method")
    _check_size(config.cyclegan.crop, f"{where}: [cyclegan] crop")
    mean = config.model.input_mean
    if mean and not (len(mean) == 3 and all(0 <= value <= 255 for value in mean)):
        raise ConfigError(f"{where}: [model] input_mean must be three numbers within 0..255, not {list(mean)}")
    for name, stage in (("step1", config.step1), ("step2", config.step2)):
        _check_stage(stage, f"{where}: [{name}]")
    _check_scales(config.pseudo_label.scales, f"{where}: [pseudo_label] scales")
    _check_scales(config.evaluate.scales, f"{where}: [evaluate] scales")


def _check_ranges(settings: Any, where: str) -> None:
    """Every number of a section, and of the sections in it, against `RANGES`."""
    for key, allowed in RANGES.get(type(settings), {}).items():
        value = getattr(settings, key)
        for number in value if isinstance(value, tuple) else (value,):
            if number not in allowed:
                finite = " and finite" if number == math.inf else ""
                raise ConfigError(f"{where}{key} must {allowed}{finite}, not {number}")
    for entry in dataclasses.fields(settings):
        inner = getattr(settings, entry.name)
        if dataclasses.is_dataclass(inner):
            _check_ranges(inner, f"{where}[{entry.name}] " if isinstance(settings, Config) else f"{where}{entry.name}.")


def _check_scales(scales: Sequence[float], where: str) -> None:
    if not scales or not all(0.1 <= scale <= 10 for scale in scales) or len(set(scales)) < len(scales):
        raise ConfigError(f"{where} must be one or more different numbers within 0.1..10, not {list(scales)}")


def _check_switches(config: Config, where: str) -> None:
    """Switches of speed and memory that exclude each other."""
    if config.model.inplace_abn and config.run.precision == "bf16":
        raise ConfigError(f"{where}: [model] inplace_abn knows no bf16; set [run] precision to fp32 or fp16")
    for key in ("checkpointing", "inplace_abn"):
        if config.run.compile and getattr(config.model, key):
            raise ConfigError(f"{where}: [run] compile cannot look into [model] {key}; switch one of the two off")


def _check_stage(stage: Stage, where: str) -> None:
    _one_of(stage.statistics, STATISTICS, f"{where} statistics")
    _one_of(stage.optimizer, OPTIMIZERS, f"{where} optimizer")
    _one_of(stage.aim, AIM, f"{where} aim")
    _one_of(stage.isia, ISIA, f"{where} isia")
    _one_of(stage.label_map, LABEL_MAPS, f"{where} label_map")
    _one_of(stage.teacher_weights, TEACHER_WEIGHTS, f"{where} teacher_weights")
    if stage.num_steps_stop > stage.num_steps:
        raise ConfigError(
            f"{where} num_steps_stop must be at most num_steps, {stage.num_steps}, not {stage.num_steps_stop}"
        )
    for term, modes in (("separation", ("paper", "released")), ("aggregation", ("paper",))):
        if getattr(stage.weights, term) and stage.isia not in modes:
            raise ConfigError(
                f"{where} weights.{term} needs isia = {' or '.join(map(repr, modes))}, not {stage.isia!r}"
            )


def _one_of(value: str, choices: Sequence[str], where: str) -> None:
    if value not in choices:
        raise ConfigError(f"{where} is {value!r}; choose one of {', '.join(choices)}{nearest(value, choices)}")


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line, the nearest valid flag, and exit code 2."""

    def __init__(self, **keywords: Any) -> None:
        help_format = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=_program(), allow_abbrev=False, formatter_class=help_format, **keywords)

    def parse_args(  # type: ignore[override]  # argparse overloads it on the type of `namespace`
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse's, but an unknown flag names the nearest valid one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            name = unknown[0].split("=")[0]
            if not name.startswith("-") and not all(action.option_strings for action in self._actions):
                self.error(f"unexpected {name}: what is no flag stands together, before or after the flags")
            self.error(f"unknown argument {name}{nearest(name, flags)}; --help lists them all")
        return known

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError: the scripts have one way to say that the user is mistaken."""
        raise ConfigError(message)


def _program() -> str | None:
    """How this program was started, for its usage: `python -m room.name`; None for a script, argparse knows those."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
