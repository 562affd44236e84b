"""Tiles and test-time views against naive loops, and what must hold of any of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dataset.loading import Batch
from model.deeplab import SegOutput
from utils import strips as strips_module
from utils import tiling as module
from utils.evaluation import labels_and_confidence
from utils.inference import LEAST_SIDE, Views, predict, scores
from utils.strips import strips
from utils.tiling import LARGE, Axis, Box, Grid, Zoom, classify, grid, plan

sides = st.integers(1, 40)
overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5])


def whole(tiles: Grid, scores_of: Callable[[Box], Tensor]) -> tuple[Tensor, Tensor]:
    """Classes and confidences of all bands, which must follow each other without a gap."""
    parts = list(classify(tiles, scores_of))
    rows = [row for part, _, _ in parts for row in range(part.start, part.stop)]
    assert rows == list(range(tiles.y.length))
    return torch.cat([labels for _, labels, _ in parts]), torch.cat([confidence for _, _, confidence in parts])


# ---- tiles ----


@given(sides, sides, overlaps)
@settings(deadline=None)
def test_tiles_cover_a_side_evenly_and_their_shares_sum_to_one(length: int, tile: int, overlap: float) -> None:
    axis = Axis(length, min(length, tile), overlap)
    assert axis.begins[0] == 0
    assert axis.begins[-1] + axis.tile == length
    total = np.zeros(length)
    for begin, weights in zip(axis.begins, axis.weights.numpy(), strict=True):
        assert (weights > 0).all()
        total[begin : begin + axis.tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    shared = [first + axis.tile - second for first, second in zip(axis.begins, axis.begins[1:], strict=False)]
    assert min(shared, default=tile) >= math.floor(axis.tile * overlap)


def test_no_more_tiles_than_are_needed() -> None:
    assert Axis(100, 100, 0.25).begins == (0,)
    assert Axis(101, 100, 0.25).begins == (0, 1)
    assert len(Axis(1000, 100, 0.0).begins) == 10
    assert Axis(175, 100, 0.25).begins == (0, 75)


@given(st.tuples(sides, sides), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.sampled_from([1, 2**22]))
@settings(max_examples=25, deadline=None)
def test_one_tile_is_the_image_itself(size: tuple[int, int], cells: tuple[int, int], entries: int) -> None:
    logits = torch.randn(5, *cells, generator=torch.Generator().manual_seed(math.prod(size)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ENTRIES", entries)
        labels, confidence = whole(grid(size, (40, 40), 0.25), lambda box: logits)
    expected = labels_and_confidence(logits, size[::-1])
    assert torch.equal(labels, expected[0])
    torch.testing.assert_close(confidence, expected[1])  # sums in another order


@given(st.tuples(sides, sides), st.tuples(st.integers(1, 15), st.integers(1, 15)), overlaps, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_constant_logits_give_a_constant_result(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, seed: int
) -> None:
    constant = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(seed))
    labels, confidence = whole(grid(size, tile, overlap), lambda box: constant.expand(4, 3, 2))
    assert labels.unique().tolist() == [int(constant.argmax())]
    assert labels.shape == size[::-1]
    torch.testing.assert_close(confidence, constant.softmax(dim=0).max().expand(size[::-1]))


@given(st.tuples(sides, sides), st.tuples(st.integers(2, 15), st.integers(2, 15)), overlaps, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_blended_tiles_are_the_naive_mean(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, seed: int
) -> None:
    tiles = grid(size, tile, overlap)
    generator = torch.Generator().manual_seed(seed)
    boxes = [box for row in range(len(tiles.y.begins)) for box in tiles.row(row)]
    logits = {box: torch.randn(3, 2, 3, generator=generator) for box in boxes}
    asked: list[Box] = []

    def scores_of(box: Box) -> Tensor:
        asked.append(box)
        return logits[box]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", 3)
        patch.setattr(module, "_ENTRIES", 1)
        labels, confidence = whole(tiles, scores_of)
    assert sorted(asked) == sorted(boxes)  # each of them once

    mean = torch.zeros(3, size[1], size[0])
    for (left, top, right, bottom), value in logits.items():
        full = F.interpolate(value[None], size=(bottom - top, right - left), mode="bilinear", align_corners=True)[0]
        row, column = tiles.y.begins.index(top), tiles.x.begins.index(left)
        mean[:, top:bottom, left:right] += full * tiles.y.weights[row][:, None] * tiles.x.weights[column]
    torch.testing.assert_close(confidence, mean.softmax(dim=0).amax(dim=0))
    found = mean.gather(0, labels[None].long())[0]
    torch.testing.assert_close(found, mean.amax(dim=0))


def test_seams_are_smooth() -> None:
    """Two tiles that disagree: the score passes from one to the other without a step."""
    tiles = grid((60, 4), (40, 4), 0.5)
    ones = {0: torch.tensor([0.0, 1.0]), 20: torch.tensor([1.0, 0.0])}
    _, confidence = whole(tiles, lambda box: ones[box[0]][:, None, None].expand(2, 2, 2))
    steps = confidence[0].diff().abs()
    assert float(confidence[0, 0]) == pytest.approx(1 / (1 + math.exp(-1)))
    assert float(steps.max()) < 0.04


def test_only_the_tiles_that_meet_a_band_are_held() -> None:
    tiles = grid((8, 400), (8, 20), 0.25)
    waiting: list[int] = []
    bands = classify(tiles, lambda box: waiting.append(box[1]) or torch.zeros(2, 2, 2))  # type: ignore[func-returns-value]
    next(bands)
    assert waiting == [0]


@given(st.tuples(sides, sides), st.integers(1, 9), st.data())
@settings(max_examples=25, deadline=None)
def test_some_rows_are_the_same_rows(size: tuple[int, int], cells: int, data: st.DataObject) -> None:
    logits = torch.randn(2, cells, 3, generator=torch.Generator().manual_seed(cells))
    start = data.draw(st.integers(0, size[0] - 1))
    stop = data.draw(st.integers(start + 1, size[0]))
    every = torch.cat([strip for _, strip in strips(logits, size)], dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips_module, "_ENTRIES", data.draw(st.sampled_from([1, 2**18])))
        found = list(strips(logits, size, within=slice(start, stop)))
    assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(start, stop))
    assert torch.equal(torch.cat([strip for _, strip in found], dim=1), every[:, start:stop])


# ---- sizes ----


@given(st.tuples(st.integers(1, 100_000), st.integers(1, 100_000)))
@settings(deadline=None)
def test_a_picture_is_seen_with_as_many_pixels_as_in_training(native: tuple[int, int]) -> None:
    width, height = Zoom((1024, 512))(native)
    assert min(width, height) >= LEAST_SIDE
    if min(width, height) > LEAST_SIDE:
        assert width * height == pytest.approx(1024 * 512, rel=0.02)
        assert width / height == pytest.approx(native[0] / native[1], rel=0.02)


def test_sizes_that_are_asked_for() -> None:
    assert Zoom((1024, 512))((2048, 1024)) == (1024, 512)
    assert Zoom((320, 240))((480, 360)) == (320, 240)
    assert Zoom((1024, 512), scale=1.0)((333, 77)) == (333, 77)
    assert Zoom((1024, 512), scale=0.5)((10, 400)) == (32, 200)
    assert Zoom((1024, 512), size=(640, 480))((10, 10)) == (640, 480)


def test_a_plan_has_tiles_of_the_pictures_own_pixels() -> None:
    view = plan((2048, 1024), (1024, 512), tile=None, otherwise=(512, 512), overlap=0.25)
    assert (view.tiles.count, view.shown, view.tiles.row(0)) == (1, (1024, 512), [(0, 0, 2048, 1024)])
    view = plan((2048, 1024), (1024, 512), tile=(512, 600), otherwise=(512, 512), overlap=0.0)
    assert view.shown == (512, 512)  # the height is seen whole
    assert view.tiles.row(0) == [(0, 0, 1024, 1024), (1024, 0, 2048, 1024)]


def test_what_is_large_is_tiled_unasked() -> None:
    side = math.isqrt(LARGE) + 1
    assert plan((side, side), (side, side), tile=None, otherwise=(512, 256), overlap=0.25).shown == (512, 256)
    assert plan((side, side), (side, side), tile=(side, side), otherwise=(512, 256), overlap=0.25).tiles.count == 1


# ---- views ----


class Toy(nn.Module):
    """A network whose logits depend on what lies left and right: stride 4, 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, 4, 4, generator=generator) / 30)

    def forward(self, images: Tensor) -> SegOutput:
        features = F.conv2d(images, self.weight, stride=4)
        return SegOutput(features, features)


def to_float(images: Tensor) -> Tensor:
    return images.float()


def pictures(count: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_without_views_the_logits_are_the_networks_own() -> None:
    network, images = Toy().eval(), pictures()
    assert torch.equal(scores(network, images, normalize=to_float), network(images.float()).logits)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.25), (2.0,)])
def test_views_are_averaged_as_a_naive_loop_does(scales: tuple[float, ...], flip: bool) -> None:
    network, images = Toy().eval(), pictures()
    found = scores(network, images, normalize=to_float, views=Views(scales, flip)).softmax(dim=1)
    total, number = torch.zeros_like(found), 0
    for scale in scales:
        size = (round(48 * scale), round(64 * scale))
        for mirrored in [False, True] if flip else [False]:
            shown = images.float()
            if scale != 1:
                shown = F.interpolate(shown, size=size, mode="bicubic", antialias=True, align_corners=False)
            shown = shown.clamp(0, 255)
            logits = network(torch.flip(shown, [3]) if mirrored else shown).logits
            logits = torch.flip(logits, [3]) if mirrored else logits
            logits = F.interpolate(logits, size=found.shape[-2:], mode="bilinear", align_corners=True)
            total += logits.softmax(dim=1)
            number += 1
    torch.testing.assert_close(found, total / number)
    side = round(48 * max(scales)) // 4
    assert found.shape[-2] == side


def test_the_mirror_image_of_an_image_has_the_mirrored_scores() -> None:
    network, images = Toy().eval(), pictures()
    both = Views((0.75, 1.0), flip=True)
    found = scores(network, images, normalize=to_float, views=both)
    mirrored = scores(network, images.flip(-1), normalize=to_float, views=both)
    torch.testing.assert_close(mirrored.flip(-1), found, rtol=1e-4, atol=1e-3)


def test_certainty_stays_finite() -> None:
    """A probability of 0 in every view has no infinite logarithm, which upsampling would turn into NaN."""
    network = Toy()
    with torch.no_grad():
        network.weight.mul_(1e6)
    found = scores(network.eval(), pictures(), normalize=to_float, views=Views((1.0,), flip=True))
    assert torch.isfinite(found).all()


def test_predict_shows_the_views_and_leaves_the_mode() -> None:
    network, images = Toy().train(), pictures()
    batch = Batch(images, [torch.zeros(5, 7)] * 2, ["a", "b"])
    views = Views((0.75, 1.0), flip=True)
    items = list(predict(network, [batch], normalize=to_float, views=views))
    assert [item.name for item in items] == ["a", "b"]
    expected = scores(network, images, normalize=to_float, views=views)
    assert torch.equal(torch.stack([item.logits for item in items]), expected)
    assert network.training
