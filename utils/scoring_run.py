"""A folder of predictions against a folder of truth: what `compute_iou.py` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset.corpora import UNFINISHED, Corpus, DataError, require_finished
from dataset.labels import LabelDecoding, UnknownIdsError, train_id_decoding
from utils import datasets, quick_check, tables
from utils.background import in_background
from utils.config import Config
from utils.console import progress, say
from utils.evaluation import Evaluation
from utils.flags import Options
from utils.json_files import write_json
from utils.notes import say_notes


def score_folders(config: Config, options: Options) -> None:
    """Print the report of two folders; with --json, --csv and --markdown write it, too."""
    say_notes(config, options)
    arguments = options.arguments
    classes = datasets.class_table(config, arguments)
    evaluation = Evaluation(classes.names, classes.subsets, boundary_ratio=config.evaluate.boundary_ratio)
    score(
        evaluation,
        Path(arguments.gt_dir),
        Path(arguments.pred_dir),
        corpus=datasets.corpus(config, "target", classes),
        split=config.evaluate.split,
        workers=datasets.worker_count(config),
    )
    report = evaluation.report()
    tables.publish(report, csv_file=arguments.csv, markdown_file=arguments.markdown)
    if options.json:
        write_json(options.json, report.to_dict())


def score(
    evaluation: Evaluation, truth: Path, predictions: Path, *, corpus: Corpus, split: str, workers: int = 0
) -> None:
    """Score all pairs, by so many threads. Raises DataError naming a prediction that is missing or of another size."""
    for folder in sorted({predictions, *(mark.parent for mark in predictions.rglob(UNFINISHED))}):
        require_finished(folder, "evaluate_cityscapes.py")
    found = _predictions(predictions, corpus)
    pairs = []
    for path in corpus.truths(split, truth):
        prediction = found.pop(_stem(path.name, corpus), None)
        if prediction is None:
            raise DataError(f"{path} has no prediction in {predictions}; run evaluate_cityscapes.py on this split")
        pairs.append((prediction, path))
    quick_check.refuse_train_ids(corpus, [path for _, path in pairs])
    decoding = train_id_decoding(len(evaluation.names))

    def count(pair: tuple[Path, Path]) -> Evaluation:
        part = evaluation.part()
        part.update(*read_pair(*pair, decoding, corpus.decoding))
        return part

    counted = in_background(count, pairs, workers=workers)
    for part in progress(counted, total=len(pairs), description="score", unit="image"):
        evaluation.merge(part)
    quick_check.require_labelled_pixels(evaluation.confusion, f"{truth}: its labels")
    if found:
        say(f"note: {len(found)} predictions have no truth and were not scored, the first is {min(found.values())}")


def read_pair(
    prediction: Path, truth: Path, prediction_decoding: LabelDecoding, truth_decoding: LabelDecoding
) -> tuple[np.ndarray, np.ndarray]:
    """The train ids (H, W) of a prediction and of its truth. Raises DataError when their sizes differ."""
    try:
        predicted = prediction_decoding.decode(prediction)
    except UnknownIdsError as error:
        raise DataError(f"{error.found}; predictions are train ids: those of --save, not of --label-ids") from None
    expected = truth_decoding.decode(truth)
    if expected.shape != predicted.shape:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (predicted, expected)]
        raise DataError(
            f"{prediction} is {sizes[0]}, its truth {truth} is {sizes[1]}; where labels have another size than their "
            "images, evaluate_cityscapes.py --in-memory scores them, and with --save DIR predicts at the labels' size"
        )
    return predicted, expected


def _predictions(folder: Path, corpus: Corpus) -> dict[str, Path]:
    """Stem -> prediction, of every PNG in the folder and below but the coloured ones, which lie beside their own."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of predictions; evaluate_cityscapes.py --save writes one")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        own = path.with_name(f"{path.stem.removesuffix('_color')}.png")
        if own != path and own.is_file():
            continue
        stem = _stem(path.name, corpus)
        if stem in found:
            raise DataError(f"{path} and {found[stem]} are predictions of the same image; remove one")
        found[stem] = path
    return found


def _stem(name: str, corpus: Corpus) -> str:
    """What a truth and its prediction have in common: the name without extension and without the corpus's suffixes."""
    stem = name.rpartition(".")[0]
    for suffix in (corpus.image_suffix, corpus.label_suffix):
        stem = stem.removesuffix(suffix.rpartition(".")[0])
    return stem
