"""ConfusionMatrix against a naive count per class."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils import metrics
from utils.metrics import ConfusionMatrix, joint_counts, mean, mean_iou, percent

NAMES = ("road", "sky", "car")


def naive_iou(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> list[float]:
    """One class and one pixel after the other."""
    result = []
    for k in range(num_classes):
        both = either = 0
        for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != 255:
                both += p == k and t == k
                either += p == k or t == k
        result.append(100.0 * both / either if either else math.nan)
    return result


ids = st.sampled_from([0, 1, 2, 3, 255])
images = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.uint8, shape, elements=ids), hnp.arrays(np.uint8, shape, elements=ids))
)


@given(st.lists(images, max_size=3))
@settings(max_examples=100, deadline=None)
def test_iou_equals_the_naive_count_over_all_images(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    matrix = ConfusionMatrix(4)
    for prediction, truth in pairs:
        matrix.update(prediction, truth)
    prediction = np.concatenate([p.ravel() for p, _ in pairs] or [np.zeros(0, np.uint8)])
    truth = np.concatenate([t.ravel() for _, t in pairs] or [np.zeros(0, np.uint8)])
    np.testing.assert_allclose(matrix.iou(), naive_iou(prediction, truth, 4), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64])
def test_counts_for_every_integer_type(dtype: type) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[0, 1], [2, 2]], dtype), np.array([[0, 1], [1, 2]], dtype))
    assert matrix.counts.tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


def test_torch_tensors_are_taken() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 1]]), torch.tensor([[0, 255]]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_a_prediction_of_255_is_a_miss_and_nobodys_false_positive() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 255, 1, 255]), np.array([0, 0, 1, 255]))
    assert matrix.counts.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert matrix.iou().tolist() == [50.0, 100.0]


def test_ids_where_the_truth_is_ignored_are_not_looked_at() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([7, 0]), np.array([255, 0]))
    assert matrix.counts.sum() == 1


def test_shape_mismatch_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        ConfusionMatrix(2).update(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([0, 19], [0, 0], r"prediction holds ids \[19\]"),
        ([0, -1], [0, 0], r"prediction holds ids \[-1\]"),
        ([0, 0], [0, 33], r"truth holds ids \[33\].*train ids"),
        ([0.0, 0.0], [0, 0], "prediction must hold integer ids, not float64"),
        ([0, 0], [True, False], "truth must hold integer ids, not bool"),
    ],
)
def test_ids_that_are_no_classes_are_refused(prediction: list, truth: list, message: str) -> None:
    matrix = ConfusionMatrix(19)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(prediction), np.array(truth))
    assert matrix.counts.sum() == 0


@pytest.mark.parametrize("dtype", [np.int16, np.int64])
@pytest.mark.parametrize("stranger", [-1, 256, 300])
def test_ids_that_no_byte_holds_are_named_as_they_are(dtype: type, stranger: int) -> None:
    """256 would be class 0, were its low byte taken."""
    with pytest.raises(ValueError, match=rf"prediction holds ids \[{stranger}\]"):
        ConfusionMatrix(metrics.MAX_CLASSES).update(np.array([0, stranger], dtype), np.array([0, 0], dtype))
    ignored = ConfusionMatrix(metrics.MAX_CLASSES)
    ignored.update(np.array([0, stranger], dtype), np.array([0, 255], dtype))
    assert ignored.counts.sum() == 1


@pytest.mark.parametrize("num_classes", [0, 255])
def test_impossible_numbers_of_classes_are_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.254"):
        ConfusionMatrix(num_classes)


def test_as_many_classes_as_there_can_be() -> None:
    matrix = ConfusionMatrix(metrics.MAX_CLASSES)
    matrix.update(np.arange(255, dtype=np.uint8)[:-1], np.arange(255, dtype=np.uint8)[:-1])
    assert (matrix.iou() == 100).all()


@given(images, st.sampled_from([0, 4, 1000]))
@settings(max_examples=100, deadline=None)
def test_pairs_by_the_run_and_by_the_pixel_are_those_of_a_loop(
    pair: tuple[np.ndarray, np.ndarray], short_run: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_SHORT_RUN", short_run)
        counts = joint_counts(*pair)
    expected = np.zeros((256, 256), dtype=np.int64)
    np.add.at(expected, pair, 1)
    assert np.array_equal(counts, expected)
    assert counts.dtype == np.int64


def test_every_pair_of_values_is_counted_at_its_place() -> None:
    """Of arrays that lie in steps in memory, too."""
    left, right = np.indices((256, 256), dtype=np.uint8)
    assert (joint_counts(left[:, ::2], right[:, ::2])[:, ::2] == 1).all()
    assert (joint_counts(left.T, right.T) == 1).all()
    assert joint_counts(np.full((4, 9), 3, np.uint8), np.full((4, 9), 255, np.uint8))[3, 255] == 36


def test_sum_of_two_parts_is_the_whole() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 5, (2, 40, 30))
    whole, upper, lower = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(prediction, truth)
    upper.update(prediction[:11], truth[:11])
    lower.update(prediction[11:], truth[11:])
    before = upper.counts.copy()
    assert np.array_equal((upper + lower).counts, whole.counts)
    assert np.array_equal(upper.counts, before)
    with pytest.raises(ValueError, match="5 and 6"):
        upper + ConfusionMatrix(6)


def test_precision_recall_and_accuracy() -> None:
    matrix = ConfusionMatrix(4)
    # class 0: 3 of 4 found, one of them left without an answer; class 2 never true, class 3 in neither.
    matrix.update(np.array([0, 0, 0, 255, 1, 2, 2, 0]), np.array([0, 0, 0, 0, 1, 1, 255, 1]))
    np.testing.assert_array_equal(matrix.precision(), [75.0, 100.0, 0.0, math.nan])
    np.testing.assert_array_equal(matrix.recall(), [75.0, 100 * (1 / 3), math.nan, math.nan])
    assert matrix.pixel_accuracy() == 100 * (4 / 7)
    assert matrix.predicted((1,)).tolist() == [1, 1, 1, 0]
    assert math.isnan(ConfusionMatrix(2).pixel_accuracy())


def test_percent_divides_first() -> None:
    """As cityscapesscripts does, whose scores are ratios: 100 * hits / union differs in the last digit."""
    assert percent(1, 3) == 100.0 * (1 / 3) != 100.0 * 1 / 3
    np.testing.assert_array_equal(percent([1, 0], [4, 0]), [25.0, math.nan])


def test_means_over_the_last_axis() -> None:
    scores = np.array([[40.0, math.nan, 60.0], [math.nan] * 3])
    np.testing.assert_array_equal(mean(scores), [50.0, math.nan])


def test_subset_averages_the_same_ious() -> None:
    matrix = ConfusionMatrix(3)
    # class 0: one hit, and one pixel lost to class 2, which the subset leaves out: still a miss.
    matrix.update(np.array([0, 2, 1, 2]), np.array([0, 0, 1, 2]))
    assert matrix.iou().tolist() == [50.0, 100.0, 50.0]
    assert matrix.mean_iou((0, 1)) == 75.0
    assert matrix.mean_iou() == pytest.approx(200 / 3)


def test_absent_classes_are_left_out_of_the_mean() -> None:
    assert mean_iou(np.array([40.0, math.nan, 60.0])) == 50.0
    assert mean_iou(np.array([40.0, math.nan, 60.0]), (1, 2)) == 60.0
    assert math.isnan(mean_iou(np.array([math.nan, 1.0]), (0,)))
    assert math.isnan(ConfusionMatrix(4).mean_iou())


def test_published_rows_give_the_published_means() -> None:
    bafft = "91.8 48.7 85.6 38.1 31.8 35.7 39.5 40.3 85.3 40.5 85.9 62.2 32.3 84.2 31.4 52.2 9.9 31.0 36.1"
    assert round(mean_iou(np.array(bafft.split(), float)), 1) == 50.7


def test_dict_is_json_unrounded_with_none_for_absent() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 1]), np.array([0, 1, 1]))
    result = json.loads(json.dumps(matrix.to_dict(NAMES, {"2": (0, 2)}), allow_nan=False))
    assert result == {
        "miou": 50.0,
        "iou": {"road": 50.0, "sky": 50.0, "car": None},
        "miou_subsets": {"2": 50.0},
        "pixels": 3,
    }
    assert "miou_subsets" not in matrix.to_dict(NAMES)
    assert ConfusionMatrix(3).to_dict(NAMES)["miou"] is None
