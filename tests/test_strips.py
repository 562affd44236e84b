"""Strips of upsampled scores against torch's own upsampling and maximum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import strips as module
from utils.strips import class_map, highest, highest_at, strips

sides = st.integers(1, 9)


def upsampled(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=True)[0]


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from([1, 12, 2**18]), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_strips_are_the_rows_of_the_upsampled_scores(
    grid: tuple[int, int], size: tuple[int, int], entries: int, seed: int
) -> None:
    scores = torch.randn(3, *grid, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ENTRIES", entries)
        found = list(strips(scores, size))
    rows = [row for part, _ in found for row in range(size[0])[part]]
    assert rows == list(range(size[0]))
    torch.testing.assert_close(torch.cat([strip for _, strip in found], dim=1), upsampled(scores, size))
    if entries == 1:
        assert len(found) == size[0]


def test_the_published_size_to_the_last_digits() -> None:
    scores = torch.randn(2, 65, 129, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    found = torch.cat([strip for _, strip in strips(scores, (512, 1024))], dim=1)
    torch.testing.assert_close(found, upsampled(scores, (512, 1024)), rtol=0, atol=2e-7)


def test_a_strip_may_be_changed() -> None:
    scores = torch.rand(2, 4, 4)
    before = scores.clone()
    for _, strip in strips(scores, (4, 4)):
        strip.zero_()
    assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_highest_is_the_maximum_and_the_first_of_equals(dtype: torch.dtype) -> None:
    scores = torch.randint(-3, 4, (254, 6, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[200:, 0] = 9
    values, classes = highest(scores)
    assert torch.equal(values, scores.amax(dim=0))
    first = (scores == values).to(torch.uint8).argmax(dim=0)
    assert torch.equal(classes.long(), first)
    assert classes.dtype == torch.uint8


def test_the_class_of_nan_is_none() -> None:
    scores = torch.zeros(3, 2)
    scores[1, 0] = torch.nan
    assert highest(scores)[1].tolist() == [3, 0]


def test_class_map_is_the_argmax_of_upsampled_logits() -> None:
    logits = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(class_map(logits, (31, 47)).long(), upsampled(logits, (31, 47)).argmax(dim=0))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.booleans(),
)
def test_the_highest_at_full_size_is_that_of_every_pixel(
    seed: int, shape: tuple[int, int, int], size: tuple[int, int], coarse: bool
) -> None:
    """To the bit as strips have it; whole numbers make ties."""
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if coarse else scores
    values, classes = highest_at(scores, size)
    every = torch.cat([strip for _, strip in strips(scores, size)], dim=1)
    assert torch.equal(values, every.amax(dim=0))
    chosen = every.gather(0, classes.long()[None])[0]
    assert torch.equal(chosen, values) if not coarse else bool((chosen - values).abs().max() < 1e-5)


def test_a_score_that_is_no_number_reaches_the_pixels_around_it() -> None:
    scores = torch.zeros(3, 4, 4)
    scores[1] = 1.0
    scores[0, 1, 1] = float("nan")
    values, classes = highest_at(scores, (13, 13))
    every = torch.cat([strip for _, strip in strips(scores, (13, 13))], dim=1)
    assert torch.equal(classes, highest(every)[1])
    assert torch.equal(values.isnan(), every.isnan().any(dim=0))
