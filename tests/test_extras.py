"""What goes beyond the paper: each part against a naive loop, and as a switch of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.deeplab import build_network
from model.extras.classmix import paste, pasted
from model.extras.entropy import entropy
from model.extras.lessons import Labelled, Lesson, LessonSettings, draws, lesson_loss, lessons
from model.extras.masking import masked
from model.extras.photometric import photometric
from model.extras.teacher import Teacher, TeacherLabels, confident
from tests.test_engine import differences, state_of, train

IGNORE = 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator(seed))


# ---- entropy ----


def test_entropy_is_0_where_the_network_is_sure_and_1_where_it_knows_nothing() -> None:
    sure = torch.full((2, 5, 3, 4), -100.0)
    sure[:, 2] = 0.0
    assert float(entropy(sure)) == pytest.approx(0)
    assert entropy(torch.full((2, 5, 3, 4), -math.log(5))) == pytest.approx(1)


def test_entropy_is_the_mean_over_pixels() -> None:
    log_probabilities = torch.randn(2, 3, 4, 5, generator=generator()).log_softmax(dim=1)
    total = 0.0
    for vector in log_probabilities.permute(0, 2, 3, 1).reshape(-1, 3).double():
        total -= sum(math.exp(value) * value for value in vector.tolist()) / math.log(3)
    assert float(entropy(log_probabilities)) == pytest.approx(total / 40, rel=1e-5)


# ---- teacher ----


def test_a_teacher_is_the_moving_average_of_its_student() -> None:
    torch.manual_seed(0)
    student = build_network("resnet18", num_classes=3, width=2)
    teacher = Teacher(student, momentum=0.9)
    name, parameter = next(iter(student.named_parameters()))
    average = parameter.detach().double().clone()
    for update in range(1, 30):
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape))
        teacher.follow(student)
        keep = min(1 - 1 / (update + 1), 0.9)
        average = keep * average + (1 - keep) * parameter.detach().double()
    torch.testing.assert_close(dict(teacher.network.named_parameters())[name].double(), average, rtol=1e-4, atol=1e-5)


def test_a_teacher_copies_statistics_stays_in_eval_mode_and_learns_nothing() -> None:
    torch.manual_seed(0)
    student = build_network("resnet18", num_classes=3, width=2)
    teacher = Teacher(student, momentum=0.99)
    teacher.train()
    student.train()(torch.randn(2, 3, 64, 64))
    teacher.follow(student)
    for own, theirs in zip(teacher.network.buffers(), student.buffers(), strict=True):
        assert torch.equal(own, theirs)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_pseudo_labels_weigh_as_their_image_is_certain() -> None:
    confidence = torch.tensor([[[0.99, 0.5], [0.97, 0.99]], [[0.1, 0.2], [0.3, 0.968]]])
    pseudo = confident(confidence, torch.zeros(2, 2, 2, dtype=torch.int64), threshold=0.968)
    assert torch.equal(pseudo.weights, torch.tensor([0.75, 0.0])[:, None, None].expand(2, 2, 2))


def test_pseudo_labels_weigh_as_they_are_certain_themselves() -> None:
    confidence = torch.tensor([[[0.99, 0.5], [0.97, 0.968]]])
    pseudo = confident(confidence, torch.zeros(1, 2, 2, dtype=torch.int64), threshold=0.968, weighted_by="pixel")
    assert pseudo.weights.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]


def test_a_teacher_that_knows_nothing_says_so_in_the_loss() -> None:
    confidence = torch.tensor([[[0.99, math.nan]], [[0.99, 0.99]]])
    labels = torch.tensor([[[2, 3]], [[1, 2]]])  # 3: what a NaN is called, and no class
    for weighted_by in ("image", "pixel"):
        pseudo = confident(confidence, labels, threshold=0.9, weighted_by=weighted_by)
        assert pseudo.labels.max() < 3
        losses = pseudo.weights.mean(dim=(1, 2))
        assert losses[0].isnan()
        assert losses[1] == 1


# ---- ClassMix ----


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4))
def test_half_of_the_classes_are_pasted_whole(seed: int, num_classes: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    some = rng.choice([*range(num_classes), IGNORE], size=rng.integers(1, num_classes + 2), replace=False)
    labels = torch.from_numpy(rng.choice(some, (batch, 5, 7)))
    mask = pasted(labels, num_classes=num_classes, generator=generator(seed))
    for label, chosen in zip(labels, mask, strict=True):
        present = set(label.unique().tolist()) - {IGNORE}
        taken = {category for category in present if chosen[label == category].any()}
        assert all(chosen[label == category].all() for category in taken)
        assert len(taken) == (len(present) + 1) // 2
        assert not chosen[label == IGNORE].any()


def test_every_class_has_its_turn() -> None:
    labels = torch.arange(4).repeat_interleave(4).view(1, 4, 4)
    taken = [pasted(labels, num_classes=4, generator=generator(seed))[0, :, 0] for seed in range(200)]
    share = torch.stack(taken).double().mean(dim=0)
    assert ((share - 0.5).abs() < 0.12).all()


def test_what_is_mixed_is_source_under_the_mask_and_target_beside_it() -> None:
    source, target = images(2, 9, 12, seed=1), images(2, 9, 12, seed=2)
    mask = torch.rand(2, 9, 12, generator=generator()) < 0.5
    mixed = paste(mask, source, target)
    for b, y, x in np.ndindex(2, 9, 12):
        assert torch.equal(mixed[b, :, y, x], (source if mask[b, y, x] else target)[b, :, y, x])


# ---- masking and colours ----


def test_blocks_are_covered_whole_by_the_mean_colour() -> None:
    original = images(2, 40, 70)
    covered = masked(original, block=16, ratio=0.5, generator=generator())
    mean = original.double().mean(dim=(2, 3)).round()
    for b in range(2):
        for top in range(0, 40, 16):
            for left in range(0, 70, 16):
                block = covered[b, :, top : top + 16, left : left + 16]
                kept = torch.equal(block, original[b, :, top : top + 16, left : left + 16])
                assert kept or bool((block == mean[b][:, None, None]).all())
    share = masked(images(1, 512, 512), block=8, ratio=0.7, generator=generator(3))
    assert float((share == images(1, 512, 512)).all(dim=1).double().mean()) == pytest.approx(0.3, abs=0.03)


def test_colours_change_each_image_in_its_own_way_and_only_a_little() -> None:
    same = images(1, 32, 48).float().mul(0.3).add(80).to(torch.uint8).expand(4, -1, -1, -1)
    changed = photometric(same, generator=generator())
    assert changed.shape == same.shape
    assert changed.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 4
    assert (changed.float().mean(dim=(2, 3)) - same.float().mean(dim=(2, 3))).abs().max() < 60


def test_half_of_the_images_are_blurred() -> None:
    edge = torch.full((200, 3, 8, 8), 90, dtype=torch.uint8)
    edge[..., 4:] = 150
    changed = photometric(edge, generator=generator())
    blurred = (changed[:, 0, 4, 2] != changed[:, 0, 4, 3]).double().mean()  # columns of the same side
    assert 0.3 < float(blurred) < 0.55  # the weakest change no byte


def test_hues_turn_either_way() -> None:
    red = torch.tensor([160, 90, 90], dtype=torch.uint8)[:, None, None].expand(200, 3, 4, 4)
    green, blue = photometric(red, generator=generator())[:, 1:].float().mean(dim=(2, 3)).T
    assert 0.4 < float((green > blue).double().mean()) < 0.6
    assert bool((blue > green).any())


# ---- lessons ----


def test_of_two_sizes_what_they_have_in_common_is_mixed() -> None:
    source = Labelled(images(2, 30, 80), torch.randint(0, 4, (2, 30, 80), generator=generator()))
    target = images(2, 40, 60)
    pseudo = TeacherLabels(torch.randint(0, 4, (2, 40, 60), generator=generator(1)), torch.full((2, 40, 60), 0.25))
    (lesson,) = lessons(
        {"mixed", "seg"}, source, target, pseudo, num_classes=4, settings=LessonSettings(), generator=generator(2)
    )
    assert lesson.images.shape == (2, 3, 30, 60)
    assert lesson.labels.shape == lesson.weights.shape == (2, 30, 60)
    assert set(lesson.weights.unique().tolist()) == {0.25, 1.0}


def test_what_is_mixed_may_lie_anywhere_in_the_larger() -> None:
    rows = torch.arange(6)[None, :, None].expand(1, 6, 4)
    source, target = Labelled(images(1, 6, 4), rows), images(1, 3, 4)
    pseudo = TeacherLabels(torch.full((1, 3, 4), 9), torch.ones(1, 3, 4))
    wanted, seen = {"mixed"}, set()
    for seed in range(60):
        (lesson,) = lessons(
            wanted, source, target, pseudo, num_classes=10, settings=LessonSettings(), generator=generator(seed)
        )
        seen |= set(lesson.labels.unique().tolist())
    assert seen == {*range(6), 9}


def test_a_lessons_loss_weighs_every_pixel() -> None:
    log_probabilities = torch.randn(2, 3, 4, 5, generator=generator()).log_softmax(dim=1)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator(1))
    labels[0, 0] = IGNORE
    weights = torch.rand(2, 4, 5, generator=generator(2))
    total = 0.0
    for b, y, x in np.ndindex(2, 4, 5):
        if labels[b, y, x] != IGNORE:
            total -= float(weights[b, y, x] * log_probabilities[b, labels[b, y, x], y, x])
    lesson = Lesson("online", images(2, 4, 5), labels, weights)
    assert float(lesson_loss(log_probabilities, lesson)) == pytest.approx(total / 40, rel=1e-5)


def test_draws_depend_on_seed_update_and_pair() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    numbers = [torch.rand(4, generator=draws(*key)).tolist() for key in keys]
    assert len({tuple(row) for row in numbers}) == 4
    assert torch.rand(4, generator=draws(0, 1, 0)).tolist() == numbers[2]


# ---- in a run ----

TAUGHT = {
    "weights": {"seg": 1.0, "adv": 1e-2, "entropy": 1e-2, "online": 1.0, "mixed": 1.0, "masked": 1.0},
    "teacher_threshold": 0.3,
    "mask_block": 16,
    "num_steps": 4,
    "save_pred_every": 2,
    "iter_size": 2,
    "random_mirror": True,
}


def test_a_run_with_a_teacher_resumes_exactly(world: Path, tmp_path: Path) -> None:
    whole = state_of(train(world, tmp_path / "whole", step1=TAUGHT))
    folder = train(world, tmp_path / "run", "step1", "--num-steps-stop", "2", step1=TAUGHT)
    train(world, folder, "step1", "--continue-train", step1=TAUGHT)
    assert differences(whole, state_of(folder)) == []
    assert int(whole["teacher"]["updates"]) == 4
    assert differences(
        whole["teacher"]["network.layer6.conv2d_list.0.weight"], whole["network"]["layer6.conv2d_list.0.weight"]
    )


def test_lessons_move_no_statistics(world: Path, tmp_path: Path) -> None:
    """The first update's forward passes of source and target are the same with lessons as without."""
    brief = {"num_steps": 1, "save_pred_every": 1, "statistics": "both"}
    weights = {"seg": 1.0, "adv": 1e-2}
    plain, taught = {**brief, "weights": weights}, {**brief, "weights": {**weights, "masked": 1.0}}
    first, second = (
        state_of(train(world, tmp_path / name, step1=stage))["network"]
        for name, stage in (("plain", plain), ("taught", taught))
    )
    means = [name for name in first if name.endswith("running_mean")]
    assert means
    assert all(torch.equal(first[name], second[name]) for name in means)
    assert differences(first, second), "the lesson changed no weight"


def test_a_run_weighs_labels_as_its_settings_say(world: Path, tmp_path: Path) -> None:
    brief = {"num_steps": 1, "save_pred_every": 1, "teacher_threshold": 0.3, "weights": {"seg": 1.0, "masked": 1.0}}
    image, pixel = (
        state_of(train(world, tmp_path / by, step1={**brief, "teacher_weights": by}))["network"]
        for by in ("image", "pixel")
    )
    assert differences(image, pixel)


def test_a_weight_of_zero_makes_no_teacher(world: Path, tmp_path: Path) -> None:
    brief = {"num_steps": 1, "save_pred_every": 1}
    assert state_of(train(world, tmp_path / "run", step1=brief))["teacher"] is None
