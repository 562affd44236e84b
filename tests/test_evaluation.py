"""The evaluator against naive loops, and against the scorer of the Cityscapes server on the same files."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataset.corpora import Corpus, DataError
from dataset.labels import load_class_table, to_label_ids
from tests.worlds import naive_iou, save_png
from utils import evaluation as module
from utils.evaluation import (
    BINS,
    Bootstrap,
    Evaluation,
    boundary_counts,
    boundary_map,
    calibration,
    calibration_counts,
    labels_and_confidence,
)
from utils.inference import upsample
from utils.scoring_run import score
from utils.strips import class_map

NAMES = ("road", "sky", "car", "person")
SUBSETS = {"4": (0, 1, 2, 3), "2": (0, 2), "last": (3,)}
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]

ids = st.sampled_from([0, 1, 2, 255])
maps = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.uint8, shape, elements=ids), hnp.arrays(np.uint8, shape, elements=ids))
)


def random_pairs(number: int, *, seed: int = 0, classes: int = 3, size: tuple[int, int] = (12, 17)) -> Pairs:
    """(prediction, truth) pairs of blobs, some pixels ignored or without an answer."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        coarse = rng.integers(0, classes, (4, 5), dtype=np.uint8)
        truth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
        prediction = np.where(rng.random(size) < 0.3, rng.integers(0, classes, size), truth).astype(np.uint8)
        truth[rng.random(size) < 0.1] = 255
        prediction[rng.random(size) < 0.1] = 255
        pairs.append((prediction, truth))
    return pairs


def evaluated(pairs: Pairs, **settings: float) -> Evaluation:
    """An evaluation of all pairs."""
    evaluation = Evaluation(NAMES, SUBSETS, **settings)
    for prediction, truth in pairs:
        evaluation.update(prediction, truth)
    return evaluation


def means(scores: Sequence[float | None], subset: Sequence[int]) -> float:
    """The mean over a subset of those that are there; NaN for none."""
    present = [value for index in subset if (value := scores[index]) is not None]
    return sum(present) / len(present) if present else math.nan


def naive_protocol(pairs: Pairs, subset: Sequence[int], *, ignored: bool) -> float:
    """The mean IoU of a subset; with `ignored` the truth's other classes are made 255 beforehand."""
    if ignored:
        pairs = [(prediction, np.where(np.isin(truth, subset), truth, 255)) for prediction, truth in pairs]
    return means(naive_iou(pairs, len(NAMES)), subset)


# ---- protocols ----


def test_a_protocol_counts_or_ignores_the_pixels_of_other_classes() -> None:
    """One pixel of class 1 is taken for class 0: a false positive of it, unless such pixels are left out."""
    evaluation = Evaluation(("a", "b"), {"one": (0,), "2": (0, 1)})
    evaluation.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 1, 1]]))
    one, both = evaluation.report().protocols
    assert (one.counted.value, one.ignored.value) == (100 * (2 / 3), 100.0)
    assert both.counted == both.ignored == evaluation.report().miou


def test_a_class_outside_the_subset_is_a_miss_in_both_protocols() -> None:
    evaluation = Evaluation(("a", "b"), {"one": (0,)})
    evaluation.update(np.array([[0, 1]]), np.array([[0, 0]]))
    (one,) = evaluation.report().protocols
    assert one.counted.value == one.ignored.value == 50.0


@pytest.mark.parametrize("seed", range(4))
def test_protocols_equal_naive_ones(seed: int) -> None:
    pairs = random_pairs(3, seed=seed)
    report = evaluated(pairs).report()
    assert report.miou.value == pytest.approx(means(naive_iou(pairs, 4), range(4)))
    for protocol in report.protocols:
        for measured, ignored in ((protocol.counted, False), (protocol.ignored, True)):
            expected = naive_protocol(pairs, protocol.ids, ignored=ignored)
            assert measured.value == pytest.approx(expected, nan_ok=True), protocol.name


# ---- boundaries ----


def naive_boundary(labels: np.ndarray, category: int, distance: int) -> np.ndarray:
    """A class's mask without its erosion, step by step as in the authors' code: outside the image is not the class."""
    mask = np.pad((labels == category).astype(np.uint8), 1)
    eroded = mask.copy()
    for _ in range(distance):
        height, width = eroded.shape
        around = [np.roll(eroded, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        eroded = np.min(around, axis=0)
        eroded[[0, height - 1]], eroded[:, [0, width - 1]] = 0, 0
    return (mask - eroded)[1:-1, 1:-1].astype(bool)


@given(maps, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_boundaries_of_all_classes_at_once_equal_those_of_one_after_the_other(
    pair: tuple[np.ndarray, np.ndarray], distance: int
) -> None:
    labels, _ = pair
    found = boundary_map(labels, distance)
    for category in (0, 1, 2):
        np.testing.assert_array_equal(found == category, naive_boundary(labels, category, distance))


@given(maps, st.sampled_from([0.001, 0.02, 0.1, 0.2, 1.0]))
@settings(max_examples=100, deadline=None)
def test_boundary_iou_equals_the_naive_one(pair: tuple[np.ndarray, np.ndarray], ratio: float) -> None:
    prediction, truth = pair
    evaluation = Evaluation(NAMES, boundary_ratio=ratio)
    evaluation.update(prediction, truth)
    distance = max(1, round(ratio * math.hypot(*truth.shape)))
    prediction = np.where(truth == 255, 255, prediction)
    expected = []
    for category in range(len(NAMES)):
        left, right = (naive_boundary(labels, category, distance) for labels in (prediction, truth))
        union = (left | right).sum()
        expected.append(100 * (left & right).sum() / union if union else math.nan)
    np.testing.assert_allclose(evaluation.report(Bootstrap(samples=1)).boundary.iou, expected, rtol=1e-13)


def test_the_width_of_a_boundary_is_a_share_of_the_diagonal() -> None:
    truth = np.zeros((300, 400), np.uint8)
    for ratio, width in ((0.02, 10), (0.005, 2), (1e-6, 1)):
        interior = (300 - 2 * width) * (400 - 2 * width)
        assert boundary_counts(truth, truth, ratio)[:, 0].tolist() == [truth.size - interior] * 3


def test_boundaries_add_up_over_images() -> None:
    pairs = random_pairs(3)
    total = sum(boundary_counts(np.where(truth == 255, 255, p).astype(np.uint8), truth, 0.1) for p, truth in pairs)
    hits, true, predicted = np.asarray(total)[:, :3]
    iou = evaluated(pairs, boundary_ratio=0.1).report().boundary.iou
    np.testing.assert_allclose(iou[:3], 100 * hits / (true + predicted - hits))
    assert math.isnan(iou[3])


# ---- calibration ----


def naive_ece(prediction: np.ndarray, truth: np.ndarray, confidence: np.ndarray) -> float:
    """One pixel after the other into one of the bins."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, t, c in zip(prediction.ravel(), truth.ravel(), confidence.ravel().tolist(), strict=True):
        if t != 255:
            (chosen,) = [m for m in range(BINS) if m / BINS < c <= (m + 1) / BINS] or [0]
            bins[chosen].append((c, p == t))
    total = sum(map(len, bins))
    gaps = [abs(sum(c for c, _ in found) - sum(right for _, right in found)) for found in bins]
    return 100 * sum(gaps) / total


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_equals_the_naive_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    evaluation = Evaluation(NAMES, boundary_ratio=0.1)
    pairs = random_pairs(2, seed=seed)
    confidences = [rng.random(truth.shape, dtype=np.float32) ** 0.2 for _, truth in pairs]
    confidences[0][0, :3] = 0.0, 1.0, 0.2
    for (prediction, truth), confidence in zip(pairs, confidences, strict=True):
        evaluation.update(prediction, truth, confidence)
    measured = evaluation.report().calibration
    assert measured is not None
    stacked = [np.stack(arrays) for arrays in (*zip(*pairs, strict=True), confidences)]
    assert measured.ece == pytest.approx(naive_ece(*stacked))
    assert sum(entry.pixels for entry in measured.bins) == evaluation.confusion.counts.sum()


def test_sure_of_four_in_five_and_right_in_three_of_five_is_an_error_of_20() -> None:
    prediction, truth = np.zeros((1, 5), np.uint8), np.array([[0, 0, 0, 1, 1]], np.uint8)
    measured = calibration(calibration_counts(prediction, truth, np.full((1, 5), 0.8, np.float32)))
    assert measured.ece == pytest.approx(20, abs=1e-5)
    (full,) = [entry for entry in measured.bins if entry.pixels]
    assert (full.low, full.high, full.pixels, full.accuracy) == (12 / 15, 13 / 15, 5, 60.0)  # float32 0.8 is above 0.8
    assert math.isnan(measured.bins[0].accuracy)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        Evaluation(NAMES).update(np.zeros((1, 2), int), np.zeros((1, 2), int), np.array([[0.5, wrong]], np.float32))


@pytest.mark.parametrize("first", [True, False])
def test_confidence_for_every_image_or_for_none(first: bool) -> None:
    evaluation = Evaluation(NAMES)
    image, confidence = np.zeros((2, 2), int), np.ones((2, 2), np.float32)
    evaluation.update(image, image, confidence if first else None)
    with pytest.raises(ValueError, match="every image, or of none"):
        evaluation.update(image, image, None if first else confidence)
    assert evaluation.confusion.counts.sum() == 4


@pytest.mark.parametrize("size", [(9, 11), (5, 7)])
def test_labels_and_confidence_are_those_of_the_upsampled_logits(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(4, 5, 7)
    logits[:, 0, 0] = 0  # a tie: the first class, here as there
    before = logits.clone()
    labels, confidence = labels_and_confidence(logits, size)
    assert torch.equal(labels, class_map(logits, size))
    torch.testing.assert_close(confidence, upsample(logits, size).softmax(dim=0).amax(dim=0))
    assert confidence.max() <= 1
    assert torch.equal(logits, before)


# ---- bootstrap ----


def naive_interval(pairs: Pairs, times: np.ndarray, subset: Sequence[int], *, ignored: bool) -> list[float]:
    """Percentiles of the mean IoU over the draws; row b of `times` says how often each image is in draw b."""
    drawn = [
        naive_protocol([pair for pair, n in zip(pairs, row, strict=True) for _ in range(n)], subset, ignored=ignored)
        for row in times.tolist()
    ]
    present = [value for value in drawn if not math.isnan(value)]
    return np.percentile(present, [5, 95]).tolist() if present else [math.nan, math.nan]


@pytest.mark.parametrize("block", [1, 2**22])
def test_intervals_equal_those_of_a_naive_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    pairs = [*random_pairs(4), *random_pairs(1, seed=9, classes=4)]  # class 3 is in the last image alone
    report = evaluated(pairs).report(Bootstrap(samples=30, seed=5, level=90))
    times = np.random.default_rng(5).multinomial(5, [0.2] * 5, size=30)
    assert (times[:, 4] == 0).any()
    for index, measured in enumerate(report.iou):
        assert measured[1:] == pytest.approx(naive_interval(pairs, times, (index,), ignored=False), nan_ok=True)
    assert report.miou[1:] == pytest.approx(naive_interval(pairs, times, range(4), ignored=False))
    for protocol in report.protocols:
        expected = [naive_interval(pairs, times, protocol.ids, ignored=ignored) for ignored in (False, True)]
        assert protocol.counted[1:] == pytest.approx(expected[0])
        assert protocol.ignored[1:] == pytest.approx(expected[1])


def test_images_that_are_alike_leave_no_doubt() -> None:
    report = evaluated([random_pairs(1)[0]] * 6).report(Bootstrap(samples=20))
    assert report.miou.low == pytest.approx(report.miou.value, rel=1e-13)
    assert report.miou.high == pytest.approx(report.miou.value, rel=1e-13)


def test_intervals_depend_on_the_seed_alone() -> None:
    evaluation = evaluated(random_pairs(5))
    draws = [evaluation.report(Bootstrap(samples=50, seed=seed)).miou for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0].low < draws[0].value < draws[0].high


def test_an_image_is_remembered_by_a_few_numbers_per_class() -> None:
    """Whatever its size."""
    sizes = []
    for size in ((8, 8), (80, 80)):
        evaluation = evaluated(random_pairs(2, size=size))
        sizes.append([tally.size for tally in evaluation._tallies])
    assert sizes == [[(3 + len(SUBSETS)) * len(NAMES)] * 2] * 2


# ---- parts ----


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (0, 5), (4, 0, 1)])
@pytest.mark.parametrize("confident", [True, False])
def test_parts_merge_to_the_whole_exactly(sizes: tuple[int, ...], confident: bool) -> None:
    pairs = random_pairs(5)
    rng = np.random.default_rng(0)
    confidences = [rng.random(truth.shape, dtype=np.float32) if confident else None for _, truth in pairs]
    images = [(*pair, confidence) for pair, confidence in zip(pairs, confidences, strict=True)]
    whole, merged = (Evaluation(NAMES, SUBSETS, boundary_ratio=0.1) for _ in range(2))
    for image in images:
        whole.update(*image)
    for size in sizes:
        part = merged.part()
        for _ in range(size):
            part.update(*images.pop(0))
        merged.merge(part)
    assert merged.report().to_dict() == whole.report().to_dict()
    assert (merged.report().calibration is not None) == confident


def test_only_parts_of_the_same_evaluation_merge() -> None:
    evaluation = Evaluation(NAMES, SUBSETS)
    for other in (Evaluation(NAMES), Evaluation(NAMES[:3], {}), Evaluation(NAMES, SUBSETS, boundary_ratio=0.1)):
        with pytest.raises(ValueError, match="cannot merge"):
            evaluation.merge(other)
    image = np.zeros((2, 2), np.uint8)
    evaluation.update(image, image)
    part = evaluation.part()
    part.update(image, image, np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="every image, or of none"):
        evaluation.merge(part)
    assert evaluation.report(Bootstrap(samples=1)).images == 1


def write_cityscapes(root: Path, images: int) -> None:
    """Truths of official ids below gtFine/val, predictions of train ids below out."""
    for index, (prediction, truth) in enumerate(random_pairs(images)):
        raw = np.array([7, 8, 11], np.uint8)[np.minimum(truth, 2)]
        raw[truth == 255] = 0
        save_png(root / "gtFine" / "val" / "city" / f"city_{index:06d}_gtFine_labelIds.png", raw)
        save_png(root / "out" / f"city_{index:06d}_leftImg8bit.png", prediction)


def test_scores_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, 7)
    corpus = Corpus.from_mapping({"corpus": "cityscapes", "root": str(tmp_path)}, 19)
    classes = load_class_table("cityscapes")
    reports = []
    for workers in (0, 1, 4):
        evaluation = Evaluation(classes.names, classes.subsets)
        folders = (tmp_path / "gtFine" / "val", tmp_path / "out")
        score(evaluation, *folders, corpus=corpus, split="val", workers=workers)
        reports.append(evaluation.report().to_dict())
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["images"] == 7


def test_the_first_bad_file_is_named_whichever_thread_finds_it(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, 6)
    for index in (2, 4):
        (tmp_path / "out" / f"city_{index:06d}_leftImg8bit.png").write_bytes(b"?")
    corpus = Corpus.from_mapping({"corpus": "cityscapes", "root": str(tmp_path)}, 19)
    classes = load_class_table("cityscapes")
    folders = (tmp_path / "gtFine" / "val", tmp_path / "out")
    with pytest.raises(DataError, match="city_000002_leftImg8bit"):
        score(Evaluation(classes.names), *folders, corpus=corpus, split="val", workers=3)


# ---- the report ----


def test_the_dictionary_is_json_and_keeps_the_keys_of_the_confusion_matrix() -> None:
    evaluation = evaluated(random_pairs(2))
    report = json.loads(json.dumps(evaluation.report().to_dict(), allow_nan=False))
    assert report.items() >= evaluation.confusion.to_dict(NAMES, SUBSETS).items()
    assert report["protocols"]["2"]["classes"] == ["road", "car"]
    assert report["protocols"]["2"]["outside_counted"] == report["miou_subsets"]["2"]
    assert report["confusion"] == evaluation.confusion.counts.tolist()
    assert report["images"] == 2
    assert report["calibration"] is None
    assert report["iou"]["person"] is None
    assert report["bootstrap"]["iou"]["person"] == [None, None]
    assert {key: report["bootstrap"][key] for key in ("samples", "seed", "level")} == {
        "samples": 1000,
        "seed": 0,
        "level": 95,
    }
    assert set(report["boundary_iou"]) == {"ratio", "iou", "mean"}


def test_what_is_predicted_where_nothing_is_known_counts_nowhere() -> None:
    """Not even where it is no id."""
    evaluation = evaluated([(np.array([[0, 0, 777]]), np.array([[0, 0, 255]]))])
    assert evaluation.report().boundary.iou[0] == evaluation.report().miou.value == 100


# ---- the Cityscapes server's scorer ----


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """cityscapesscripts, set to the semantic score of classes, silent and writing nothing."""
    pytest.importorskip("cityscapesscripts", reason="a development dependency, requirements-dev.txt")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    scorer = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    for setting in ("evalInstLevelScore", "JSONOutput"):
        monkeypatch.setattr(scorer.args, setting, False)
    monkeypatch.setattr(scorer.args, "quiet", True)
    return scorer


def test_scores_equal_those_of_cityscapesscripts_to_the_last_digit(official: ModuleType, tmp_path: Path) -> None:
    """From the files that both read: labels as official ids; predictions as train ids here, exported as ids there."""
    classes = load_class_table("cityscapes")
    assert classes.label_ids is not None
    rng = np.random.default_rng(0)
    truths, exported = [], []
    for index in range(4):
        stem = f"city_{index:06d}_000019"
        raw = cv2.resize(rng.integers(0, 34, (8, 16), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST)
        raw[raw == 31] = 0  # no train anywhere in the truth, few in the predictions
        lookup = np.full(34, 255)
        lookup[list(classes.label_ids)] = range(19)
        predicted = np.where(rng.random(raw.shape) < 0.4, rng.integers(0, 19, raw.shape), lookup[raw])
        predicted = np.where(rng.random(raw.shape) < 0.05, 255, predicted).astype(np.uint8)
        truths.append(tmp_path / "gtFine" / "val" / "city" / f"{stem}_gtFine_labelIds.png")
        exported.append(tmp_path / "ids" / f"{stem}_leftImg8bit.png")
        save_png(truths[-1], raw)
        save_png(tmp_path / "trainids" / exported[-1].name, predicted)
        save_png(exported[-1], to_label_ids(predicted, classes.label_ids))
    theirs = official.evaluateImgLists([*map(str, exported)], [*map(str, truths)], official.args)

    corpus = Corpus.from_mapping({"corpus": "cityscapes", "root": str(tmp_path)}, 19)
    ours = Evaluation(classes.names, classes.subsets)
    score(ours, tmp_path / "gtFine" / "val", tmp_path / "trainids", corpus=corpus, split="val")
    report = ours.report(Bootstrap(samples=1))
    for name, measured in zip(classes.names, report.iou, strict=True):
        assert measured.value == 100.0 * theirs["classScores"][name], name
    assert report.miou.value == pytest.approx(100.0 * theirs["averageScoreClasses"], rel=1e-13)
    assert report.iou[classes.names.index("train")].value == 0
    assert len({measured.value for measured in report.iou}) == 19


def test_label_ids_are_the_official_ones_and_no_answer_is_unlabelled() -> None:
    classes = load_class_table("cityscapes")
    assert classes.label_ids is not None
    exported = to_label_ids(np.array([[0, 18, 255]], np.uint8), classes.label_ids)
    assert exported.dtype == np.uint8
    assert exported.tolist() == [[7, 33, 0]]
