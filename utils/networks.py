"""From a configuration and weights to networks, and to the method around one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dataset.labels import ClassTable
from dataset.transforms import Normalize
from model.activations import checkpoint_blocks, use_inplace_norms
from model.bafft import BAFFT, Alignment
from model.deeplab import SegmentationNetwork, build_network, input_statistics
from model.discriminator import Discriminator
from model.weights import (
    LoadReport,
    Weights,
    WeightsError,
    infer_architecture,
    initial_weights,
    load_network,
    read_record,
    read_weights,
)
from utils.config import Config, ConfigError, Stage
from utils.console import say
from utils.run_files import LAST

HUBS = ("random", "torchvision", "timm")  # where initial weights come from, other than files


class Initial(NamedTuple):
    """A network before its first update, the normalisation of its images, where its weights came from."""

    network: SegmentationNetwork
    normalize: Normalize
    report: LoadReport


def initial_network(restore_from: str, config: Config, classes: ClassTable, device: torch.device) -> Initial:
    """The network of `[model]` with the weights that training starts from: a file, a run folder or one of `HUBS`."""
    settings = config.model
    network = build_network(
        settings.name,
        num_classes=classes.num_classes,
        branches=settings.branches,
        width=settings.width,
        output_stride=settings.output_stride,
        train_norm_affine=settings.train_norm_affine,
        invertible_norms=settings.inplace_abn,
        feature_strides=settings.feature_strides,
    )
    start = str(last_checkpoint(restore_from))
    report = initial_weights(network, start, download=settings.download)
    meta = {} if start in HUBS else read_record(start)
    other = _other_class(meta, classes)
    if other:
        say(f"note: {start}: {other}; a head of the same size is taken over all the same")
    if settings.freeze_backbone:
        network.freeze_backbone()
    if settings.inplace_abn:
        use_inplace_norms(network)
    if settings.checkpointing:
        checkpoint_blocks(network)
    return Initial(_place(network, device), normalizer(network, config, meta), report)


def resumed_network(run: str, config: Config, classes: ClassTable, device: torch.device) -> Initial:
    """That of an interrupted run, whose state brings the weights: those it once started from may be gone."""
    network, _, report = initial_network("random", config, classes, device)
    return Initial(network, normalizer(network, config, read_record(Path(run) / LAST)), report)


class Trained(NamedTuple):
    """A network in eval mode, the normalisation of its images, the weights that it was made from, how they fitted."""

    network: SegmentationNetwork
    normalize: Normalize
    weights: Weights
    report: LoadReport


def trained_network(restore_from: str, config: Config, classes: ClassTable, device: torch.device) -> Trained:
    """The network that a weight file holds, whatever `[model]` says: a known format is recognised."""
    weights = read_weights(last_checkpoint(restore_from))
    if weights.layout == "discriminator":
        raise WeightsError(f"{weights.path} holds a discriminator; the network is in the file without _D")
    network = build_network(**_architecture(weights, config, classes))
    if network.num_classes != classes.num_classes:
        raise WeightsError(
            f"{weights.path} predicts {network.num_classes} classes, the class table has {classes.num_classes}; "
            "name the configuration that it was trained with: --config"
        )
    other = _other_class(weights.meta, classes)
    if other:
        raise WeightsError(f"{weights.path}: {other}; name the configuration that it was trained with: --config")
    report = load_network(network, weights, purpose="full")
    return Trained(_place(network, device).eval(), normalizer(network, config, weights.meta), weights, report)


def _other_class(meta: Mapping[str, Any], classes: ClassTable) -> str:
    """What the first class is called that weights know under another name; "" where there is none, or no record."""
    table = meta.get("classes")
    recorded = table.get("names", ()) if isinstance(table, Mapping) else ()  # of other origin it may be anything
    for number, (theirs, ours) in enumerate(zip(recorded, classes.names, strict=False)):
        if theirs != ours:
            return f"its class {number} is {theirs!r}, that of the class table {ours!r}"
    return ""


def _architecture(weights: Weights, config: Config, classes: ClassTable) -> Mapping[str, Any]:
    """What the file says of its network; of what tensors alone do not tell, what `[model]` says, and that aloud."""
    if weights.architecture is not None:
        return infer_architecture(weights)
    settings = config.model
    assumed: dict[str, Any] = {"branches": settings.branches}
    if weights.layout != "vgg16":
        assumed["output_stride"] = settings.output_stride
    if settings.feature_strides:
        assumed["feature_strides"] = list(settings.feature_strides)
    spelled = ", ".join(f"{key} = {value}" for key, value in assumed.items())
    say(f"note: {weights.path} has no record of its architecture; {spelled} are taken from [model]")
    if weights.layout == "timm-network" and settings.name.startswith("timm:"):
        return {"name": settings.name, "num_classes": classes.num_classes} | assumed
    return assumed | infer_architecture(weights)


def last_checkpoint(restore_from: str) -> Path | str:
    """A run folder means its last checkpoint, never the one selected on target labels."""
    path = Path(restore_from)
    if restore_from in HUBS or path.is_file():
        return restore_from
    if not (path / LAST).is_file():
        raise WeightsError(
            f"{restore_from}: neither a weights file nor the folder of a run (no {LAST} in it); {_remedy(path)}, "
            f"or name a file, or one of {', '.join(HUBS)} where training starts"
        )
    return path / LAST


def _remedy(run: Path) -> str:
    """How a run comes to be that is not there; where stage 1 is, its run may be what was meant."""
    recipe = Path("configs") / f"{run.parent.name}.toml"
    script = "train_step2.py" if run.name == "step2" else "train_step1.py"
    first = f"first run python {script} --config {recipe}" if recipe.is_file() else "first run the script before it"
    stage1 = run.with_name("step1")
    if script == "train_step2.py" and (stage1 / LAST).is_file():
        return f"{first}, or take stage 1: --restore-from {stage1}"
    return first


def normalizer(network: SegmentationNetwork, config: Config, meta: Mapping[str, Any]) -> Normalize:
    """The normalisation of the network's images: as recorded with its weights (`meta`), else `[model] input_mean` over
    the network's own."""
    wanted, recorded = config.model.input_mean, meta.get("input")
    statistics = recorded or input_statistics(network.name)
    if wanted and not recorded:
        statistics = {**statistics, "mean": wanted}
    elif wanted and list(wanted) != list(statistics["mean"]):
        say(f"note: [model] input_mean has no effect: the weights were trained with {list(statistics['mean'])}")
    return Normalize(order=statistics["order"], mean=tuple(statistics["mean"]), std=tuple(statistics["std"]))


def build_method(
    network: SegmentationNetwork, classes: ClassTable, config: Config, stage: Stage, device: torch.device
) -> BAFFT:
    """The method around a network, whose batch norms are told whether they keep their statistics. Raises ConfigError
    for alignment settings that do not exist."""
    network.keeps_statistics = stage.statistics == "kept"
    alignment = Alignment(
        aim=stage.aim,
        aim_weights=stage.aim_weights,
        isia=stage.isia,
        label_map=stage.label_map,
        instances=stage.instances,
        slots_stuff=stage.num_prototype,
        slots_thing=10 * stage.num_prototype,
    )
    try:
        method = BAFFT(
            network=network,
            discriminator=Discriminator(classes.num_classes, width=config.model.discriminator_width),
            stuff=classes.stuff,
            things=classes.things,
            alignment=alignment,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return method.to(device)


def _place(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    """On the device, convolutions in channels_last: the fast layout on CUDA and CPU alike."""
    network.to(device)
    network.to(memory_format=torch.channels_last)
    return network
