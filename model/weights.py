"""Weights into networks: strict loading with a readable diff, and initial weights by name.

`read_weights` (file -> `Weights`), `load_network` (`Weights` -> network), `initial_weights` (a choice such as
"torchvision" -> network); `write_weights` is the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.deeplab import RESNETS, SegmentationNetwork
from model.discriminator import Discriminator
from model.weight_files import (
    LAYOUTS,
    Weights,
    WeightsError,
    first_line,
    infer_architecture,
    read_record,
    read_state,
    read_weights,
    write_weights,
)

__all__ = [
    "LoadReport",
    "Weights",
    "WeightsError",
    "infer_architecture",
    "initial_weights",
    "load_network",
    "read_record",
    "read_state",
    "read_weights",
    "write_weights",
]

# What initial weights may bring along on top of a backbone, by its top-level name.
HEAD_NAMES = frozenset({"layer5", "layer6", "classifier", "fc", "fuse"})
# Per RGB channel, of images in 0..1: what torchvision's classifiers were trained on.
TORCHVISION_STD = (0.229, 0.224, 0.225)
# Where downloads and hand-placed files lie; the working directory's folder first.
PRETRAINED = (Path("pretrained"), Path(__file__).resolve().parents[1] / "pretrained")


@dataclass(frozen=True)
class LoadReport:
    """What a load did, as lines for the log."""

    lines: tuple[str, ...]


# -- loading ---------------------------------------------------------------------------------------


def load_network(
    network: SegmentationNetwork | Discriminator,
    weights: Weights,
    *,
    purpose: Literal["full", "initial"] = "full",
) -> LoadReport:
    """Copy the file's tensors into the network, strictly; on WeightsError the network is untouched.

    full: every tensor matches by name and shape (old files lack `num_batches_tracked`, and may). initial:
    every tensor of the backbone comes from the file; a head comes along where it fits, else it stays as it is
    and the report says so. The error's first line names what the file looks like, a diff follows.
    """
    notes: list[str] = []
    if purpose == "full":
        _check_branches(network, weights)
        chosen = weights.state
        _require_match(network, weights, network.state_dict(), chosen)
    else:
        chosen = _choose_initial(network, weights, notes)
    network.load_state_dict(chosen, strict=False)  # _require_match was stricter, and says more
    return LoadReport((weights.describe(), f"loaded {len(chosen)} of the file's {len(weights.state)} tensors", *notes))


def _check_branches(network: SegmentationNetwork | Discriminator, weights: Weights) -> None:
    recorded, branches = _recorded_branches(weights), network.architecture().get("branches")
    if recorded not in (None, branches):
        raise WeightsError(
            f"{weights.path} was trained with {recorded} branches in its head, the network sums {branches}: "
            f"set branches = {recorded}"
        )


def _recorded_branches(weights: Weights) -> int | None:
    return (weights.architecture or {}).get("branches")


def _invertible(architecture: Mapping[str, Any]) -> bool:
    return architecture.get("invertible_norms", False)


def _choose_initial(
    network: SegmentationNetwork | Discriminator, weights: Weights, notes: list[str]
) -> dict[str, Tensor]:
    """The file's tensors for the network, under the network's names; what is left out goes into `notes`."""
    expected = network.state_dict()
    chosen = weights.state
    if network.name.startswith("timm:") and weights.layout != "timm-network":
        chosen = _from_timm_classifier(network, weights, notes)
    if isinstance(network, SegmentationNetwork):
        expected, chosen = _leave_out_new_parts(network, expected, chosen, notes)
    if weights.layout == "imagenet-resnet" and not network.name.startswith("timm:"):
        chosen = {**chosen, "conv1.weight": _stem_for_bgr(chosen["conv1.weight"])}
        notes.append("conv1 converted from torchvision's RGB of unit variance to BGR in 0..255")
    own = {name.split(".")[0] for name in network.state_dict()}
    for head in sorted({name.split(".")[0] for name in chosen} & HEAD_NAMES - own):
        notes.append(f"{head} of the file skipped: the network has none")
        chosen = _without(chosen, head)
    recorded, branches = _recorded_branches(weights), network.architecture().get("branches")
    if recorded not in (None, branches):
        notes.append(f"the file's head summed {recorded} branches, the network sums {branches}")
    if weights.architecture and _invertible(weights.architecture) != _invertible(network.architecture()):
        notes.append("of the file and the network one has invertible norms, the other has not: its function changes")
    _require_match(network, weights, expected, chosen)
    return chosen


def _leave_out_new_parts(
    network: SegmentationNetwork, expected: dict[str, Tensor], chosen: dict[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both without the new parts that do not fit the file; what sits on such a part means nothing without it."""
    fresh: list[str] = []
    for part in network.new_parts():
        reason = _head_mismatch(_under(expected, part), _under(chosen, part))
        if not reason and "fuse" in fresh:
            reason = "it belongs to fuse"
        if reason:
            fresh.append(part)
            notes.append(f"{part} not loaded: {reason}; it starts from random weights")
            expected, chosen = _without(expected, part), _without(chosen, part)
    return expected, chosen


def _stem_for_bgr(weight: Tensor) -> Tensor:
    """torchvision's first convolution (N, 3, k, k), which reads (RGB/255 - mean)/std, for the released input, BGR minus
    a mean that differs by less than one grey level: channels reversed, scale folded in, the same response."""
    deviation = 255 * weight.new_tensor(TORCHVISION_STD)
    return (weight / deviation[:, None, None]).flip(1)


def _under(state: Mapping[str, Tensor], top: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(top + ".")}


def _without(state: Mapping[str, Tensor], top: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(top + ".")}


def _head_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Why a head's tensors in the file cannot be loaded; None when they can."""
    if not expected.keys() <= found.keys():
        return "the file has another head" if found else "the file has none"
    for name, value in expected.items():
        if len(found[name]) != len(value):
            return f"{len(found[name])} classes in the file, {len(value)} in the network"
        if found[name].shape != value.shape:
            return f"{tuple(found[name].shape)} in the file, {tuple(value.shape)} in the network"
    return None


def _from_timm_classifier(
    network: SegmentationNetwork | Discriminator, weights: Weights, notes: list[str]
) -> dict[str, Tensor]:
    """Tensors of timm's classification layout under the names of our `backbone`.

    timm's feature wrappers flatten the outer containers ("stages.0" becomes "stages_0"), so names are
    compared with dots and underscores alike. Left out are the tensors of the classifier that the backbone has no use
    for; what neither knows keeps its name, for the strict comparison to report.
    """
    from model.timm_backbone import classifier_names

    backbone = _under(network.state_dict(), "backbone")
    # One kind of wrapper holds the classifier itself, under the name of model.
    prefix = "backbone.model." if all(name.startswith("backbone.model.") for name in backbone) else "backbone."
    ours = {name.removeprefix(prefix).replace(".", "_"): name for name in backbone}
    theirs = {name.replace(".", "_") for name in classifier_names(network.name)}
    chosen, skipped = {}, set()
    for name, value in weights.state.items():
        flat = name.replace(".", "_")
        if flat in ours or flat not in theirs:
            chosen[ours.get(flat, name)] = value
        else:
            skipped.add(name.rsplit(".", 1)[0])
    if skipped:
        notes.append(f"classifier of the file skipped: {', '.join(sorted(skipped))}")
    return chosen


def _require_match(
    network: SegmentationNetwork | Discriminator,
    weights: Weights,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> None:
    """Raise WeightsError unless both hold the same names and shapes, batch counters aside."""
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name}: {tuple(value.shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name, value in found.items()
        if name in expected and value.shape != expected[name].shape
    ]
    groups = [
        ("missing in the file", missing),
        ("unknown to the network", unexpected),
        ("of another shape", reshaped),
    ]
    groups = [(label, entries) for label, entries in groups if entries]
    if groups:
        counts = ", ".join(f"{len(entries)} {label}" for label, entries in groups)
        summary = (
            f"{weights.path} does not fit: the file is {_file_identity(weights)}, the network "
            f"{_identity(network.architecture())}; tensors: {counts}"
        )
        raise WeightsError("\n".join((summary, *(_format_group(*group) for group in groups))))


def _format_group(label: str, entries: list[str], limit: int = 6) -> str:
    lines = [f"  {label}:", *(f"    {entry}" for entry in entries[:limit])]
    if len(entries) > limit:
        lines.append(f"    ... and {len(entries) - limit} more")
    return "\n".join(lines)


def _file_identity(weights: Weights) -> str:
    try:
        return _identity(infer_architecture(weights))
    except WeightsError:
        return f"of {LAYOUTS[weights.layout]}"


def _identity(architecture: Mapping[str, Any]) -> str:
    details = []
    if "num_classes" in architecture:
        details.append(f"{architecture['num_classes']} classes")
    if strides := architecture.get("feature_strides"):
        details.append(f"feature_strides {list(strides)}")
    if architecture.get("width", 64) != 64:
        details.append(f"width {architecture['width']}")
    return f"a {architecture.get('name')}" + (f" ({', '.join(details)})" if details else "")


# -- initial weights -------------------------------------------------------------------------------


def initial_weights(network: SegmentationNetwork, choice: str, *, download: bool = False) -> LoadReport:
    """Start the network from `choice`: "random", "torchvision", "timm" or a file of any known layout.

    Nothing is fetched unless `download`: torchvision's ImageNet file and timm's are looked for in
    `pretrained/` and in the libraries' own caches. Raises WeightsError.
    """
    if choice == "random":
        return LoadReport(("initial weights: random (backbone Kaiming, head N(0, 0.01))",))
    if choice == "torchvision":
        return load_network(network, read_weights(_find_torchvision(network, download)), purpose="initial")
    path = _find_timm(network, download) if choice == "timm" else Path(choice)
    if choice != "timm" and not path.exists():
        raise WeightsError(f"{choice}: no such weights file (nor is it random, torchvision or timm)")
    return load_network(network, read_weights(path), purpose="initial")


def _find_torchvision(network: SegmentationNetwork, download: bool) -> Path:
    """torchvision's ImageNet file of the network's backbone on disk, fetched if need be and allowed."""
    resnet = network.name.removeprefix("oracle_")
    if resnet not in RESNETS or network.width != 64:
        raise WeightsError(
            f"torchvision has no weights for {_identity(network.architecture())}: they fit "
            f"{', '.join(RESNETS)} of width 64; use random, timm (for timm:<name>) or a file"
        )
    from torchvision.models import get_weight

    record = get_weight(f"ResNet{resnet.removeprefix('resnet')}_Weights.IMAGENET1K_V1")
    name = record.url.rsplit("/", 1)[1]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (*PRETRAINED, cache):
        if (folder / name).is_file():
            return folder / name
    if not download:
        raise WeightsError(
            f"torchvision's {name} is neither in pretrained/ nor in {cache}: add --download to fetch it "
            f"({record.meta['_file_size']:.0f} MB), or start from --restore-from FILE or random weights"
        )
    cache.mkdir(parents=True, exist_ok=True)
    digest = name.rsplit("-", 1)[1].removesuffix(".pth")
    try:
        torch.hub.download_url_to_file(record.url, str(cache / name), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{record.url} could not be fetched ({first_line(str(error))})") from error
    return cache / name


def _find_timm(network: SegmentationNetwork, download: bool) -> Path:
    """timm's file of the network's backbone on disk, fetched if need be and allowed."""
    if not network.name.startswith("timm:"):
        raise WeightsError(f"timm weights fit timm:<name> networks, not {network.name}: use torchvision or a file")
    from model.timm_backbone import hub_file

    model = network.name.removeprefix("timm:")
    for folder in PRETRAINED:
        for suffix in (".safetensors", ".pth"):
            if (folder / (model + suffix)).is_file():
                return folder / (model + suffix)
    try:
        path = hub_file(network.name, download=download)
    except OSError as error:
        raise WeightsError(f"timm's weights of {model} could not be fetched ({first_line(str(error))})") from error
    if path is None:
        raise WeightsError(
            f"timm's weights of {model} are neither in pretrained/ ({model}.safetensors) nor in the hub's "
            "cache: add --download to fetch them, or start from --restore-from FILE or random weights"
        )
    return path
