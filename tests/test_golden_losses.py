"""The published banks, losses and gradients: every case and every array of losses.npz."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from model.bafft import BAFFT, Alignment
from model.deeplab import SegmentationNetwork, SegOutput
from tests.golden_files import load_arrays, load_inputs

STUFF = (0, 1, 2, 3, 4, 8, 9, 10)
THINGS = (5, 6, 7, *range(11, 19))
GOLDEN = load_arrays("losses.npz")
inputs = load_inputs()
CASES = sorted({name.split("_")[0] for name in GOLDEN})
SETTINGS = ("seed", "h", "w", "K", "steps")
RELEASED_LOSSES = {  # golden name -> our loss, under which modes
    "cls": ("stuff", Alignment(aim="none")),
    "ins": ("instances", Alignment(aim="none")),
    "cls2": ("stuff", Alignment(aim="released")),
    "ins2": ("instances", Alignment(aim="released")),
    "cate": ("separation", Alignment(isia="released")),
}


class PooledClassifier(nn.Module):
    """Stands in for the network: the losses only ever ask it to classify pooled vectors."""

    num_classes = 19
    feature_dim = 2048

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = torch.from_numpy(weight), torch.from_numpy(bias)

    def classify(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self.weight.T + self.bias


def output(features: np.ndarray, prediction: np.ndarray) -> SegOutput:
    """Features with logits whose argmax is the given prediction."""
    one_hot = nn.functional.one_hot(torch.from_numpy(prediction), 19).permute(2, 0, 1)[None].float()
    return SegOutput(torch.from_numpy(features), one_hot)


@pytest.fixture(scope="module", params=CASES)
def world(request):
    """The banks after the case's source observations, and its target image."""
    case = {name.split("_", 1)[1]: GOLDEN[name] for name in GOLDEN if name.startswith(request.param + "_")}
    seed, h, w, slots, steps = (int(case[name]) for name in SETTINGS)
    stream = inputs.losses_case(seed, h, w, steps)
    network = cast(SegmentationNetwork, PooledClassifier(*next(stream)))
    alignment = Alignment(slots_stuff=slots, slots_thing=10 * slots)
    method = BAFFT(network=network, discriminator=nn.Identity(), stuff=STUFF, things=THINGS, alignment=alignment)
    for features, label, prediction in islice(stream, steps):
        method.observe_source(output(features, prediction), torch.from_numpy(label)[None])
    features, _, prediction = next(stream)
    return case, method, features, prediction


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    error = np.abs(actual.detach().numpy() - expected).max()
    assert error <= tolerance * np.abs(expected).max(), f"off by {error:.3g}"


def test_banks(world):
    case, method, _, _ = world
    for kind, bank in (("stuff", method.stuff_bank), ("thing", method.thing_bank)):
        np.testing.assert_array_equal(bank.inserted.numpy(), case[f"{kind}_inserts"])
        close(bank.prototypes.mean(dim=2), case[f"{kind}_bank_mean"], 1e-4)


@pytest.mark.parametrize("golden", RELEASED_LOSSES)
def test_loss_and_gradient(world, golden):
    case, method, features, prediction = world
    name, modes = RELEASED_LOSSES[golden]
    settings = replace(method.alignment, aim=modes.aim, isia=modes.isia)
    target = output(features, prediction)
    target.features.requires_grad_()
    method.alignment = settings
    pseudo = torch.full((1, *prediction.shape), 255)

    loss = method.alignment_losses(method.describe_target(target, pseudo))[name]
    (gradient,) = torch.autograd.grad(loss, target.features)

    close(loss, case[golden], 1e-5)
    close(gradient[0, ::128], case[f"grad_{golden}"], 1e-4)
    # The published norms were accumulated in float32 over contiguous memory, up to 3e-4 off the true ones.
    close(gradient.contiguous().norm(), case[f"gradnorm_{golden}"], 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_array_is_asserted(case):
    banks = {f"{kind}_{what}" for kind in ("stuff", "thing") for what in ("inserts", "bank_mean")}
    losses = {prefix + name for prefix in ("", "grad_", "gradnorm_") for name in RELEASED_LOSSES}
    expected = {f"{case}_{name}" for name in (*SETTINGS, *banks, *losses)}
    assert {name for name in GOLDEN if name.startswith(case + "_")} == expected
