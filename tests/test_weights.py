"""Weights files of every family round-trip, bad ones are refused in one line, and no pickled code ever runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

import model.timm_backbone
import model.weights
from model.deeplab import DeepLab, SegmentationNetwork, build_network
from model.discriminator import Discriminator
from model.weights import (
    Weights,
    WeightsError,
    infer_architecture,
    initial_weights,
    load_network,
    read_state,
    read_weights,
    write_weights,
)

State = dict[str, Tensor]
RESNET101: dict[str, Any] = {
    "name": "resnet101",
    "width": 4,
}  # the released depth, hence names, at a hundredth of the size


@pytest.fixture(scope="module")
def released() -> State:
    """A state dict in the released layout with every tensor random, running statistics included."""
    torch.manual_seed(5)
    return randomised(build_network(**RESNET101).state_dict())


def randomised(state: Mapping[str, Tensor]) -> State:
    return {
        name: value.clone() + 3 if not value.is_floating_point() else torch.rand_like(value) + 0.5
        for name, value in state.items()
    }


def save(path: Path, content: Any, **options: Any) -> Weights:
    torch.save(content, path, **options)
    return read_weights(path)


def assert_holds(network: SegmentationNetwork | Discriminator, state: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    for name, value in state.items():
        assert own[name].dtype == (torch.float32 if value.is_floating_point() else torch.int64), name
        assert torch.equal(own[name], value.to(own[name].dtype)), name


def without(state: Mapping[str, Tensor], *parts: str) -> State:
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


def classes(state: Mapping[str, Tensor], head: str, count: int) -> State:
    """The state with another number of classes in `head`."""
    return {
        name: torch.rand(count, *value.shape[1:]) if name.startswith(head + ".") else value
        for name, value in state.items()
    }


# -- released layouts ------------------------------------------------------------------------------


def test_released_snapshot_loads_whole(tmp_path, released):
    assert len(released) == 640
    assert sum(name.endswith("num_batches_tracked") for name in released) == 104
    weights = save(tmp_path / "GTA5_5000.pth", released)
    assert weights.layout == "deeplab-v2"
    assert infer_architecture(weights) == {"name": "resnet101", "width": 4, "num_classes": 19}
    network = build_network(**infer_architecture(weights))
    report = load_network(network, weights)
    assert_holds(network, released)
    assert "640" in report.lines[1]


@pytest.mark.parametrize("prefix", ["module.", "Scale.", "module.Scale.", "_orig_mod.module."])
def test_prefixes_come_off(tmp_path, released, prefix):
    weights = save(tmp_path / "w.pth", {prefix + name: value for name, value in released.items()})
    network = build_network(**RESNET101)
    report = load_network(network, weights)
    assert_holds(network, released)
    assert f"prefix '{prefix.split('.')[0]}.' taken off" in report.lines[0]


def test_a_prefix_that_some_names_lack_stays(tmp_path, released):
    mixed = {("module." + name if "layer4" in name else name): value for name, value in released.items()}
    with pytest.raises(WeightsError, match=r"does not fit.*\n.*missing.*\n.*layer4\.0\.conv1\.weight"):
        load_network(build_network(**RESNET101), save(tmp_path / "w.pth", mixed))


def test_half_precision_is_cast(tmp_path, released):
    half = {name: value.half() if value.dim() == 4 else value for name, value in released.items()}
    weights = save(tmp_path / "o2.pth", half)
    network = build_network(**RESNET101)
    report = load_network(network, weights)
    assert_holds(network, half)
    assert "112 half-precision tensors cast to float32" in report.lines[0]


def test_old_files_without_batch_counters_load(tmp_path, released):
    old = without(released, "num_batches_tracked")
    assert len(old) == 536
    network = build_network(**RESNET101)
    load_network(network, save(tmp_path / "old.pth", old, _use_new_zipfile_serialization=False))
    assert_holds(network, old)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_state_dicts_are_opened(tmp_path, released, key):
    weights = save(tmp_path / "w.pth", {"epoch": 3, key: released})
    assert weights.state.keys() == released.keys()


def test_safetensors_are_known_by_content_and_by_suffix(tmp_path, released):
    for name in ("w.safetensors", "w.pth"):
        save_file(released, tmp_path / name)
        state = read_state(tmp_path / name)
        assert state.keys() == released.keys()
        assert all(torch.equal(state[key], value) for key, value in released.items())


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"name": "resnet18", "width": 8, "num_classes": 5}, "deeplab-v2"),
        ({"name": "resnet34", "width": 4, "num_classes": 2}, "deeplab-v2"),
        ({"name": "resnet50", "width": 4, "num_classes": 19}, "deeplab-v2"),
        ({"name": "oracle_resnet101", "width": 4, "num_classes": 7}, "oracle"),
        ({"name": "vgg16", "width": 4, "num_classes": 16}, "vgg16"),
    ],
)
def test_architecture_is_read_off_the_tensors(tmp_path, settings, layout):
    network = build_network(**settings)
    weights = save(tmp_path / "w.pth", network.state_dict())
    assert weights.layout == layout
    assert infer_architecture(weights) == settings
    again = build_network(**infer_architecture(weights))
    load_network(again, weights)
    assert_holds(again, network.state_dict())


def test_discriminator_twin(tmp_path):
    discriminator = Discriminator(7)
    weights = save(tmp_path / "GTA5_5000_D.pth", discriminator.state_dict())
    assert weights.layout == "discriminator"
    assert infer_architecture(weights) == {"name": "discriminator", "num_classes": 7, "width": 64}
    again = Discriminator(7)
    load_network(again, weights)
    assert_holds(again, discriminator.state_dict())
    with pytest.raises(WeightsError, match=r"a discriminator \(7 classes\), the network a discriminator \(19 "):
        load_network(Discriminator(19), weights)


def test_unknown_layout_asks_for_the_network(tmp_path):
    weights = save(tmp_path / "w.pth", {"encoder.weight": torch.zeros(3), "decoder.bias": torch.zeros(1)})
    assert weights.layout == "unknown"
    with pytest.raises(WeightsError, match=r"2 tensors belong to \(decoder, encoder\): name the network"):
        infer_architecture(weights)


def test_resnet_of_unknown_depth_is_not_guessed(tmp_path):
    state = without(build_network("resnet18", width=4).state_dict(), "layer1.1")
    with pytest.raises(WeightsError, match="cannot tell which network"):
        infer_architecture(save(tmp_path / "w.pth", state))


# -- strictness ------------------------------------------------------------------------------------


def test_another_network_is_named_and_the_diff_is_short(tmp_path):
    weights = save(tmp_path / "vgg.pth", build_network("vgg16", width=4).state_dict())
    network = build_network(**RESNET101)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as refusal:
        load_network(network, weights)
    summary, *diff = str(refusal.value).splitlines()
    assert "vgg.pth does not fit" in summary
    assert "the file is a vgg16 (19 classes, width 4), the network a resnet101 (19 classes, width 4)" in summary
    assert "536 missing in the file, 38 unknown to the network" in summary
    assert diff[0].strip() == "missing in the file:"
    assert diff[1].strip() == "conv1.weight"
    assert diff[7].strip() == "... and 530 more"
    assert len(diff) == 16
    assert_holds(network, before)


@pytest.mark.parametrize("part", ["layer5", "layer3.22", "bn1.running_mean", "layer6.conv2d_list.3.bias"])
def test_full_load_refuses_a_missing_tensor(tmp_path, released, part):
    with pytest.raises(WeightsError, match="missing in the file"):
        load_network(build_network(**RESNET101), save(tmp_path / "w.pth", without(released, part)))


def test_full_load_refuses_another_class_count_and_a_surplus_tensor(tmp_path, released):
    network = build_network(**RESNET101)
    with pytest.raises(WeightsError, match=r"16 classes, width 4\), the network a resnet101 \(19 classes"):
        load_network(network, save(tmp_path / "a.pth", classes(released, "layer6", 16)))
    with pytest.raises(WeightsError, match=r"1 unknown to the network\n.*\n +layer7\.weight"):
        load_network(network, save(tmp_path / "b.pth", {**released, "layer7.weight": torch.zeros(1)}))


# -- initial weights -------------------------------------------------------------------------------


def test_released_init_file_gives_the_backbone(tmp_path, released):
    """`Scale.` names, a layer5 of 21 classes on layer4's channels, no layer6, no batch counters."""
    backbone = without(released, "layer5", "layer6", "num_batches_tracked")
    oracle = without(build_network("oracle_resnet101", width=4, num_classes=21).state_dict(), "num_batches")
    head = {name: value for name, value in oracle.items() if name.startswith("layer5")}
    weights = save(tmp_path / "i.pth", {"Scale." + name: value for name, value in (backbone | head).items()})
    assert weights.layout == "deeplab-init"
    assert infer_architecture(weights) == {"name": "resnet101", "width": 4}
    network = build_network(**RESNET101)
    heads = {name: v.clone() for name, v in network.state_dict().items() if "conv2d_list" in name}
    report = load_network(network, weights, purpose="initial")
    assert_holds(network, backbone | heads)
    assert any("layer5 not loaded: 21 classes in the file, 19 in the network" in line for line in report.lines)
    assert any("layer6 not loaded: the file has none" in line for line in report.lines)


def backbone_for_bgr(theirs):
    """What a network that reads BGR in 0..255 should hold of torchvision's tensors."""
    stem = theirs["conv1.weight"]
    deviation = 255 * torch.tensor([0.229, 0.224, 0.225])
    channels = [stem[:, rgb] / deviation[rgb] for rgb in (2, 1, 0)]
    return without(theirs, "fc.") | {"conv1.weight": torch.stack(channels, dim=1)}


def test_torchvision_stem_responds_as_it_was_trained(tmp_path):
    theirs = randomised(torchvision.models.resnet18().state_dict())
    save(tmp_path / "imagenet.pth", theirs)
    network = build_network("resnet18")
    report = initial_weights(network, str(tmp_path / "imagenet.pth"))
    assert any("BGR" in line for line in report.lines)
    assert isinstance(network, DeepLab)
    rgb = torch.rand(2, 3, 32, 32) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.conv2d((rgb / 255 - mean[:, None, None]) / std[:, None, None], theirs["conv1.weight"])
    ours = torch.conv2d((rgb - 255 * mean[:, None, None]).flip(1), network.conv1.weight)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_layout_gives_the_backbone(tmp_path, name):
    theirs = randomised(getattr(torchvision.models, name)().state_dict())
    weights = save(tmp_path / "imagenet.pth", theirs)
    assert weights.layout == "imagenet-resnet"
    assert infer_architecture(weights) == {"name": name, "width": 64}
    network = build_network(name, num_classes=3)
    report = initial_weights(network, str(tmp_path / "imagenet.pth"))
    assert_holds(network, backbone_for_bgr(theirs))
    assert "fc of the file skipped: the network has none" in report.lines
    with pytest.raises(WeightsError, match="does not fit"):
        load_network(network, weights)


def test_full_checkpoint_as_initial_weights_brings_its_heads(tmp_path, released):
    network = build_network(**RESNET101)
    report = load_network(network, save(tmp_path / "w.pth", released), purpose="initial")
    assert_holds(network, released)
    assert len(report.lines) == 2


def test_full_checkpoint_of_other_classes_leaves_the_heads(tmp_path, released):
    network = build_network(**RESNET101, num_classes=16)
    heads = {name: v.clone() for name, v in network.state_dict().items() if "conv2d_list" in name}
    report = load_network(network, save(tmp_path / "w.pth", released), purpose="initial")
    assert_holds(network, without(released, "conv2d_list") | heads)
    assert sum("19 classes in the file, 16 in the network" in line for line in report.lines) == 2


def test_layer5_of_21_classes_does_not_keep_layer6_out(tmp_path, released):
    network = build_network(**RESNET101)
    weights = save(tmp_path / "w.pth", classes(released, "layer5", 21))
    load_network(network, weights, purpose="initial")
    assert_holds(network, without(released, "layer5"))
    with pytest.raises(WeightsError, match="8 of another shape"):
        load_network(network, weights)


@pytest.mark.parametrize("part", ["layer2.0.downsample", "bn1.running_var"])
def test_initial_weights_must_supply_the_whole_backbone(tmp_path, released, part):
    with pytest.raises(WeightsError, match="missing in the file"):
        load_network(build_network(**RESNET101), save(tmp_path / "w.pth", without(released, part)), purpose="initial")


def test_initial_weights_refuse_what_is_no_head(tmp_path, released):
    weights = save(tmp_path / "w.pth", {**released, "layer7.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"layer7\.weight"):
        load_network(build_network(**RESNET101), weights, purpose="initial")


def test_random_choice_changes_nothing():
    network = build_network("resnet18", width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert "random" in initial_weights(network, "random").lines[0]
    assert_holds(network, before)


@pytest.fixture
def no_files(monkeypatch, tmp_path):
    """Nothing in pretrained/ or the caches, and no way to the network."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host\nbut a long story")

    monkeypatch.setattr(model.weights, "PRETRAINED", (tmp_path / "pretrained",))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    (tmp_path / "pretrained").mkdir()
    return tmp_path


def test_torchvision_weights_are_never_fetched_unasked(no_files):
    network = build_network("resnet18")
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth is neither in .*--download .*\(45 MB\)"):
        initial_weights(network, "torchvision")
    with pytest.raises(WeightsError, match=r"could not be fetched \(no route to host\)"):
        initial_weights(network, "torchvision", download=True)
    with pytest.raises(WeightsError, match="torchvision has no weights for a vgg16"):
        initial_weights(build_network("vgg16"), "torchvision")
    with pytest.raises(WeightsError, match="width 64"):
        initial_weights(build_network("resnet18", width=8), "torchvision")


@pytest.mark.parametrize("folder", ["pretrained", "hub/checkpoints"])
def test_torchvision_weights_on_disk_are_found(no_files, folder):
    theirs = randomised(torchvision.models.resnet18().state_dict())
    (no_files / folder).mkdir(parents=True, exist_ok=True)
    file = no_files / folder / "resnet18-f37072fd.pth"
    torch.save(theirs, file)
    network = build_network("resnet18")
    report = initial_weights(network, "torchvision")
    assert_holds(network, backbone_for_bgr(theirs))
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:12] in report.lines[0]
    assert str(file) in report.lines[0]


def test_torchvision_download_is_checked_by_its_hash(no_files, monkeypatch):
    theirs = randomised(torchvision.models.resnet18().state_dict())

    def fetch(url: str, path: str, hash_prefix: str) -> None:
        assert url.endswith(f"resnet18-{hash_prefix}.pth")
        torch.save(theirs, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    network = build_network("resnet18")
    initial_weights(network, "torchvision", download=True)
    assert_holds(network, backbone_for_bgr(theirs))


def test_a_missing_file_is_named():
    with pytest.raises(WeightsError, match=r"^nowhere/w\.pth: no such weights file"):
        initial_weights(build_network("resnet18", width=4), "nowhere/w.pth")


# -- timm ------------------------------------------------------------------------------------------

TIMM = ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "cspnext_s", "resnetv2_50"]


@pytest.mark.parametrize("name", TIMM)
def test_timm_classification_file_gives_the_whole_backbone(tmp_path, name):
    """Wrappers included: convnext's stages.0 is stages_0 in the backbone, cspnext's is model.stages.0."""
    import timm

    theirs = randomised(timm.create_model(name).state_dict())
    network = build_network("timm:" + name)
    report = load_network(network, save(tmp_path / "t.pth", theirs), purpose="initial")
    backbone = network.get_submodule("backbone").state_dict()
    backbone = {key.removeprefix("model."): value for key, value in backbone.items()}
    flat = {key.replace(".", "_"): value for key, value in theirs.items()}
    assert all(torch.equal(value, flat[key.replace(".", "_")]) for key, value in backbone.items())
    assert any("classifier of the file skipped: " in line for line in report.lines)


def test_timm_file_lacking_or_exceeding_the_backbone_is_refused(tmp_path):
    import timm

    theirs = timm.create_model("mobilenetv3_small_050").state_dict()
    network = build_network("timm:mobilenetv3_small_050")
    short = save(tmp_path / "short.pth", without(theirs, "blocks.3.0"))
    with pytest.raises(WeightsError, match=r"missing in the file\n.*\n +backbone\.blocks\.3\.0"):
        load_network(network, short, purpose="initial")
    long = save(tmp_path / "long.pth", {**theirs, "stranger.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 unknown to the network\n.*\n +stranger\.weight"):
        load_network(network, long, purpose="initial")
    other = save(tmp_path / "other.pth", timm.create_model("resnet18").state_dict())
    with pytest.raises(WeightsError, match="the network a timm:mobilenetv3_small_050"):
        load_network(network, other, purpose="initial")


def test_timm_network_of_ours_loads_again(tmp_path):
    network = build_network("timm:mobilenetv3_small_050", num_classes=4)
    write_weights(tmp_path / "best.pth", network.state_dict(), {"architecture": network.architecture()})
    weights = read_weights(tmp_path / "best.pth")
    assert weights.layout == "timm-network"
    again = build_network(**infer_architecture(weights))
    load_network(again, weights)
    assert_holds(again, network.state_dict())
    other = build_network("timm:mobilenetv3_small_050", num_classes=6)
    load_network(other, weights, purpose="initial")
    assert_holds(other, without(network.state_dict(), "layer6"))


def test_timm_weights_are_never_fetched_unasked(no_files):
    network = build_network("timm:mobilenetv3_small_050")
    with pytest.raises(WeightsError, match=r"neither in pretrained/ .*mobilenetv3_small_050.*--download"):
        initial_weights(network, "timm")
    with pytest.raises(WeightsError, match=r"could not be fetched \(no route to host\)"):
        initial_weights(network, "timm", download=True)
    with pytest.raises(WeightsError, match="not resnet18"):
        initial_weights(build_network("resnet18", width=4), "timm")


def test_timm_weights_on_disk_or_from_the_hub_are_found(no_files, monkeypatch):
    import timm

    network = build_network("timm:mobilenetv3_small_050")
    for value, place in ((0.25, "pretrained/mobilenetv3_small_050.safetensors"), (0.5, "model.safetensors")):
        state = {
            name: torch.full_like(v, value)
            for name, v in timm.create_model("mobilenetv3_small_050").state_dict().items()
        }
        save_file(state, no_files / place)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: str(no_files / "model.safetensors"))
        initial_weights(network, "timm", download=value == 0.5)
        assert network.get_parameter("backbone.conv_stem.weight").unique().tolist() == [value]
        (no_files / place).unlink()


def published_timm_file() -> Path:
    folder = os.environ.get("BAFFT_WEIGHTS", Path(__file__).resolve().parents[2] / "shared" / "weights")
    return Path(folder) / "tf_efficientnet_lite0.safetensors"


@pytest.mark.skipif(
    not published_timm_file().is_file(), reason="BAFFT_WEIGHTS has no tf_efficientnet_lite0.safetensors"
)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_published_timm_file(output_stride):
    network = build_network("timm:tf_efficientnet_lite0", output_stride=output_stride)
    report = initial_weights(network, str(published_timm_file()))
    theirs = read_state(published_timm_file())
    backbone = network.get_submodule("backbone").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in backbone.items())
    assert "classifier of the file skipped: bn2, classifier, conv_head" in report.lines
    assert "layer6 not loaded: the file has none; it starts from random weights" in report.lines


def test_hypercolumn_starts_at_random_and_comes_along_with_our_own_files(tmp_path):
    settings: dict[str, Any] = {
        "name": "timm:mobilenetv3_small_050",
        "feature_strides": [8, 16, 32],
        "branches": 0,
        "num_classes": 4,
    }
    network = build_network(**settings)
    write_weights(tmp_path / "own.pth", network.state_dict(), {"architecture": network.architecture()})
    plain = build_network(settings["name"]).get_submodule("backbone").state_dict()
    torch.save({name.replace("blocks_", "blocks."): value for name, value in plain.items()}, tmp_path / "timm.pth")

    started = build_network(**settings)
    report = initial_weights(started, str(tmp_path / "timm.pth"))
    assert "fuse not loaded: the file has none; it starts from random weights" in report.lines
    report = initial_weights(started, str(tmp_path / "own.pth"))
    assert not any("not loaded" in line for line in report.lines)
    again = build_network(**infer_architecture(read_weights(tmp_path / "own.pth")))
    load_network(again, read_weights(tmp_path / "own.pth"))
    plain_report = initial_weights(build_network(settings["name"], num_classes=4), str(tmp_path / "own.pth"))
    assert "fuse of the file skipped: the network has none" in plain_report.lines
    fewer = build_network(**{**settings, "feature_strides": [8, 16]})
    fewer_report = initial_weights(fewer, str(tmp_path / "own.pth"))
    assert "layer6 not loaded: it belongs to fuse; it starts from random weights" in fewer_report.lines
    with pytest.raises(WeightsError, match=r"feature_strides \[8, 16, 32\].*feature_strides \[8, 16\]"):
        load_network(fewer, read_weights(tmp_path / "own.pth"))
    for other in (started, again):
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())


# -- our own files ---------------------------------------------------------------------------------


def test_written_weights_are_the_released_format_and_carry_their_options(tmp_path):
    network = build_network("resnet18", width=4, num_classes=3, branches=4, output_stride=16)
    meta = {"architecture": network.architecture(), "classes": ["road", "car", "sky"], "iteration": 7}
    path = tmp_path / "run" / "GTA5_5000.pth"
    digest = write_weights(path, network.to(memory_format=torch.channels_last).state_dict(), meta)
    assert sorted(file.name for file in path.parent.iterdir()) == ["GTA5_5000.json", "GTA5_5000.pth"]
    plain = torch.load(path, weights_only=True)
    assert type(plain) is dict
    assert list(plain) == list(network.state_dict())
    assert all(value.is_contiguous() for value in plain.values())
    weights = read_weights(path)
    assert weights.architecture == network.architecture()
    assert weights.meta == {"classes": ["road", "car", "sky"], "iteration": 7}
    assert weights.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    again = build_network(**infer_architecture(weights))
    assert again.branches == 4
    load_network(again, weights)
    assert_holds(again, network.state_dict())
    with pytest.raises(WeightsError, match=r"trained with 4 branches .* sums 2: set branches = 4"):
        load_network(build_network("resnet18", width=4, num_classes=3), weights)
    report = load_network(build_network("resnet18", width=4, num_classes=3), weights, purpose="initial")
    assert "the file's head summed 4 branches, the network sums 2" in report.lines


def test_a_part_of_a_larger_storage_is_written_alone(tmp_path):
    write_weights(tmp_path / "w.pth", {"a": torch.zeros(1_000_000)[:2]}, {})
    assert (tmp_path / "w.pth").stat().st_size < 10_000


def test_failed_write_leaves_the_old_files(tmp_path, released, monkeypatch):
    path = tmp_path / "best.pth"
    write_weights(path, released, {"iteration": 1})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_weights(path, {"a": torch.zeros(1)}, {"iteration": 2})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.json", "best.pth"]
    weights = read_weights(path)
    assert weights.meta == {"iteration": 1}
    assert weights.state.keys() == released.keys()


def test_sidecar_of_another_file_is_refused_and_foreign_json_ignored(tmp_path, released):
    path = tmp_path / "best.pth"
    write_weights(path, released, {"iteration": 1})
    torch.save(released | {"bn1.bias": torch.zeros(4)}, path)
    with pytest.raises(WeightsError, match=r"not the file that best\.json describes .*delete best\.json"):
        read_weights(path)
    path.with_suffix(".json").write_text(json.dumps({"architecture": {"name": "vgg16"}}))
    assert read_weights(path).architecture is None
    path.with_suffix(".json").write_text("{")
    with pytest.raises(WeightsError, match=r"best\.json, which should describe best\.pth, cannot be read"):
        read_weights(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "resnet101", "depth": 3}, r"unknown settings \(depth\): was it written by a newer"),
        ({"width": 4}, "has no name"),
        ("resnet101", "has no name"),
    ],
)
def test_recorded_architecture_that_cannot_be_built_is_refused(tmp_path, architecture, message):
    write_weights(tmp_path / "w.pth", {"a": torch.zeros(1)}, {"architecture": architecture})
    with pytest.raises(WeightsError, match=message):
        infer_architecture(read_weights(tmp_path / "w.pth"))


def test_training_state_gives_its_network(tmp_path, released):
    architecture = build_network(**RESNET101, branches=4).architecture()
    state = {
        "format": "bafft-train-state-1",
        "network": released,
        "architecture": architecture,
        "iteration": 500,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    }
    weights = save(tmp_path / "last.pt", state)
    assert weights.architecture == architecture
    assert weights.meta == {"iteration": 500}
    network = build_network(**infer_architecture(weights))
    load_network(network, weights)
    assert_holds(network, released)
    torch.save({**state, "format": "bafft-train-state-9"}, tmp_path / "new.pt")
    with pytest.raises(WeightsError, match="format 'bafft-train-state-9', known is 'bafft-train-state-1'"):
        read_weights(tmp_path / "new.pt")
    del state["network"]
    torch.save(state, tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="without its 'network' entry"):
        read_weights(tmp_path / "none.pt")


# -- bad files -------------------------------------------------------------------------------------


class Exploit:
    """Pickles to a call that would create `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "nested"])
def test_pickled_code_never_runs(tmp_path, container):
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    exploit = {"conv1.weight": torch.zeros(1), "extra": Exploit(touched)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(Exploit(touched)))
    elif container == "nested":
        torch.save({"state_dict": exploit}, path)
    else:
        torch.save(exploit, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(WeightsError) as refusal:
        read_weights(path)
    assert not touched.exists()
    message = str(refusal.value)
    assert message.startswith(str(path))
    assert "holds pickled code" in message
    assert "tensors only" in message
    assert "\n" not in message
    if container == "pickle":  # the exploit works: unpickling it is what we refuse to do
        pickle.loads(path.read_bytes()).close()
        assert touched.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(WeightsError, match=r"pickled code \(torch\.nn\.modules\.linear\.Linear\).*state dict alone"):
        read_weights(tmp_path / "m.pth")


def truncated(path: Path, **options: Any) -> None:
    torch.save({"a": torch.rand(10_000)}, path, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def broken_safetensors(path: Path) -> None:
    save_file({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such weights file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("<html>404</html>"), "is not a checkpoint"),
        (lambda path: path.write_text("hello world " * 99), "is not a checkpoint"),
        (lambda path: path.write_bytes(b"\x80"), "is truncated, or holds pickled code"),
        (lambda path: path.write_bytes(os.urandom(4096)), "checkpoint|truncated"),
        (truncated, "is truncated or damaged"),
        (lambda path: truncated(path, _use_new_zipfile_serialization=False), "is truncated or damaged"),
        (foreign_zip, "a zip archive of something else"),
        (broken_safetensors, "is truncated or damaged"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds a list where a state dict"),
        (lambda path: torch.save({}, path), "holds nothing where a state dict"),
        (lambda path: torch.save({"state_dict": {}}, path), "holds no tensors"),
        (lambda path: torch.save({0: torch.zeros(1)}, path), "holds a Tensor under 0: not a state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "holds a int under 'epoch'"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is truncated, or holds pickled code"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(WeightsError, match=message) as refusal:
        read_weights(path)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)
