"""Any feature backbone of the timm library, dilated to output stride 8 or 16 or with maps of several strides, under the
DeepLab head."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from model.deeplab import Head, Hypercolumn, NetworkError, SegmentationNetwork

HYPERCOLUMN_DIM = 128
_INSTEAD = "choose a convolutional model such as resnet50 or tf_efficientnet_lite0"


class TimmNetwork(SegmentationNetwork):
    """`backbone`, the timm model named after `timm:`; its last feature map feeds the head `layer6`, or, with
    `feature_strides`, those maps joined by `fuse`."""

    head_name = "layer6"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.feature_strides:
            self.backbone = _staged_backbone(self.name, self.feature_strides)
            self.fuse = Hypercolumn(self.backbone.feature_info.channels(), HYPERCOLUMN_DIM)
            feature_dim = HYPERCOLUMN_DIM
        else:
            self.backbone = _dilated_backbone(self.name, self.output_stride)
            feature_dim = self.backbone.feature_info.channels()[-1]
        self.layer6 = Head(feature_dim, self.num_classes, branches=self.branches)
        self._finish(feature_dim)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> features (B, D, h, w)."""
        maps = self.backbone(images)
        return self.fuse(maps) if self.feature_strides else maps[-1]

    def blocks(self) -> list[nn.Module]:
        """The blocks of stages that are plain sequences, other stages whole."""
        return list(_blocks(self.backbone))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Children with several convolutions, those of sequences in their place; a single layer is not worth it."""
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _blocks(child)
        elif sum(isinstance(layer, nn.Conv2d) for layer in child.modules()) > 1:
            yield child


def timm_name(name: str) -> str:
    """`timm:x` -> `x`, a model this timm installation knows; raises NetworkError with the nearest names."""
    model = name.removeprefix("timm:")
    if timm.is_model(model):
        return model
    near = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names"
    raise NetworkError(f"timm {timm.__version__} has no model '{model}': {hint}")


def _dilated_backbone(name: str, output_stride: int) -> Any:
    """The backbone whose last map, the only one that it returns, has this stride."""
    backbone = _feature_backbone(
        name, f"at output stride {output_stride}", out_indices=(-1,), output_stride=output_stride
    )
    stride = backbone.feature_info.reduction()[-1]
    if stride != output_stride:
        raise NetworkError(f"timm model '{timm_name(name)}' has output stride {stride}, asked for was {output_stride}")
    return backbone


def _staged_backbone(name: str, strides: Sequence[int]) -> Any:
    """The backbone as it was trained, returning its last map of each stride."""
    wanted = f"of strides {', '.join(map(str, strides))}"
    with torch.device("meta"):
        info = _feature_backbone(name, wanted).feature_info
    reductions = info.reduction()
    if missing := [stride for stride in strides if stride not in reductions]:
        has = ", ".join(map(str, sorted(set(reductions))))
        raise NetworkError(f"timm model '{timm_name(name)}' has no features of stride {missing[0]}, only of {has}")
    last = dict(zip(reductions, info.out_indices, strict=True))
    backbone = _feature_backbone(name, wanted, out_indices=tuple(last[stride] for stride in strides))
    _try_out(backbone, name, strides)
    return backbone


@torch.no_grad()
def _try_out(backbone: Any, name: str, strides: Sequence[int]) -> None:
    """Raise NetworkError unless maps of an image of unusual size are what the model's record says: transformers may
    want one size or return channels last, and without padding maps do not lie over each other."""
    height, width = 96, 160
    expected = [(c, height / s, width / s) for c, s in zip(backbone.feature_info.channels(), strides, strict=True)]
    try:
        found = [tuple(x.shape[1:]) for x in backbone.eval()(torch.zeros(1, 3, height, width))]
    except Exception as error:
        reason = _reason(error, otherwise=type(error).__name__)
        raise NetworkError(f"timm model '{timm_name(name)}' cannot take images of any size: {reason}") from error
    finally:
        backbone.train()
    for (channels, h, w), shape in zip(expected, found, strict=True):
        if shape[0] != channels or abs(shape[1] - h) > 1 or abs(shape[2] - w) > 1:
            raise NetworkError(
                f"timm model '{timm_name(name)}' has maps {shape} where ({channels}, {h:g}, {w:g}) were expected: they "
                f"do not lie over each other; {_INSTEAD}"
            )


def _feature_backbone(name: str, wanted: str, **options: Any) -> Any:
    model = timm_name(name)
    try:
        backbone: Any = timm.create_model(model, pretrained=False, features_only=True, **options)
        backbone.feature_info.reduction()
    except Exception as error:
        # Each architecture refuses in its own way: TypeError, NotImplementedError, AssertionError, ...
        reason = _reason(error, otherwise="it cannot be dilated")
        raise NetworkError(
            f"timm model '{model}' cannot be a feature backbone {wanted}: {reason}; {_INSTEAD}"
        ) from error
    return backbone


def _reason(error: Exception, *, otherwise: str) -> str:
    """The first line of what an architecture says, all of it."""
    return next(iter(str(error).strip().splitlines()), otherwise)


def timm_statistics(name: str) -> dict[str, Any]:
    """Input statistics of `timm:<name>` from timm's own record, in the 0..255 range."""
    record = timm.get_pretrained_cfg(timm_name(name)) or timm.models.PretrainedCfg()
    return {
        "order": "RGB",
        "mean": tuple(255.0 * value for value in record.mean),
        "std": tuple(255.0 * value for value in record.std),
    }


def classifier_names(name: str) -> set[str]:
    """Names of all tensors of the whole classification model of `timm:<name>`."""
    with torch.device("meta"):  # names only: nothing is allocated
        return set(timm.create_model(timm_name(name), pretrained=False).state_dict())


def hub_file(name: str, *, download: bool) -> Path | None:
    """timm's published file of `timm:<name>` in the hub's cache, or None; `download` fetches it.

    Raises OSError when fetching fails, NetworkError when timm publishes no weights for the model.
    """
    record = timm.get_pretrained_cfg(timm_name(name))
    if record is None or not record.hf_hub_id:
        raise NetworkError(f"timm publishes no weights for '{timm_name(name)}' on its hub: give a file, or random")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    filename = record.hf_hub_filename or "model.safetensors"
    if download:
        return Path(hf_hub_download(record.hf_hub_id, filename))
    cached = try_to_load_from_cache(record.hf_hub_id, filename)
    return Path(cached) if isinstance(cached, str) else None
