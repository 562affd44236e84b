"""Weights files: reading and recognising any family's layout, writing the released one; no pickled code runs.

`weights.py` puts what is read here into networks.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.deeplab import RESNETS, Bottleneck, NetworkError, build_network

WEIGHTS_FORMAT = "bafft-weights-1"  # mark of the sidecar that travels with a weights file
STATE_FORMAT = "bafft-train-state-1"  # mark of a resumable training state (last.pt)

# Prefixes that wrappers and old conversions put before every name.
PREFIXES = ("module.", "_orig_mod.", "Scale.")

TENSORS_ONLY = "save its state dict alone, tensors only, and give that file"

LAYOUTS = {
    "deeplab-v2": "DeepLab-v2 weights",
    "deeplab-init": "DeepLab-v2 initial weights (COCO)",
    "oracle": "Oracle weights",
    "imagenet-resnet": "ImageNet ResNet weights",
    "resnet-backbone": "ResNet backbone without head",
    "vgg16": "VGG-16 weights",
    "discriminator": "discriminator weights",
    "timm-network": "segmentation weights on a timm backbone",
    "unknown": "tensors under names of their own",
}


class WeightsError(NetworkError):
    """A weights file that is missing, unreadable or does not fit.

    The first line says what, where and how to mend it; a diff of tensors may follow.
    """


@dataclass(frozen=True)
class Weights:
    """A weights file, read.

    state: float32 tensors on the CPU under the released names (prefixes taken off). layout: a key of
    `LAYOUTS`. architecture: what `build_network` needs, where the file or its sidecar records it. meta:
    everything else recorded with it. sha256: of the file. notes: what reading changed, for the log.
    """

    path: Path
    state: dict[str, Tensor]
    layout: str
    sha256: str
    architecture: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """File, layout, the hash's first 12 digits and what reading changed, in one line."""
        line = f"{self.path}: {LAYOUTS[self.layout]}, sha256 {self.sha256[:12]}"
        return "; ".join((line, *self.notes))


# -- reading ---------------------------------------------------------------------------------------


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file: float32, on the CPU, prefixes taken off. Raises WeightsError."""
    return read_weights(path).state


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a torch (zip or legacy) or safetensors file and recognise what it holds. Raises WeightsError.

    Accepted: a plain state dict, one wrapped under `state_dict` or `model`, or a resumable training state of
    ours, of which the network's part is returned. A sidecar `<stem>.json` of `write_weights` is read along.
    """
    path = Path(path)
    content = _read_content(path)
    sha256 = _sha256(path)
    architecture, meta = _read_sidecar(path, sha256)
    if str(content.get("format", "")).startswith("bafft-train-state"):
        content, architecture, meta = _open_train_state(path, content)
    state, prefixes = _strip_prefixes(_unwrap(path, content))
    half = [name for name, value in state.items() if value.dtype in (torch.float16, torch.bfloat16)]
    notes = [f"prefix '{prefix}' taken off" for prefix in prefixes]
    if half:
        notes.append(f"{len(half)} half-precision tensors cast to float32")
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    return Weights(
        path=path,
        state=state,
        layout=_recognise(state, scaled="Scale." in prefixes),
        sha256=sha256,
        architecture=architecture,
        meta=meta,
        notes=tuple(notes),
    )


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is recorded with weights, without their tensors: the meta of a training state, of other files that of the
    sidecar, whose match with the file is not checked. Empty where nothing is. Raises WeightsError."""
    path = Path(path)
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        return _read_sidecar(path, None)[1]
    if not zipfile.is_zipfile(path):
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever is wrong with the file, `read_weights` says it
        return {}
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def _read_content(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, not a weights file: name a file in it")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise WeightsError(f"{path} is empty: copy or download it again")
    content = _parse(path, start)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_kind(content)} where a state dict (names and tensors) was expected")
    return dict(content)


def _parse(path: Path, start: bytes) -> Any:
    is_zip = start.startswith(b"PK\x03\x04")
    # A safetensors file begins with the length of its JSON header (8 bytes, little endian), then "{".
    is_safetensors = path.suffix == ".safetensors" or (start[8:] == b"{" and not is_zip)
    if is_zip:
        _check_archive(path)
    try:
        if is_safetensors:
            return load_file(path)
        with warnings.catch_warnings():
            # torch remarks on the pickle protocol of foreign files; whether it can read them shows.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can fail in any way the parsers know
        raise WeightsError(f"{path} {_parse_failure(str(error), start)}") from error


def _check_archive(path: Path) -> None:
    """Raise WeightsError unless every entry of a zip archive has the checksum that it was written with: torch does not
    compare them."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged entry fails in the decompressor, the text codec, the decryption...
        raise WeightsError(f"{path} is truncated or damaged ({error}): copy or download it again") from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged, the checksum of {damaged!r} does not hold: copy or download it again")


def _parse_failure(message: str, start: bytes) -> str:
    if code := re.search(r"GLOBAL ([\w.]+)", message):
        return f"holds pickled code ({code[1].rstrip('.')}) and is not loaded: {TENSORS_ONLY}"
    if "unexpected EOF" in message or "incomplete" in message.lower():
        return "is truncated or damaged: copy or download it again"
    if start.startswith(b"PK"):
        return f"is a damaged checkpoint, or a zip archive of something else ({first_line(message)})"
    if start.startswith(b"\x80"):  # how pickles begin
        return f"is truncated, or holds pickled code or objects, and is not loaded: {TENSORS_ONLY}"
    return "is not a checkpoint (neither torch nor safetensors), or is truncated"


def first_line(message: str) -> str:
    return next(iter(message.strip().splitlines()), "no reason given")[:160]


def _kind(value: Any) -> str:
    return "nothing" if value is None or value == {} else f"a {type(value).__name__}"


def _open_train_state(
    path: Path, content: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
    """(network's tensors, architecture, other plain entries) of a resumable training state."""
    if content["format"] != STATE_FORMAT:
        raise WeightsError(f"{path} is a training state of format {content['format']!r}, known is {STATE_FORMAT!r}")
    if not isinstance(content.get("network"), Mapping):
        raise WeightsError(f"{path} is a training state without its 'network' entry: give another checkpoint")
    plain = {name: value for name, value in content.items() if name not in ("format", "meta") and _is_plain(value)}
    meta = {**content.get("meta", {}), **plain}  # spelled as in a sidecar
    return dict(content["network"]), meta.pop("architecture", None), meta


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _unwrap(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            return _unwrap(path, content[key])
    strangers = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strangers or not content:
        found = f"{_kind(content[strangers[0]])} under {strangers[0]!r}" if strangers else "no tensors"
        raise WeightsError(f"{path} holds {found}: not a state dict (names and tensors) and none inside")
    return dict(content)


def _strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take off prefixes that every name carries; returns the state and those taken off."""
    taken: list[str] = []
    while True:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state, taken
        taken.append(prefix)
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_sidecar(path: Path, sha256: str | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return None, {}
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{sidecar}, which should describe {path.name}, cannot be read ({error}): delete it"
        ) from error
    if not isinstance(record, dict) or record.get("format") != WEIGHTS_FORMAT:
        return None, {}  # some other file of that name
    if sha256 is not None and record.get("sha256", sha256) != sha256:
        raise WeightsError(
            f"{path} is not the file that {sidecar.name} describes (sha256 differs): it is damaged or was "
            f"replaced; restore it, or delete {sidecar.name} to read it without"
        )
    meta = {name: value for name, value in record.items() if name not in ("format", "sha256", "architecture")}
    return record.get("architecture"), meta


# -- writing ---------------------------------------------------------------------------------------


def write_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write a plain dict of tensors, which the authors' code loads, and `<stem>.json`; returns the sha256.

    `meta`: JSON values for the sidecar; its `architecture` is what a reader hands to `build_network`. Either
    file is complete or not there: both are written beside their place, flushed, and renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    sidecar, mark = path.with_suffix(".json"), secrets.token_hex(4)  # named as utils/files.py names what is unfinished
    parts = {place: place.with_name(f".{place.stem}.{mark}.tmp{place.suffix}") for place in (path, sidecar)}
    weights_part, sidecar_part = parts.values()
    try:
        buffer = io.BytesIO()  # torch itself would not say that a disk is full, and would write the part's name down
        torch.save(plain, buffer)
        weights_part.write_bytes(buffer.getbuffer())
        sha256 = _sha256(weights_part)
        record = {"format": WEIGHTS_FORMAT, "sha256": sha256, **meta}
        sidecar_part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for part in parts.values():
            _flush(part)
        for place, part in parts.items():
            os.replace(part, place)
        with contextlib.suppress(PermissionError):  # Windows does not open folders
            _flush(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say of which file
            error.filename = str(path)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return sha256


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- recognising -----------------------------------------------------------------------------------


def _recognise(state: Mapping[str, Tensor], *, scaled: bool) -> str:
    """Key of `LAYOUTS`; `scaled`: the names carried the prefix of the initial DeepLab file."""
    tops = {name.split(".")[0] for name in state}
    if "layer1.0.conv1.weight" in state and "conv1.weight" in state:
        return _recognise_resnet(tops, scaled)
    if "features.0.weight" in state and "classifier.conv2d_list.0.weight" in state:
        return "vgg16"
    if "backbone" in tops and "layer6" in tops:
        return "timm-network"
    if tops == {"conv1", "conv2", "conv3", "conv4", "classifier"}:
        return "discriminator"
    return "unknown"


def _recognise_resnet(tops: set[str], scaled: bool) -> str:
    if "layer6" in tops:
        return "deeplab-v2"
    if "layer5" in tops:
        return "deeplab-init" if scaled else "oracle"
    return "imagenet-resnet" if "fc" in tops else "resnet-backbone"


def infer_architecture(weights: Weights) -> dict[str, Any]:
    """What to hand to `build_network` (or, with name "discriminator", to `Discriminator`) for this file.

    Recorded values where there are any, else read off the tensors: `name`, `width`, and `num_classes` if the
    file has a segmentation head. `branches` cannot be read off: absent, it means 2, as released. Raises
    WeightsError for a layout that is not recognised.
    """
    if weights.architecture is not None:
        return _check_architecture(weights.path, weights.architecture)
    reader = _READERS.get(weights.layout)
    architecture = reader(weights.state) if reader else None
    if architecture is None:
        tops = sorted({name.split(".")[0] for name in weights.state})
        raise WeightsError(
            f"{weights.path}: cannot tell which network these {len(weights.state)} tensors belong to "
            f"({', '.join(tops[:8])}{', ...' if len(tops) > 8 else ''}): name the network"
        )
    return architecture


def _check_architecture(path: Path, recorded: Any) -> dict[str, Any]:
    """The recorded architecture, if `build_network` or `Discriminator` can take it."""
    known = set(inspect.signature(build_network).parameters)
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("name"), str):
        raise WeightsError(f"{path}: the architecture recorded with it has no name: name the network")
    if strangers := sorted(set(recorded) - known):
        raise WeightsError(
            f"{path}: the architecture recorded with it has unknown settings ({', '.join(strangers)}): "
            "was it written by a newer version?"
        )
    return dict(recorded)


def _read_resnet(state: Mapping[str, Tensor], head: str | None, prefix: str = "") -> dict[str, Any] | None:
    depths = tuple(_count_blocks(state, f"layer{stage}") for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    for name, (block, known) in RESNETS.items():
        if known == depths and (block is Bottleneck) == bottleneck:
            width = state["conv1.weight"].shape[0]
            return {"name": prefix + name, "width": width, **_classes(state, head)}
    return None


def _count_blocks(state: Mapping[str, Tensor], stage: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(stage + ".")})


def _classes(state: Mapping[str, Tensor], head: str | None) -> dict[str, int]:
    weight = state.get(f"{head}.conv2d_list.0.weight")
    return {} if weight is None else {"num_classes": weight.shape[0]}


def _read_vgg(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"name": "vgg16", "width": state["features.0.weight"].shape[0], **_classes(state, "classifier")}


def _read_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, num_classes = state["conv1.weight"].shape[:2]
    return {"name": "discriminator", "num_classes": num_classes, "width": width}


_READERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Any] | None]] = {
    "deeplab-v2": lambda state: _read_resnet(state, "layer6"),
    "oracle": lambda state: _read_resnet(state, "layer5", prefix="oracle_"),
    "deeplab-init": lambda state: _read_resnet(state, None),
    "imagenet-resnet": lambda state: _read_resnet(state, None),
    "resnet-backbone": lambda state: _read_resnet(state, None),
    "vgg16": _read_vgg,
    "discriminator": _read_discriminator,
}
