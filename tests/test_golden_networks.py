"""The networks reproduce the published ones: every tensor name and shape, and every golden output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.deeplab import SegmentationNetwork, build_network
from model.discriminator import Discriminator
from tests.golden_files import COVERED_BY, GOLDEN_DIR, load_arrays, load_inputs, load_keys

TOLERANCE = 1e-4  # of the largest absolute value
SETTINGS = {"size", "input_seed", "salt"}


def build(kind: str) -> SegmentationNetwork | Discriminator:
    """The network that keys.json calls `kind`."""
    if kind == "discriminator":
        return Discriminator(19)
    return build_network(kind.removeprefix("deeplab_v2_"))


def golden_network(kind: str, salt: str) -> SegmentationNetwork | Discriminator:
    """Network `kind` with the golden weights, in eval mode."""
    network = build(kind)
    values = load_inputs().weights(load_keys()[kind], salt)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=True)
    return network.eval()


@pytest.fixture(scope="module")
def settings() -> dict[str, np.ndarray]:
    golden = load_arrays("networks.npz")
    return {key: golden[key] for key in SETTINGS}


@pytest.fixture(scope="module")
def image(settings) -> Tensor:
    height, width = settings["size"].tolist()
    return torch.from_numpy(load_inputs().image(height, width, int(settings["input_seed"])))


@pytest.fixture(scope="module")
def outputs(settings, image) -> dict[str, Tensor]:
    """Everything networks.npz holds, as our networks compute it, and `exact`: logits_trainmode in float64."""
    salt = str(settings["salt"])
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        network = golden_network("deeplab_v2_resnet101", salt)
        assert isinstance(network, SegmentationNetwork)
        features, logits = network(image)
        found["feature_shape"] = torch.tensor(features.shape)
        found["features_slice"] = features[0, ::64]
        found["logits"] = logits[0]
        upsampled = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)
        found["disc"] = golden_network("discriminator", salt)(upsampled.softmax(1))[0]
        rng = np.random.default_rng(int(settings["input_seed"]) + 1)
        vector = torch.from_numpy(rng.standard_normal((1, features.shape[1], 1, 1)).astype(np.float32))
        found["pooled_logits"] = network.classify(vector.flatten(1))[0]
        # Eval mode left the running statistics as loaded, so this forward pass starts from fresh weights.
        found["logits_trainmode"] = network.train()(image).logits[0]
        found["layer4_2_bn3_running_mean_after"] = network.get_buffer("layer4.2.bn3.running_mean").clone()
        found["exact"] = network.double()(image.double()).logits[0]
        found["oracle_logits"] = golden_network("oracle_resnet101", salt)(image).logits[0]
    return found


def relative_error(found: Tensor, golden: np.ndarray) -> float:
    """max|found - golden| / max|golden|; the shapes must agree."""
    assert tuple(found.shape) == golden.shape
    return float(np.abs(found.numpy().astype(np.float64) - golden).max() / np.abs(golden).max())


def test_keys_hold_exactly_the_known_networks():
    assert set(load_keys()) == {"deeplab_v2_resnet101", "oracle_resnet101", "vgg16", "discriminator"}


@pytest.mark.parametrize("kind", ["deeplab_v2_resnet101", "oracle_resnet101", "vgg16", "discriminator"])
def test_state_dict_has_the_released_names_and_shapes(kind):
    ours = {name: list(value.shape) for name, value in build(kind).state_dict().items()}
    assert ours == load_keys()[kind]


def test_no_golden_array_goes_unasserted(outputs):
    golden = set(load_arrays("networks.npz"))
    assert golden == SETTINGS | set(outputs) - {"exact"}
    assert set(load_arrays("network_vgg.npz")) == {"vgg_logits"}


def test_feature_shape_is_golden(outputs):
    golden = load_arrays("networks.npz")["feature_shape"]
    assert outputs["feature_shape"].tolist() == golden.tolist()


@pytest.mark.parametrize(
    "name",
    [
        "features_slice",
        "logits",
        "disc",
        "pooled_logits",
        "oracle_logits",
        "layer4_2_bn3_running_mean_after",
    ],
)
def test_output_is_golden(outputs, name):
    assert relative_error(outputs[name], load_arrays("networks.npz")[name]) <= TOLERANCE


def test_train_mode_logits_are_golden(outputs):
    """A hundred batch norms over a few hundred positions amplify rounding beyond the tolerance.

    In float32 the result depends on the order of summation: it moves by 1 to 2e-4 with the number of threads,
    and float32 results, the golden one included, lie 3 to 4e-4 off the float64 result. So the bound is what
    float32 loses here, measured, with a factor for the machine that made the golden file.
    """
    found = outputs["logits_trainmode"]
    rounding = relative_error(found, outputs["exact"].numpy())
    assert rounding < 2e-3
    golden = load_arrays("networks.npz")["logits_trainmode"]
    assert relative_error(found, golden) <= max(TOLERANCE, 3 * rounding)


def test_vgg_logits_are_golden(settings, image):
    with torch.no_grad():
        logits = golden_network("vgg16", str(settings["salt"]))(image).logits
    assert relative_error(logits[0], load_arrays("network_vgg.npz")["vgg_logits"]) <= TOLERANCE


def test_every_golden_file_is_asserted_somewhere():
    numbers = {path.name for path in GOLDEN_DIR.iterdir() if path.suffix in {".npz", ".json"}}
    assert numbers == set(COVERED_BY)
    assert all((Path(__file__).parent / module).is_file() for module in COVERED_BY.values())
