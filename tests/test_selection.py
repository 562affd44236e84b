"""Choosing checkpoints without labels: criteria against naive loops, collapsed networks, ranks, and a run's folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.conftest import Script
from tests.test_engine import train
from utils import datasets, networks
from utils.choose import select
from utils.run_folder import read_run
from utils.selection import CRITERIA, Tally, agreement, agreement_iou, choose, joint, label_map, spearman

C = 4


pytestmark = pytest.mark.usefixtures("one_thread")


def answers(seed: int, *, sharpness: float = 3.0, size: tuple[int, int] = (6, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(C, *size, generator=generator)).softmax(dim=0)


def features_of(labels: Tensor, *, noise: float, seed: int = 0) -> Tensor:
    """(5, h, w): a place per class, with noise around it."""
    generator = torch.Generator().manual_seed(seed)
    places = 10 * torch.randn(C, 5, generator=torch.Generator().manual_seed(99))
    return places[labels].permute(2, 0, 1) + noise * torch.randn(5, *labels.shape, generator=generator)


def sure(labels: Tensor) -> Tensor:
    """Probabilities (C, h, w) of a network without a doubt."""
    return torch.nn.functional.one_hot(labels, C).permute(2, 0, 1).float()


def tally(*images: tuple[Tensor, Tensor, Tensor]) -> Tally:
    made = Tally(C)
    for image in images:
        made.add(*image)
    return made


# ---- criteria ----


def test_criteria_equal_naive_loops() -> None:
    images = [
        (answers(seed), answers(seed + 10), features_of(answers(seed).argmax(0), noise=2.0, seed=seed))
        for seed in range(3)
    ]
    scores = tally(*images).scores()
    confidence: list[list[float]] = [[] for _ in range(C)]
    certainty: list[list[float]] = [[] for _ in range(C)]
    mean, entropies, pairs = np.zeros(C), [], []
    for probabilities, mirrored, _ in images:
        for y, x in np.ndindex(6, 8):
            p = [float(value) for value in probabilities[:, y, x]]
            answer = p.index(max(p))
            entropy = -sum(value * math.log(value) for value in p)
            confidence[answer].append(max(p))
            certainty[answer].append(1 - entropy / math.log(C))
            entropies.append(entropy)
            mean += np.array(p) / (3 * 48)
            pairs.append((answer, int(mirrored[:, y, x].argmax())))
    assert scores["confidence"] == pytest.approx(sum(np.mean(row) for row in confidence) / C, rel=1e-5)
    assert scores["certainty"] == pytest.approx(sum(np.mean(row) for row in certainty) / C, rel=1e-5)
    diversity = -sum(value * math.log(value) for value in mean)
    assert scores["information"] == pytest.approx((diversity - np.mean(entropies)) / math.log(C), rel=1e-5)
    overlaps = [sum(a == b == c for a, b in pairs) / max(sum(c in pair for pair in pairs), 1) for c in range(C)]
    assert scores["flips"] == pytest.approx(sum(overlaps) / C)


def test_margin_equals_a_naive_silhouette() -> None:
    images = [
        (answers(seed), answers(seed), features_of(answers(seed).argmax(0), noise=4.0, seed=seed)) for seed in range(4)
    ]
    vectors: dict[int, list[np.ndarray]] = {}
    for probabilities, _, features in images:
        label = probabilities.argmax(0)
        for category in label.unique().tolist():
            vectors.setdefault(category, []).append(features[:, label == category].mean(dim=1).numpy())
    centroids = {category: np.mean(rows, axis=0) for category, rows in vectors.items()}
    means = []
    for category, rows in vectors.items():
        values = []
        for row in rows:
            own = np.abs(row - centroids[category]).sum()
            other = min(np.abs(row - centroid).sum() for name, centroid in centroids.items() if name != category)
            values.append((other - own) / max(other, own))
        means.append(np.mean(values))
    assert all(len(rows) > 1 for rows in vectors.values())
    assert tally(*images).scores()["margin"] == pytest.approx(sum(means) / C, rel=1e-4)


def test_a_stray_answer_is_no_class_well_apart() -> None:
    """A class answered in a single image is its own centroid, whatever it is worth."""
    labels = torch.arange(2).repeat_interleave(24).view(6, 8)
    stray = labels.clone()
    stray[0, 0] = 2
    images = [(sure(labels), sure(labels), features_of(labels, noise=4.0, seed=seed)) for seed in range(8)]
    with_stray = [(sure(stray), sure(stray), images[0][2]), *images[1:]]
    assert tally(*with_stray).scores()["margin"] == pytest.approx(tally(*images).scores()["margin"], rel=0.1)


def test_a_perfect_network_scores_one_everywhere() -> None:
    labels = torch.arange(C).repeat_interleave(8).view(4, 8)
    image = (sure(labels), sure(labels), features_of(labels, noise=0.0))
    assert tally(image, image).scores() == pytest.approx(dict.fromkeys(set(CRITERIA) - {"teacher"}, 1.0))


def test_a_collapsed_network_loses_to_a_mediocre_one() -> None:
    """One class everywhere, without a doubt: confidence 1, entropy 0, unmoved by mirrors, and worthless."""
    labels = torch.full((6, 8), 2)
    collapsed = tally(*[(sure(labels), sure(labels), features_of(labels, noise=0.1))] * 2).scores()
    doubtful = answers(0, sharpness=4.0)
    decided = doubtful.argmax(0)
    mediocre = tally(*[(doubtful, doubtful, features_of(decided, noise=3.0))] * 2).scores()
    assert all(mediocre[name] > collapsed[name] for name in mediocre)
    assert collapsed["information"] == pytest.approx(0, abs=1e-9)
    assert collapsed["confidence"] == pytest.approx(1 / C)
    same = [labels.numpy().astype(np.uint8)]
    assert agreement(same, same, C) == pytest.approx(1 / C)


def test_a_network_that_knows_nothing_scores_nothing() -> None:
    flat = torch.full((C, 6, 8), 1 / C)
    scores = tally((flat, flat, torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)))).scores()
    assert scores["information"] == pytest.approx(0, abs=1e-9)
    assert scores["certainty"] == pytest.approx(0, abs=1e-9)
    assert scores["margin"] == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_agreement_is_symmetric_and_one_only_for_equal_answers_of_all_classes(pairs: list[tuple[int, int]]) -> None:
    left, right = (np.array(side, dtype=np.uint8) for side in zip(*pairs, strict=True))
    assert agreement([left], [right], 3) == pytest.approx(agreement([right], [left], 3))
    assert (agreement([left], [right], 3) == 1) == (np.array_equal(left, right) and len(set(left.tolist())) == 3)
    assert agreement_iou(joint(left, right, 3)) <= 1


# ---- choosing and ranking ----


def test_the_best_is_chosen_and_of_equals_the_latest() -> None:
    assert choose({10: 0.2, 20: 0.5, 30: 0.4}) == 20
    assert choose({10: 0.5, 20: 0.5, 30: 0.4}) == 20


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_spearman_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    def ranks(values: list[int]) -> list[float]:
        return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]

    left, right = (list(side) for side in zip(*pairs, strict=True))
    found = spearman(left, right)
    if len(set(left)) < 2 or len(set(right)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(left), ranks(right))[0, 1])


def test_spearman_sees_order_alone() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)


# ---- a run's folder ----

TAUGHT: dict[str, Any] = {"num_steps": 4, "save_pred_every": 2, "weights": {"seg": 1.0, "online": 1.0}}


@pytest.mark.parametrize("taught", [False, True])
def test_a_choice_reads_no_label(world: Path, tmp_path: Path, script: Script, taught: bool) -> None:
    """Every label of the target is garbage by then, and the choice is the same."""
    weights = TAUGHT["weights"] if taught else {"seg": 1.0}
    folder = train(world, tmp_path / "run", step1={**TAUGHT, "weights": weights})
    code, output, errors = script("utils.choose", str(folder), "--images", "3")
    assert code == 0, errors
    assert "chosen by information" in output
    first = json.loads((folder / "selection.json").read_text())
    assert first["images"] == 3
    assert first["teacher"] == ("the run's" if taught else "mean of the checkpoints")
    assert {name: sorted(values) for name, values in first["scores"].items()} == {name: ["2", "4"] for name in CRITERIA}
    assert sorted(first["miou_on_target_labels"]) == ["2", "4"]

    kept = tmp_path / "labels"
    shutil.copytree(world / "labels", kept)
    try:
        for path in (world / "labels").iterdir():
            path.write_bytes(b"garbage")
        (folder / "selection.json").unlink()
        code, _, errors = script("utils.choose", str(folder), "--images", "3")
        assert code == 0, errors
        assert json.loads((folder / "selection.json").read_text()) == first
    finally:
        shutil.copytree(kept, world / "labels", dirs_exist_ok=True)


def answers_of(trained: networks.Trained, world: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `Tally.add` takes, of the first, the middle and the last target training image."""
    made = []
    for index in (0, 2, 4):
        image = torch.from_numpy(np.array(Image.open(world / "images" / f"t{index}.png"))).movedim(-1, 0)[None]
        with torch.no_grad():
            plain, mirrored = (trained.network(trained.normalize(shown)) for shown in (image, image.flip(-1)))
        probabilities, turned_back = plain.logits.softmax(dim=1)[0], mirrored.logits.softmax(dim=1)[0].flip(-1)
        made.append((probabilities, turned_back, plain.features[0]))
    return made


@pytest.mark.parametrize("taught", [False, True])
def test_every_checkpoint_is_judged_by_what_it_answers(world: Path, tmp_path: Path, taught: bool) -> None:
    weights = TAUGHT["weights"] if taught else {"seg": 1.0}
    run = read_run(train(world, tmp_path / "run", step1={**TAUGHT, "learning_rate": 0.1, "weights": weights}))
    classes = datasets.class_table(run.config)
    trained = {
        step: networks.trained_network(str(run.folder / f"source_{step}.pth"), run.config, classes, torch.device("cpu"))
        for step in (2, 4)
    }
    seen = {step: answers_of(of, world) for step, of in trained.items()}
    lesson = [first[0] + second[0] for first, second in zip(*seen.values(), strict=True)]
    if taught:
        state = torch.load(run.folder / "last.pt", weights_only=True)["teacher"]
        own = {name.removeprefix("network."): value for name, value in state.items() if name != "updates"}
        trained[4].network.load_state_dict(own)
        lesson = [answer for answer, _, _ in answers_of(trained[4], world)]
    labels = [label_map(answer) for answer in lesson]
    found = select(run, images=3)["scores"]
    for step, images in seen.items():
        expected = tally(*images)
        scores = expected.scores() | {"teacher": agreement(expected.labels, labels, C)}
        assert {name: found[name][step] for name in found} == pytest.approx(scores, abs=1e-5)


def test_a_folder_without_snapshots_is_refused(world: Path, tmp_path: Path, script: Script) -> None:
    folder = train(world, tmp_path / "run", step1={**TAUGHT, "weights": {"seg": 1.0}, "num_steps": 2})
    for path in folder.glob("source_*.pth"):
        path.unlink()
    code, _, errors = script("utils.choose", str(folder))
    assert code == 2
    assert "holds no snapshot source_<update>.pth" in errors
