"""Any feature backbone of the timm library, at output stride 8 or 16, under the DeepLab head."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from model.deeplab import Head, NetworkError, SegmentationNetwork


class TimmNetwork(SegmentationNetwork):
    """`backbone`, the timm model named after `timm:`; its last feature map feeds the head `layer6`."""

    head_name = "layer6"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.backbone = _feature_backbone(self.name, self.output_stride)
        feature_dim = self.backbone.feature_info.channels()[-1]
        self.layer6 = Head(feature_dim, self.num_classes, branches=self.branches)
        self._finish(feature_dim)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> the last feature map (B, D, h, w)."""
        return self.backbone(images)[-1]

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


def _feature_backbone(name: str, output_stride: int) -> Any:
    model = timm_name(name)
    try:
        backbone: Any = timm.create_model(
            model, pretrained=False, features_only=True, output_stride=output_stride, out_indices=(-1,)
        )
        stride = backbone.feature_info.reduction()[-1]
    except Exception as error:
        # Each architecture refuses in its own way: TypeError, NotImplementedError, AssertionError, ...
        reason = next(iter(str(error).strip().splitlines()), "it cannot be dilated")
        raise NetworkError(
            f"timm model '{model}' cannot be a feature backbone at output stride {output_stride}: {reason}; "
            "choose a convolutional model that can be dilated, such as resnet50 or tf_efficientnet_lite0"
        ) from error
    if stride != output_stride:
        raise NetworkError(f"timm model '{model}' has output stride {stride}, asked for was {output_stride}")
    return backbone


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
