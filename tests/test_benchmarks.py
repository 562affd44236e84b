"""The benchmarks: how they measure, that they compare, what they print and write. Nothing is asserted of any time."""

from __future__ import annotations

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import alignment, naive
from benchmarks.__main__ import MODULES, line
from benchmarks.iteration import operations
from benchmarks.timing import Case, Result, duration, measure
from tests.conftest import Script

CPU = torch.device("cpu")
STREETS = "configs/streets_source_only.toml"
TINY = alignment.Size(17, 23, 12)
MODES = pytest.mark.parametrize("title", alignment.MODES)


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_each_way_runs_as_often_as_asked_and_the_results_are_compared_once() -> None:
    calls: list[str] = []
    compared: list[tuple[str, str]] = []

    def way(name: str) -> str:
        calls.append(name)
        return name

    case = Case(
        name="it",
        fast=lambda: way("fast"),
        naive=lambda: way("naive"),
        repeats=3,
        naive_repeats=2,
        agree=lambda fast, slow: compared.append((fast, slow)),
    )
    result = measure(case, CPU)
    assert calls == ["fast"] * (1 + 3) + ["naive"] * 2
    assert compared == [("fast", "naive")]
    assert result.naive_s is not None
    assert result.ratio == result.naive_s / result.fast_s
    assert (result.name, result.device) == ("it", "cpu")


def test_ways_that_differ_are_an_error_that_names_the_case() -> None:
    def agree(fast: int, slow: int) -> None:
        assert fast == slow, f"{fast} is not {slow}"

    with pytest.raises(AssertionError, match="sums: fast and naive differ: 3 is not 4"):
        measure(Case(name="sums", fast=lambda: 3, naive=lambda: 4, agree=agree), CPU)
    measure(Case(name="sums", fast=lambda: 4, naive=lambda: 4, agree=agree), CPU)


def test_without_a_naive_way_there_is_no_ratio() -> None:
    result = measure(Case(name="alone", fast=lambda: None), CPU)
    assert (result.naive_s, result.ratio) == (None, None)
    assert line(result).split()[3:5] == ["-", "-"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells what a process held at most")
def test_the_peak_is_what_was_held_at_once_and_not_what_was_held_before() -> None:
    before = np.ones(2**24)  # 128 MiB
    del before

    def fast() -> None:
        for _ in range(2):
            np.ones(2**23)  # 64 MiB, freed before the next

    peak = measure(Case(name="memory", fast=fast), CPU).peak_mb
    assert peak == pytest.approx(64, abs=8)


def test_the_median_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0, 30.0, 38.0])
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: next(clock))
    result = measure(Case(name="it", fast=int, naive=int, repeats=3), CPU)
    assert result == Result("it", 2.0, 8.0, 4.0, result.peak_mb, "cpu")


# -- alignment ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> alignment.Scene:
    return alignment.Scene.random(TINY, device=CPU)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "QUICK", TINY)


@pytest.mark.usefixtures("tiny")
def test_every_mode_of_the_alignment_agrees_with_every_loop() -> None:
    names = []
    for case in alignment.cases(quick=True, device=CPU):
        assert case.naive is not None
        assert case.agree is not None
        fast, slow = case.fast(), case.naive()
        case.agree(fast, slow)
        assert len(slow.losses) > 1
        assert all(loss > 0 for loss in slow.losses.values())
        names.append(case.name.removeprefix("alignment, "))
    stages = [f"{title} / {loop}" for title in alignment.MODES for loop in alignment.LOOPS]
    assert names == [name for name in stages if name != "stage 1 released / re-pooled per pair"]


@MODES
def test_agreement_looks_at_each_loss_and_at_the_gradient(scene: alignment.Scene, title: str) -> None:
    outcome = alignment.Fast(scene, alignment.MODES[title]).iteration()
    alignment.agree(outcome, outcome)
    for name, loss in outcome.losses.items():
        other = outcome._replace(losses={**outcome.losses, name: loss + 0.01})
        with pytest.raises(AssertionError, match=f"the loss '{name}' differs"):
            alignment.agree(outcome, other)
    elsewhere = outcome._replace(gradient=outcome.gradient.flip(-1))
    with pytest.raises(AssertionError, match="the gradients differ by"):
        alignment.agree(outcome, elsewhere)


@MODES
def test_every_iteration_starts_from_the_same_state(scene: alignment.Scene, title: str) -> None:
    fast = alignment.Fast(scene, alignment.MODES[title])
    first, second = fast.iteration(), fast.iteration()
    assert torch.equal(first.gradient, second.gradient)
    assert first.losses == second.losses
    assert fast.method.stuff_bank.inserted.sum() > fast._before[0].sum()  # it did observe


def test_one_loop_pools_each_region_once_and_the_other_again_for_every_pair(
    scene: alignment.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled: list[tuple[int, tuple[naive.Pixel, ...]]] = []
    gap = naive.gap

    def counted(features: torch.Tensor, pixels: list[naive.Pixel]) -> torch.Tensor:
        pooled.append((features.data_ptr(), tuple(pixels)))
        return gap(features, pixels)

    monkeypatch.setattr(naive, "gap", counted)
    alignment.Naive(scene, alignment.MODES["stage 2 released"], naive.PooledOnce).iteration()
    once = list(pooled)
    assert len(once) == len(set(once))
    pooled.clear()
    alignment.Naive(scene, alignment.MODES["stage 2 released"], naive.Reference).iteration()
    assert set(pooled) == set(once)
    counts = {pooled.count(region) for region in pooled}
    assert max(counts) == len(alignment.STUFF) + 1  # an instance: for its matching, and against every stuff class


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a command: runpy warns of a module that runs for the second time."""
    monkeypatch.delitem(sys.modules, "benchmarks.__main__")


@pytest.mark.usefixtures("tiny", "unimported")
def test_the_command_prints_a_table_and_writes_the_same_figures(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    code, printed, _ = script("benchmarks", "alignment", "--quick", "--device", "cpu", "--json", str(file))
    assert code == 0
    content = json.loads(file.read_text())
    assert content["command"] == f"python -m benchmarks alignment --quick --device cpu --json {file}"
    assert content["torch"] == torch.__version__
    figures = content["results"]
    assert len(figures) == len(list(alignment.cases(quick=True, device=CPU)))
    rows = printed.splitlines()[2:]
    for figure, row in zip(figures, rows, strict=True):
        assert list(figure) == ["name", "fast_s", "naive_s", "ratio", "peak_mb", "device"]
        assert row == line(Result(**figure))
        assert figure["device"] == "cpu"


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("aligment",), "there is no benchmark 'aligment'; choose from alignment,"),
        (("alignment", "--device", "tpu"), "'tpu' is unknown; use auto, cpu, cuda"),
        (("alignment", "--quik"), "unknown argument --quik (did you mean --quick?)"),
        (("alignment", "--json", "tests"), "--json: tests is a folder; name a file in it"),
    ],
)
def test_a_mistake_is_one_line(script: Script, arguments: tuple[str, ...], message: str) -> None:
    code, _, errors = script("benchmarks", *arguments)
    assert code == 2
    [line] = errors.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("benchmarks.profile", "--iterations", "0"), "--iterations: '0' is not a whole number of at least 1"),
        (("benchmarks.stream", "--folder", "gone"), "--folder: there is no folder gone"),
        (("benchmarks.demo", "--seed", "-1"), "--seed: '-1' is not a whole number of at least 0"),
        (("benchmarks.translated_source", "gone.toml", "--report-only"), "gone.toml"),
        (("benchmarks.translated_source", STREETS, "--seeds", "0"), "--seeds: '0' is not a whole number"),
        (("benchmarks.translated_source", STREETS, "--metric", "rode"), "there is no class 'rode' (did you mean road"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_said_before_the_work(script: Script, command: tuple[str, ...], message: str) -> None:
    code, printed, errors = script(*command)
    assert (code, printed) == (2, "")
    [line] = errors.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "command",
    [
        ("benchmarks.gradients", "runs/gone"),
        ("benchmarks.stream", "--images", "1"),
        ("benchmarks.translation", "gone.toml"),
        ("dataset.tile", "inria", "--root", "gone", "--output", "tiles"),
        ("tests.soak", "--kills", "0", "--cases", "0"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("here", "here is a folder; name a file in it"),
        ("file/below.json", "file: Not a directory"),
        ("dangling/below.json", "dangling: No such file"),
        (f"{'long' * 62}.json", "File name too long"),
    ],
)
def test_where_no_result_can_be_written_nothing_is_measured(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], place: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("gone")
    before = sorted(tmp_path.iterdir())
    code, printed, errors = script(*command, "--json", place)
    assert (code, printed) == (2, "")
    [line] = errors.splitlines()
    assert "--json" in line
    assert reason in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 6, 5, groups=2),
        nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
    ],
    ids=str,
)
def test_each_gradient_of_a_convolution_costs_what_its_forward_pass_does(layer: nn.Module) -> None:
    """Grouped ones too, which torch's own counter takes for full ones."""
    image = torch.rand(2, 8, 14, 18, requires_grad=True)
    forward = operations(lambda: layer(image))
    assert operations(lambda: layer(image).sum().backward()) == 3 * forward
    assert operations(lambda: layer(image.detach()).sum().backward()) == 2 * forward


@pytest.mark.parametrize("name", MODULES)
def test_every_module_of_cases_has_the_same_way_in(name: str) -> None:
    cases = import_module(f"benchmarks.{name}").cases
    assert inspect.isgeneratorfunction(cases)
    parameters = inspect.signature(cases).parameters.values()
    assert [(parameter.name, parameter.kind) for parameter in parameters] == [
        ("quick", inspect.Parameter.KEYWORD_ONLY),
        ("device", inspect.Parameter.KEYWORD_ONLY),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((61.25, "61.2 s"), (1234, "1234 s"), (1.0, "1 s"), (0.9996, "1 s")),
        *((0.0123, "12.3 ms"), (5e-5, "0.05 ms")),
    ],
)
def test_seconds_have_three_digits_and_a_unit(value: float, text: str) -> None:
    assert duration(value) == text
