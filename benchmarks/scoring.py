"""Scoring pairs of 2048x1024 label PNGs: ours beside the official Cityscapes tool and the published script.

The official tool is cityscapesscripts as it is installed: with its C loop where that was built (it is in the project's
repository, not in the package), else counting in numpy, as the case's name says. What its C loop cannot undercut, the
decoding of both files by Pillow, is a case of its own. All read the same truth; the official tool needs predictions of
official ids, ours of train ids, so both are written.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.timing import Case
from dataset.corpora import Corpus
from dataset.labels import ClassTable, load_class_table, train_id_decoding
from utils.background import WRITERS, in_background
from utils.evaluation import Evaluation
from utils.metrics import ConfusionMatrix, Counts
from utils.strips import class_map

SIZE = (1024, 2048)  # (H, W)
IGNORED = 1  # an official id of no class
REPEATS = 9


class Pair(NamedTuple):
    """The files of one image: truth and prediction of official ids, prediction of train ids."""

    truth: Path
    official: Path
    prediction: Path


def cases(*, quick: bool, device: torch.device) -> Iterator[Case]:
    """One call is one pair, or as many as the name says; everything runs on the CPU, single cases on one core."""
    classes = load_class_table("cityscapes")
    with tempfile.TemporaryDirectory() as folder, _one_opencv_thread():
        pairs = [write_pair(Path(folder), classes, seed) for seed in range(2 if quick else 8)]
        decode = Decoders(classes)
        arrays = decode(pairs[0])
        files, memory = partial(from_files, decode, pairs[0]), partial(count, *arrays)
        for title, naive, agree in _others(pairs[0], classes):
            for source, fast in (("from PNGs", files), ("in memory", memory)):
                yield Case(
                    name=f"confusion of a pair, {source} / {title}",
                    fast=fast,
                    naive=naive,
                    agree=agree,
                    repeats=REPEATS,
                    naive_repeats=REPEATS,
                )
        yield Case(
            name=f"everything of {len(pairs)} pairs, {WRITERS} threads / 1",
            fast=partial(evaluate, decode, pairs, classes, workers=WRITERS),
            naive=partial(evaluate, decode, pairs, classes, workers=0),
            repeats=3,
            naive_repeats=3,
            agree=_same_reports,
        )


# ---- the files ----


def write_pair(folder: Path, classes: ClassTable, seed: int) -> Pair:
    """Regions with smooth outlines, about as long in a PNG as Cityscapes' own, a third of them predicted otherwise."""
    generator = torch.Generator().manual_seed(seed)
    scene, error = torch.randn(2, 1, classes.num_classes, 9, 17, generator=generator)
    truth, predicted = (
        class_map(F.interpolate(logits, size=(65, 129), mode="bicubic")[0], SIZE).numpy()
        for logits in (scene, scene + 0.5 * error)
    )
    official_ids = np.array(classes.label_ids, dtype=np.uint8)
    raw = official_ids[truth]
    raw[-SIZE[0] // 10 :] = IGNORED  # the bonnet
    pair = Pair(*(folder / f"{seed}_{name}.png" for name in Pair._fields))
    for path, values in zip(pair, (raw, official_ids[predicted], predicted), strict=True):
        Image.fromarray(values).save(path)
    return pair


class Decoders:
    """Reads the train ids (H, W) of a pair's prediction and truth."""

    def __init__(self, classes: ClassTable) -> None:
        self.prediction = train_id_decoding(classes.num_classes)
        self.truth = Corpus.from_mapping({"corpus": "cityscapes", "root": "."}, classes.num_classes).decoding

    def __call__(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        return self.prediction.decode(pair.prediction), self.truth.decode(pair.truth)


# ---- ours ----


def count(predicted: np.ndarray, truth: np.ndarray) -> Counts:
    """(C, C) pixels of (true, predicted) train ids."""
    matrix = ConfusionMatrix(19)
    matrix.update(predicted, truth)
    return matrix.counts[:, :-1]


def from_files(decode: Decoders, pair: Pair) -> Counts:
    """What compute_iou.py does for the same scores."""
    return count(*decode(pair))


def evaluate(decode: Decoders, pairs: list[Pair], classes: ClassTable, *, workers: int) -> dict[str, Any]:
    """All of compute_iou.py, boundaries and bootstrap too."""
    evaluation = Evaluation(classes.names, classes.subsets, boundary_ratio=0.005)

    def score(pair: Pair) -> Evaluation:
        part = evaluation.part()
        part.update(*decode(pair))
        return part

    for part in in_background(score, pairs, workers=workers):
        evaluation.merge(part)
    return evaluation.report().to_dict()


# ---- the others ----


def _others(
    pair: Pair, classes: ClassTable
) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any, Any], None] | None]]:
    """(title, a pair's confusion as others count it, comparison of the results)."""
    with contextlib.suppress(ImportError):
        scorer = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        for setting in ("evalInstLevelScore", "evalPixelAccuracy"):
            setattr(scorer.args, setting, False)
        ids = np.array(classes.label_ids)
        counting = "its C loop" if scorer.CSUPPORT else "numpy"
        yield f"cityscapesscripts, {counting}", partial(_official, scorer, pair, ids), np.testing.assert_array_equal
    yield "decoding by Pillow alone", partial(_decode_only, pair), None
    yield "as published", partial(_published, pair, classes), np.testing.assert_array_equal


def _official(scorer: Any, pair: Pair, ids: np.ndarray) -> Counts:
    matrix = scorer.generateMatrix(scorer.args)
    scorer.evaluatePair(str(pair.official), str(pair.truth), matrix, None, None, scorer.args)
    return matrix[np.ix_(ids, ids)].astype(np.int64)


def _decode_only(pair: Pair) -> None:
    for path in (pair.official, pair.truth):
        with Image.open(path) as image:
            np.array(image)


def _published(pair: Pair, classes: ClassTable) -> Counts:
    """Ids mapped one by one, then a histogram of the pixels that are left."""
    with Image.open(pair.prediction) as image:
        predicted = np.array(image)
    with Image.open(pair.truth) as image:
        raw = np.array(image)
    truth = np.full(raw.shape, 255, dtype=np.int64)
    for train_id, official in enumerate(classes.label_ids or ()):
        truth[raw == official] = train_id
    n = classes.num_classes
    known = (truth >= 0) & (truth < n)
    return np.bincount(n * truth[known] + predicted[known], minlength=n**2).reshape(n, n)


def _same_reports(fast: dict[str, Any], naive: dict[str, Any]) -> None:
    assert fast == naive


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
