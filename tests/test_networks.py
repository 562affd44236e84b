"""What the networks promise beside the golden numbers: shapes, what trains, statistics, settings, other backbones."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.activations import checkpoint_blocks, use_inplace_norms
from model.deeplab import Head, NetworkError, build_network, frozen_statistics, input_statistics
from model.discriminator import Discriminator
from model.norms import InvertibleNorm
from model.weights import initial_weights, write_weights

TINY = [
    {"name": "resnet18", "width": 8},
    {"name": "resnet50", "width": 8, "branches": 4, "num_classes": 5},
    {"name": "resnet34", "width": 8, "output_stride": 16, "train_norm_affine": True},
    {"name": "vgg16", "width": 4, "num_classes": 3},
    {"name": "oracle_resnet101", "width": 4, "branches": 4},
    {"name": "timm:mobilenetv3_small_050", "output_stride": 16},
    {"name": "timm:mobilenetv3_small_050", "branches": 0, "output_stride": 4, "feature_strides": (4, 8, 32)},
]
tiny_networks = pytest.mark.parametrize(
    "settings", TINY, ids=lambda settings: settings["name"] + "+" * ("feature_strides" in settings)
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(height: int = 65, width: int = 97, batch: int = 2) -> torch.Tensor:
    return 50 * torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "grid", "patches"),
    [(720, 1280, (91, 161), (22, 40)), (512, 1024, (65, 129), (16, 32))],
)
def test_published_sizes(height, width, grid, patches):
    with torch.device("meta"):
        output = build_network("resnet101")(torch.empty(1, 3, height, width))
        scores = Discriminator(19)(torch.empty(1, 19, height, width))
    assert output.features.shape == (1, 2048, *grid)
    assert output.logits.shape == (1, 19, *grid)
    assert scores.shape == (1, 1, *patches)


@tiny_networks
def test_output_fits_the_settings(settings):
    network = build_network(**settings)
    features, logits = network(images())
    assert features.shape[:2] == (2, network.feature_dim)
    assert logits.shape == (2, settings.get("num_classes", 19), *features.shape[2:])
    stride = settings.get("output_stride", 8)
    assert abs(features.shape[2] - 65 / stride) <= 1
    assert abs(features.shape[3] - 97 / stride) <= 1


@given(height=st.integers(16, 70), width=st.integers(16, 70))
@settings(max_examples=20, deadline=None)
def test_grid_of_any_image_size_is_an_eighth_and_one(height, width):
    with torch.device("meta"):
        features = build_network("resnet18", width=8)(torch.empty(1, 3, height, width)).features

    def grid(size: int) -> int:
        stem = (size + 1) // 2  # 7x7, stride 2, padding 3
        pooled = -(-(stem - 1) // 2) + 1  # 3x3, stride 2, padding 1, ceil mode
        return (pooled + 1) // 2

    assert features.shape[2:] == (grid(height), grid(width))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_backbone_has_torchvisions_names_and_shapes(name):
    """So that ImageNet files fit without a mapping."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = build_network(name).state_dict()
    backbone = {key: value.shape for key, value in ours.items() if not key.startswith(("layer5.", "layer6."))}
    assert backbone == {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(8, (1, 2, 1, 1), (1, 1, 2, 4)), (16, (1, 2, 2, 1), (1, 1, 1, 2))],
)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stride_sits_on_a_blocks_first_convolution_and_dilation_on_its_3x3(name, output_stride, strides, dilations):
    network = build_network(name, width=4, output_stride=output_stride)
    for stage, stride, dilation in zip((1, 2, 3, 4), strides, dilations, strict=True):
        for index, block in enumerate(network.get_submodule(f"layer{stage}").children()):
            convs = [module for module in block.children() if isinstance(module, nn.Conv2d)]
            assert [conv.stride[0] for conv in convs] == [stride if index == 0 else 1] + [1] * (len(convs) - 1)
            assert all(conv.dilation[0] == dilation for conv in convs if conv.kernel_size == (3, 3))


# -- head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branches", [2, 4])
def test_head_sums_its_first_branches(branches):
    head = Head(6, 5, branches=branches)
    features = torch.randn(2, 6, 9, 40)
    state = head.state_dict()
    expected = torch.zeros(2, 5, 9, 40)
    for index, dilation in zip(range(branches), (6, 12, 18, 24), strict=False):
        weight, bias = (state[f"conv2d_list.{index}.{part}"] for part in ("weight", "bias"))
        expected += F.conv2d(features, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(head(features), expected)


@tiny_networks
def test_classify_is_the_head_on_a_1x1_map(settings):
    network = build_network(**settings)
    for parameter in network.head.parameters():
        nn.init.normal_(parameter)
    vectors = torch.randn(7, network.feature_dim)
    expected = network.head(vectors[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(network.classify(vectors), expected, rtol=1e-4, atol=1e-4)
    assert network.classify(vectors[:0]).shape == (0, network.num_classes)


# -- initial weights and what trains ---------------------------------------------------------------


def test_initial_weights():
    network = build_network("resnet50")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and "conv2d_list" in name:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@tiny_networks
def test_each_trainable_parameter_is_in_one_group_and_gets_a_gradient(settings):
    network = build_network(**settings).train()
    backbone, head = network.parameter_groups()
    ids = [id(parameter) for parameter in (*backbone, *head)]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in network.parameters() if p.requires_grad}
    new = [parameter for part in network.new_parts() for parameter in network.get_submodule(part).parameters()]
    assert {id(p) for p in network.head.parameters()} <= {id(p) for p in new}
    assert {id(p) for p in head} == {id(p) for p in new if p.requires_grad}
    assert len(head) == 2 * (settings.get("branches", 2) or 1) + 2 * ("feature_strides" in settings)
    network(images()).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in (*backbone, *head))


@tiny_networks
def test_norm_layers_train_only_when_asked(settings):
    for trains in (False, True):
        network = build_network(**{**settings, "train_norm_affine": trains})
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert all(p.requires_grad is trains for norm in norms for p in norm.parameters())
        assert norms or settings["name"] == "vgg16"


def test_layer5_never_trains():
    network = build_network("resnet18", width=4, train_norm_affine=True)
    assert not any(parameter.requires_grad for parameter in network.get_submodule("layer5").parameters())


# -- statistics ------------------------------------------------------------------------------------


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize("name", ["resnet18", "timm:mobilenetv3_small_050"])
def test_frozen_statistics_leaves_them_alone_and_changes_no_output(name):
    network = build_network(name, width=64 if name.startswith("timm") else 8).train()
    network(images())
    before = buffers(network)
    with frozen_statistics(network), frozen_statistics(network):
        inside = network(images()).logits
    torch.testing.assert_close(buffers(network), before, rtol=0, atol=0)
    outside = network(images()).logits
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    moved = [name for name, value in buffers(network).items() if not torch.equal(value, before[name])]
    assert any(name.endswith("running_mean") for name in moved)
    assert any(name.endswith("num_batches_tracked") for name in moved)


def test_frozen_statistics_are_still_used_in_eval_mode():
    network = build_network("resnet18", width=8).train()
    network(images())
    network.eval()
    outside = network(images()).logits
    with frozen_statistics(network):
        inside = network(images()).logits
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_frozen_statistics_ends_with_an_error():
    network = build_network("resnet18", width=4).train()

    def fail_inside() -> None:
        with frozen_statistics(network):
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    before = buffers(network)
    network(images())
    assert any(not torch.equal(value, before[name]) for name, value in buffers(network).items())


@tiny_networks
def test_kept_statistics_normalise_in_training_too_and_stay(settings):
    network = build_network(**settings).train()
    network(images())  # statistics to keep, which differ from those of the next images
    network.keeps_statistics = True
    expected = network.eval()(images(batch=1)).logits
    before = buffers(network)
    found = nn.Sequential(network).train()[0](images(batch=1)).logits  # whoever calls train()
    assert network.training
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(buffers(network), before, rtol=0, atol=0)


@tiny_networks
def test_a_frozen_backbone_gets_no_gradient_and_all_that_is_new_does(settings):
    network = build_network(**settings).train()
    _, new = network.parameter_groups()
    network.freeze_backbone()
    backbone, head = network.parameter_groups()
    assert (backbone, [id(p) for p in head]) == ([], [id(p) for p in new])
    network(images()).logits.square().sum().backward()
    assert {id(p) for p in network.parameters() if p.grad is not None} == {id(p) for p in new}


# -- settings --------------------------------------------------------------------------------------


@tiny_networks
def test_architecture_rebuilds_the_network(settings):
    network = build_network(**settings)
    again = build_network(**network.architecture())
    assert again.architecture() == network.architecture()
    again.load_state_dict(network.state_dict(), strict=True)
    network.eval()
    again.eval()
    torch.testing.assert_close(again(images()), network(images()), rtol=0, atol=0)
    trains = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trains == [name for name, p in again.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("DeepLab", "resnet101"),
        ("DeeplabMulti", "resnet101"),
        ("DeepLabV2", "resnet101"),
        ("DeeplabVGG", "vgg16"),
        ("VGG", "vgg16"),
        ("Oracle", "oracle_resnet101"),
        ("ResNet18", "resnet18"),
    ],
)
def test_historical_names(alias, name):
    with torch.device("meta"):
        assert build_network(alias).name == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet102"}, "did you mean 'resnet10?1'"),
        ({"name": "resnet18", "branches": 3}, "branches must be 2 .* not 3"),
        ({"name": "resnet18", "branches": 0}, "branches must be 2 .* not 0"),
        ({"name": "resnet18", "feature_strides": (8, 16)}, "only timm networks have feature_strides"),
        ({"name": "timm:resnet18", "feature_strides": (16, 8)}, "must be ascending, not .16, 8."),
        (
            {"name": "timm:resnet18", "feature_strides": (4, 8)},
            "output_stride must be one of .4,., the first of feature_strides, not 8",
        ),
        ({"name": "timm:swin_tiny_patch4_window7_224", "feature_strides": (8, 16)}, "cannot take images of any size"),
        ({"name": "timm:inception_v3", "feature_strides": (8, 16)}, "do not lie over each other"),
        ({"name": "timm:resnet18", "feature_strides": (8, 64)}, "no features of stride 64, only of 2, 4, 8, 16, 32"),
        ({"name": "resnet18", "output_stride": 4}, "output_stride must be one of .* not 4"),
        ({"name": "vgg16", "output_stride": 16}, "output_stride"),
        ({"name": "resnet18", "width": 0}, "width"),
        ({"name": "resnet18", "num_classes": 0}, "num_classes"),
        ({"name": "timm:resnet18", "width": 24}, "own width"),
        ({"name": "timm:efficientnet_lite00"}, "no model 'efficientnet_lite00': did you mean .*efficientnet_lite0"),
        ({"name": "timm:vit_tiny_patch16_224"}, "cannot be a feature backbone at output stride 8"),
        ({"name": "timm:vgg11"}, "cannot be a feature backbone at output stride 8"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(settings, message):
    with pytest.raises(NetworkError, match=message) as refusal:
        build_network(**settings)
    assert "\n" not in str(refusal.value)


def test_input_statistics():
    assert input_statistics("DeepLab") == {
        "order": "BGR",
        "mean": (104.00698793, 116.66876762, 122.67891434),
        "std": (1.0, 1.0, 1.0),
    }
    found = input_statistics("timm:tf_efficientnet_lite0")
    assert found == {"order": "RGB", "mean": (127.5,) * 3, "std": (127.5,) * 3}
    assert input_statistics("timm:resnet18")["mean"] == pytest.approx((123.675, 116.28, 103.53))
    with pytest.raises(NetworkError, match="unknown network"):
        input_statistics("alexnet")


def test_channels_last_changes_nothing_but_speed():
    network = build_network("resnet50", width=8).eval()
    expected = network(images()).logits
    network = network.to(memory_format=torch.channels_last)
    found = network(images().contiguous(memory_format=torch.channels_last))
    assert found.features.is_contiguous(memory_format=torch.channels_last)
    assert (found.logits - expected).abs().max() <= 1e-4 * expected.abs().max()


# -- timm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16])
def test_timm_backbone_computes_timms_own_last_feature_map(output_stride):
    network = build_network("timm:tf_efficientnet_lite0", output_stride=output_stride).eval()
    model: Any = timm.create_model("tf_efficientnet_lite0", output_stride=output_stride).eval()
    model.load_state_dict(network.get_submodule("backbone").state_dict(), strict=False)
    features = network(images(64, 96)).features
    assert features.shape == (2, 320, 64 // output_stride, 96 // output_stride)
    expected = model.blocks(model.bn1(model.conv_stem(images(64, 96))))
    torch.testing.assert_close(features, expected)


def test_hypercolumn_is_the_maps_of_the_undilated_backbone_joined_at_the_finest_grid():
    network = build_network("timm:tf_efficientnet_lite0", feature_strides=(8, 32), branches=0).eval()
    reduce = network.get_submodule("fuse.reduce")
    model: Any = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 4)).eval()
    model.load_state_dict(network.get_submodule("backbone").state_dict())
    fine, coarse = model(images(64, 96))
    coarse = F.interpolate(coarse, (8, 12), mode="bilinear")
    joined = torch.cat([fine, coarse], 1).movedim(1, -1)
    expected = (
        F.linear(joined, reduce.get_parameter("weight")[:, :, 0, 0], reduce.get_parameter("bias")).relu().movedim(-1, 1)
    )
    output = network(images(64, 96))
    torch.testing.assert_close(output.features, expected, rtol=1e-4, atol=1e-4)
    [head] = network.head.conv2d_list
    assert isinstance(head, nn.Conv2d)
    assert head.kernel_size == (1, 1)
    torch.testing.assert_close(output.logits, head(output.features))


def test_strides_are_those_asked_for_whatever_a_model_calls_its_stages():
    """This one numbers them from 1."""
    network = build_network("timm:dla46_c", branches=0, feature_strides=(8, 16))
    assert network.get_submodule("backbone").feature_info.reduction() == [8, 16]  # type: ignore[operator,union-attr]
    assert network(images(64, 96)).features.shape == (2, 128, 8, 12)


# -- discriminator ---------------------------------------------------------------------------------


def test_discriminator_is_five_convolutions_with_leaky_relus():
    discriminator = Discriminator(4)
    state = discriminator.state_dict()
    x = torch.randn(2, 4, 64, 100).softmax(1)
    expected = x
    for name in ("conv1", "conv2", "conv3", "conv4", "classifier"):
        if name != "conv1":
            expected = torch.where(expected > 0, expected, 0.2 * expected)
        expected = F.conv2d(expected, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
    torch.testing.assert_close(discriminator(x), expected)
    assert discriminator.architecture() == {"name": "discriminator", "num_classes": 4, "width": 64}


# -- memory ----------------------------------------------------------------------------------------


Passed = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def passed(network: nn.Module) -> Passed:
    """Loss, gradients and buffers after two updates' passes, the second of which leaves the statistics alone."""
    torch.manual_seed(0)
    loss = network(images()).logits.square().mean()
    loss.backward()
    with frozen_statistics(network):
        still = network(images(33, 41)).logits.square().mean()
    still.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return torch.stack([loss.detach(), still.detach()]), gradients, buffers(network)


RECOMPUTED = (TINY[0], TINY[1], TINY[-1], {"name": "timm:regnetx_002"})  # of each kind of block one


@pytest.mark.parametrize("settings", RECOMPUTED, ids=lambda settings: settings["name"])
def test_checkpointing_changes_no_bit_and_moves_statistics_once(settings):
    plain, recomputed = build_network(**settings).train(), build_network(**settings).train()
    recomputed.load_state_dict(plain.state_dict())
    checkpoint_blocks(recomputed)
    inside: list[nn.Module] = []
    for block in recomputed.blocks():
        first = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda module, *_: inside.append(module))
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(passed(recomputed), passed(plain), rtol=0, atol=0)
    assert len(inside) == 4 * len(recomputed.blocks()), "two passes, each computed again"
    with torch.no_grad():
        torch.testing.assert_close(recomputed.eval()(images()), plain.eval()(images()), rtol=0, atol=0)


def test_checkpointing_needs_blocks():
    with pytest.raises(NetworkError, match="vgg16 has no blocks to checkpoint"):
        checkpoint_blocks(build_network("vgg16", width=4))


def inplace_package(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A stand-in for the package inplace-abn, by its documentation; returns what its function was called on."""
    called: list[torch.Tensor] = []

    def inplace_abn(
        x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-05,
        activation="leaky_relu", activation_param=0.01,
    ):  # fmt: skip
        assert activation == "leaky_relu"
        called.append(x)
        y = F.batch_norm(x, running_mean, running_var, weight.abs() + eps, bias, training, momentum, eps)
        return F.leaky_relu(y, activation_param)

    package, functions = ModuleType("inplace_abn"), ModuleType("inplace_abn.functions")
    functions.inplace_abn = inplace_abn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inplace_abn", package)
    monkeypatch.setitem(sys.modules, "inplace_abn.functions", functions)
    return called


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_package_takes_the_norms_before_activations_and_keeps_the_names(monkeypatch, name):
    called = inplace_package(monkeypatch)
    plain = build_network(name, width=4)
    network = build_network(name, width=4, invertible_norms=True).train()
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.load_state_dict(plain.state_dict())
    without = build_network(**network.architecture()).train()  # the same function where the package is not installed
    without.load_state_dict(network.state_dict())
    use_inplace_norms(network)

    norms = [module for module in network.modules() if isinstance(module, InvertibleNorm)]
    convolutions_per_block = 1 if name == "resnet18" else 2
    assert len(norms) == 1 + convolutions_per_block * len(network.blocks())
    torch.testing.assert_close(passed(network), passed(without))
    assert len(called) == 2 * len(norms)
    network.eval(), without.eval()
    torch.testing.assert_close(network(images()), without(images()))
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


def test_an_invertible_norm_is_a_norm_and_a_leaky_relu():
    norm = InvertibleNorm(3).train()
    nn.init.constant_(norm.weight, -2.0)  # its scale is the weight's magnitude
    x = torch.randn(4, 3, 5, 6)
    expected = F.leaky_relu(2 * F.batch_norm(x, None, None, training=True), 0.01)
    torch.testing.assert_close(norm(x.clone()), expected, rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 1
    assert norm.running_mean is not None
    assert norm.running_mean.any()


def test_inplace_norms_without_the_package_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "inplace_abn", None)
    network = build_network("resnet18", width=4, invertible_norms=True)
    with pytest.raises(NetworkError, match=r"needs the package inplace-abn .* requirements-cuda.txt") as refusal:
        use_inplace_norms(network)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["vgg16", "timm:resnet18"])
def test_only_resnets_have_norms_to_replace(name):
    with pytest.raises(NetworkError, match="only the ResNets"):
        build_network(name, invertible_norms=True)


@pytest.mark.parametrize("invertible", [True, False])
def test_a_start_from_the_other_kind_of_norm_is_said(tmp_path, invertible):
    other = build_network("resnet18", width=4, invertible_norms=not invertible)
    write_weights(tmp_path / "w.pth", other.state_dict(), {"architecture": other.architecture()})
    for network, said in ((build_network("resnet18", width=4, invertible_norms=invertible), True), (other, False)):
        lines = initial_weights(network, str(tmp_path / "w.pth")).lines
        assert any("invertible norms" in line for line in lines) == said
