"""The dilated ResNet and its multi-branch head (DeepLab-v2), and what every segmentation network shares.

`build_network` makes any of them by name. The other backbones are in `vgg.py` and `timm_backbone.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.norms import InvertibleNorm, activated


class NetworkError(ValueError):
    """A network that does not exist or cannot be built as asked; one line that says how to mend it."""


class SegOutput(NamedTuple):
    """What a network returns: `features` (B, D, h, w) and `logits` (B, C, h, w) on the same feature grid."""

    features: Tensor
    logits: Tensor


class Head(nn.Module):
    """Atrous pyramid classifier: 3x3 convolutions with dilation 6, 12, 18, 24, the first `branches` summed.

    All four exist because the released files hold four; the released forward pass runs two. Those that do
    not run are frozen, so that no optimiser decays them and no gradient synchronisation waits for them. With 0
    branches a single 1x1 convolution takes their place.
    """

    dilations = (6, 12, 18, 24)

    def __init__(self, channels: int, num_classes: int, *, branches: int) -> None:
        super().__init__()
        self.summed = branches or 1
        self.conv2d_list = nn.ModuleList(
            [nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate) for rate in self.dilations]
            if branches
            else [nn.Conv2d(channels, num_classes, 1)]
        )
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, 0.0, 0.01)
        for conv in list(self.conv2d_list)[self.summed :]:
            conv.requires_grad_(False)

    def running(self) -> list[nn.Module]:
        """The convolutions that are summed."""
        return list(self.conv2d_list)[: self.summed]

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, h, w)."""
        first, *others = self.running()
        logits = first(features)
        for conv in others:
            logits = logits + conv(features)
        return logits

    def classify(self, vectors: Tensor) -> Tensor:
        """(R, D) -> (R, C): each vector as a 1x1 map, of which only the centre taps see anything (spec 2)."""
        branches = self.running()
        centre = branches[0].get_parameter("weight").shape[-1] // 2
        weight = torch.stack([conv.get_parameter("weight")[:, :, centre, centre] for conv in branches]).sum(0)
        bias = torch.stack([conv.get_parameter("bias") for conv in branches]).sum(0)
        return F.linear(vectors, weight, bias)


class Hypercolumn(nn.Module):
    """Maps of several depths laid over each other at the grid of the finest (Hariharan et al., CVPR 2015), and a 1x1
    convolution with ReLU that makes D channels of them."""

    def __init__(self, channels: Sequence[int], feature_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(sum(channels), feature_dim, 1)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        nn.init.zeros_(self.reduce.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, c_i, h_i, w_i), the finest first -> (B, D, h_0, w_0)."""
        finest, *coarser = maps
        size = finest.shape[-2:]
        coarser = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in coarser]
        return F.relu(self.reduce(torch.cat([finest, *coarser], dim=1)))


class SegmentationNetwork(nn.Module):
    """Base of all networks: a backbone, which subclasses define by `extract`, and the head named `head_name`.

    `name`, `num_classes`, `branches`, `width`, `output_stride`, `train_norm_affine`, `invertible_norms` and, of timm
    networks, `feature_strides` are the settings that rebuild it; `feature_dim` is D. Subclasses end their constructor
    with `_finish`. `keeps_statistics`: in training, too, batch norms use the statistics that they have.
    """

    head_name: str

    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        branches: int,
        width: int,
        output_stride: int,
        train_norm_affine: bool,
        invertible_norms: bool = False,
        feature_strides: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.branches = branches
        self.width = width
        self.output_stride = output_stride
        self.train_norm_affine = train_norm_affine
        self.invertible_norms = invertible_norms
        self.feature_strides = tuple(feature_strides)
        self.feature_dim = 0
        self.keeps_statistics = False

    def _finish(self, feature_dim: int) -> None:
        """Record D; freeze the affine parameters of the norm layers unless they are to train."""
        self.feature_dim = feature_dim
        if not self.train_norm_affine:
            for module in self.modules():
                if isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                    module.requires_grad_(False)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """As of any module, but that norms stay in eval mode where statistics are kept."""
        super().train(mode)
        if self.keeps_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def head(self) -> Head:
        """The head that makes the logits."""
        head = getattr(self, self.head_name)
        assert isinstance(head, Head)
        return head

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> SegOutput:
        """Normalised float images (B, 3, H, W) -> features and logits, both on the feature grid."""
        features = self.extract(images)
        return SegOutput(features, self.head(features))

    def classify(self, vectors: Tensor) -> Tensor:
        """Pooled features (R, D) -> logits (R, C)."""
        return self.head.classify(vectors)

    def blocks(self) -> list[nn.Module]:
        """The parts of the backbone, one after the other, whose insides are worth computing twice to save memory."""
        return []

    def new_parts(self) -> list[str]:
        """Names of the children that no backbone's weights hold: they start from random weights, and learn faster."""
        return [name for name, child in self.named_children() if isinstance(child, (Head, Hypercolumn))]

    def freeze_backbone(self) -> None:
        """Let only the new parts learn; no gradient is computed for the backbone then."""
        backbone, _ = self.parameter_groups()
        for parameter in backbone:
            parameter.requires_grad_(False)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters of (backbone, what is new on it), each once; the latter learn at ten times the rate."""
        parts = [self.get_submodule(name) for name in self.new_parts()]
        head = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
        in_head = {id(parameter) for parameter in head}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in in_head]
        return rest, head

    def architecture(self) -> dict[str, Any]:
        """Plain values from which `build_network(**architecture)` makes this network, weights aside."""
        settings = {
            "name": self.name,
            "num_classes": self.num_classes,
            "branches": self.branches,
            "width": self.width,
            "output_stride": self.output_stride,
            "train_norm_affine": self.train_norm_affine,
        }
        if self.invertible_norms:
            settings["invertible_norms"] = True
        if self.feature_strides:
            settings["feature_strides"] = list(self.feature_strides)
        return settings


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels: int, planes: int, *, stride: int, dilation: int, norm: type[nn.BatchNorm2d]) -> None:
        """norm: the one before an activation."""
        super().__init__()
        self.conv1 = _conv(channels, planes, 3, stride=stride, dilation=dilation)
        self.bn1 = norm(planes)
        self.conv2 = _conv(planes, planes, 3, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, planes, h/stride, w/stride)."""
        out = self.bn2(self.conv2(activated(self.bn1, self.conv1(x))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1 (ResNet-50, -101). The stride sits on the first 1x1, as released."""

    expansion = 4

    def __init__(self, channels: int, planes: int, *, stride: int, dilation: int, norm: type[nn.BatchNorm2d]) -> None:
        """norm: those before an activation."""
        super().__init__()
        self.conv1 = _conv(channels, planes, 1, stride=stride)
        self.bn1 = norm(planes)
        self.conv2 = _conv(planes, planes, 3, dilation=dilation)
        self.bn2 = norm(planes)
        self.conv3 = _conv(planes, planes * 4, 1)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = _shortcut(channels, planes * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 4 planes, h/stride, w/stride)."""
        out = activated(self.bn1, self.conv1(x))
        out = activated(self.bn2, self.conv2(out))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _conv(channels: int, planes: int, size: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(channels, planes, size, stride=stride, padding=padding, dilation=dilation, bias=False)


def _shortcut(channels: int, planes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == planes:
        return None
    return nn.Sequential(_conv(channels, planes, 1, stride=stride), nn.BatchNorm2d(planes))


# Blocks per stage, and their kind.
RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
# Output stride -> (stride, dilation) of the four stages. Eight is the released network.
STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
}


class DeepLab(SegmentationNetwork):
    """DeepLab-v2 on a dilated ResNet; state dict as released (spec section 2).

    `layer6` classifies layer4's features. `layer5`, the same head on layer3's, is carried because the
    released files hold it: it never runs and never trains. The released Oracle network (`oracle=True`) has a
    single head, on layer4's features, which is called `layer5`.
    """

    def __init__(self, *, name: str, resnet: str, oracle: bool = False, **settings: Any) -> None:
        super().__init__(name=name, **settings)
        block, depths = RESNETS[resnet]
        norm = InvertibleNorm if self.invertible_norms else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, self.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(self.width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        stages, channels = [], self.width
        for index, depth in enumerate(depths):
            planes = self.width * 2**index
            stride, dilation = STAGES[self.output_stride][index]
            blocks = [block(channels, planes, stride=stride, dilation=dilation, norm=norm)]
            channels = planes * block.expansion
            blocks += [block(channels, planes, stride=1, dilation=dilation, norm=norm) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        initialise_convolutions(self)
        if oracle:
            self.head_name = "layer5"
            self.layer5 = Head(channels, self.num_classes, branches=self.branches)
        else:
            self.head_name = "layer6"
            self.layer5 = Head(channels // 2, self.num_classes, branches=self.branches).requires_grad_(False)
            self.layer6 = Head(channels, self.num_classes, branches=self.branches)
        self._finish(channels)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> layer4's features (B, D, h, w), h about H / output_stride."""
        x = self.maxpool(activated(self.bn1, self.conv1(images)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def blocks(self) -> list[nn.Module]:
        """The residual blocks."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming normal (fan out) for every convolution, bias zero.

    The released scripts drew N(0, 0.01) everywhere and then loaded pretrained weights over it. A backbone
    that really starts from random weights needs its signal kept, so ours departs. Heads keep N(0, 0.01).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within the scope batch norms leave their running statistics and counters alone.

    In train mode they still normalise with the statistics of the batch, in eval mode with the running ones.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        # A batch norm that has buffers but does not track uses them in eval mode only.
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# Historical spellings of --model, in lower case.
ALIASES = {
    "deeplab": "resnet101",
    "deeplabmulti": "resnet101",
    "deeplabv2": "resnet101",
    "deeplabvgg": "vgg16",
    "vgg": "vgg16",
    "oracle": "oracle_resnet101",
}
NETWORKS = (*RESNETS, "vgg16", "oracle_resnet101")


def canonical_name(name: str) -> str:
    """The network's own name for any accepted spelling; `timm:<name>` passes unchecked."""
    lower = name.lower()
    if lower.startswith("timm:"):
        return "timm:" + name[len("timm:") :]
    known = ALIASES.get(lower, lower)
    if known in NETWORKS:
        return known
    near = difflib.get_close_matches(lower, [*NETWORKS, *ALIASES], n=1)
    hint = f"did you mean '{near[0]}'? Known" if near else "known"
    raise NetworkError(f"unknown network '{name}': {hint}: {', '.join(NETWORKS)}, timm:<name>")


def build_network(
    name: str,
    *,
    num_classes: int = 19,
    branches: int = 2,
    width: int = 64,
    output_stride: int = 8,
    train_norm_affine: bool = False,
    invertible_norms: bool = False,
    feature_strides: Sequence[int] = (),
) -> SegmentationNetwork:
    """A network with random initial weights.

    `name`: resnet18/34/50/101, vgg16, oracle_resnet101, `timm:<name>` or a historical alias. `branches`: how
    many of the head's four branches are summed, 2 (as released) or 4; of timm networks also 0, a 1x1 convolution in
    their place. `width`: channels of the stem, all others in proportion (64 is the published network).
    `output_stride`: 8 or 16 (vgg16: 8). `invertible_norms`: norms before an activation that inplace-abn can compute
    (model/norms.py), of the ResNets. `feature_strides`: strides of the timm backbone's maps that become the features
    together (`Hypercolumn`), the finest first, which is the `output_stride`; empty: the last map alone, dilated.
    Raises NetworkError on a setting that cannot be built.
    """
    name = canonical_name(name)
    _check_settings(name, num_classes, branches, width, output_stride, feature_strides)
    if invertible_norms and name.removeprefix("oracle_") not in RESNETS:
        raise NetworkError(f"network {name}: only the ResNets have norms that inplace-abn can replace, set it to false")
    settings = {
        "num_classes": num_classes,
        "branches": branches,
        "width": width,
        "output_stride": output_stride,
        "train_norm_affine": train_norm_affine,
        "invertible_norms": invertible_norms,
        "feature_strides": feature_strides,
    }
    # Imported here because both modules build on this one, and because timm takes seconds to import.
    if name == "vgg16":
        from model.vgg import VGG16

        return VGG16(name=name, **settings)
    if name.startswith("timm:"):
        from model.timm_backbone import TimmNetwork

        return TimmNetwork(name=name, **settings)
    oracle = name.startswith("oracle_")
    return DeepLab(name=name, resnet=name.removeprefix("oracle_"), oracle=oracle, **settings)


def _check_settings(
    name: str, num_classes: int, branches: int, width: int, output_stride: int, feature_strides: Sequence[int]
) -> None:
    timm = name.startswith("timm:")
    strides = (8,) if name == "vgg16" else tuple(feature_strides[:1]) or tuple(STAGES)
    finest = ", the first of feature_strides" if feature_strides else ""
    finest_first = list(feature_strides) == sorted(set(feature_strides))
    checks = (
        (num_classes >= 1, f"num_classes must be at least 1, not {num_classes}"),
        (
            branches in (2, 4) or (timm and branches == 0),
            f"branches must be 2 (as released) or 4, or with a timm network 0, not {branches}",
        ),
        (width >= 1, f"width must be at least 1, not {width}"),
        (width == 64 or not timm, f"a timm model has its own width, leave out {width}"),
        (timm or not feature_strides, "only timm networks have feature_strides, leave them out"),
        (finest_first, f"feature_strides must be ascending, not {list(feature_strides)}"),
        (output_stride in strides, f"output_stride must be one of {strides}{finest}, not {output_stride}"),
    )
    for good, message in checks:
        if not good:
            raise NetworkError(f"network {name}: {message}")


def input_statistics(name: str) -> dict[str, Any]:
    """Channel `order`, `mean` and `std` (in 0..255) of the images that network `name` expects (spec 1)."""
    name = canonical_name(name)
    if name.startswith("timm:"):
        from model.timm_backbone import timm_statistics

        return timm_statistics(name)
    return {"order": "BGR", "mean": (104.00698793, 116.66876762, 122.67891434), "std": (1.0, 1.0, 1.0)}
