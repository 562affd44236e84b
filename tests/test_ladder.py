"""The ladder: rungs become runs of equal budgets that are shared, scores follow from them; a small one, climbed."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ladder
from benchmarks.ladder_plan import Job, Recipe, plan, unique
from benchmarks.ladder_report import chart, markdown
from benchmarks.ladder_scores import Outcome, gap_closed, paired, rank_correlation, spread, summarize
from benchmarks.rungs import BY_NAME, RUNGS
from dataset.corpora import DataError
from tests.conftest import Script
from tests.worlds import own_settings, write_own, write_settings
from utils.config import Config, ConfigError, build_config, read_config
from utils.mistakes import MISTAKES
from utils.report.markup import NONE
from utils.selection import CRITERIA, CRITERION

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = ("streets", "camvid_day_to_dusk", "roads_epfl_to_massachusetts", "gta5_to_cityscapes")


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def plain(name: str) -> Recipe:
    return Recipe.read(CONFIGS / f"{name}.toml")


def recipe(name: str, **options: Any) -> Recipe:
    return Recipe.read(CONFIGS / f"{name}.toml", **options) if options else plain(name)


def last(name: str, rung: str, *, seed: int = 0, **options: Any) -> Job:
    return plan(recipe(name, **options), BY_NAME[rung], seed, Path("out"))


def settings(job: Job) -> Config:
    return build_config(job.settings, where=job.key)


# ---- rungs become runs ----


@pytest.mark.parametrize("name", RECIPES)
def test_every_rung_has_the_same_budget(name: str) -> None:
    of_recipe = build_config(read_config(CONFIGS / f"{name}.toml"), where=name)
    budget = of_recipe.step1.last_step + of_recipe.step2.last_step
    for rung in RUNGS:
        chain = last(name, rung.name).chain
        warm_up = sum(job.updates for job in chain[:1] if recipe(name).warm_up)
        assert sum(job.updates for job in chain) - warm_up == budget == recipe(name).budget, rung.name


@hypothesis.settings(max_examples=20)
@given(st.floats(0.01, 3), st.sampled_from(RUNGS))
def test_every_rung_has_the_same_budget_at_any_scale(scale: float, rung: Any) -> None:
    climbed = recipe("roads_epfl_to_massachusetts", scale=scale)
    chain = plan(climbed, rung, 0, Path("out")).chain
    assert sum(job.updates for job in chain) == climbed.budget
    assert climbed.budget == pytest.approx(recipe("roads_epfl_to_massachusetts").budget * scale, abs=2)


@pytest.mark.parametrize("name", RECIPES[:3])
def test_every_stage_leaves_four_snapshots_to_choose_from(name: str) -> None:
    for rung in RUNGS:
        for job in last(name, rung.name).chain:
            if job.updates:
                stage = getattr(settings(job), job.section)
                assert sum(stage.saves_after(step) for step in range(1, stage.last_step + 1)) == 4, job.key


def test_the_warm_up_is_shared_by_all_rungs_of_a_seed_and_by_no_other() -> None:
    warm_ups = {last("streets", rung.name, seed=seed).chain[0].folder for rung in RUNGS for seed in (0, 1)}
    assert len(warm_ups) == 2
    first = last("streets", "oracle").chain[0]
    stage = settings(first).step1
    assert (stage.restore_from, stage.num_steps, stage.learning_rate) == ("random", 500, 2e-3)
    assert settings(first).source["corpus"] == "gta5"
    assert settings(last("streets", "oracle")).step1.restore_from == str(first.folder)


def test_what_is_equal_is_shared_and_what_differs_is_not() -> None:
    plain = "gta5_to_cityscapes"
    first = {rung.name: last(plain, rung.name).chain[0].folder for rung in RUNGS}
    # Stage 1 of the recipe is SIM's, and so is the released one.
    assert len({first[name] for name in ("sim", "released", "configured", "no_separation", "no_aim")}) == 1
    assert first["configured"] not in (first["paper"], first["no_adversary"], first["no_stage2"], first["mixed"])
    ends = {rung.name: last(plain, rung.name).folder for rung in RUNGS}
    # The recipe is the released one: it translates nothing, has no aggregation to leave out and has the adversary.
    # So do ClassMix and rare classes first.
    alike = ("released", "no_image_level", "no_aggregation", "no_mixed", "no_rare", "with_adversary", "configured")
    assert len({ends[name] for name in alike}) == 1
    assert len(set(ends.values())) == len(RUNGS) - len(alike) + 1
    jobs = unique([last(plain, rung.name) for rung in RUNGS])
    assert len(jobs) == len({job.folder for job in jobs})
    places = {job.folder: place for place, job in enumerate(jobs)}
    assert all(places[parent.folder] < places[job.folder] for job in jobs for parent in job.after)


def test_a_run_is_known_by_what_matters_to_its_result() -> None:
    def key(**changes: Any) -> str:
        return last(
            "streets", "configured", changes={name.replace("__", "."): value for name, value in changes.items()}
        ).key

    assert key() == key(run__num_workers=3) == key(run__device="cpu") == key(step2__snapshot_dir="elsewhere")
    others = {key(), key(run__precision="bf16"), key(step1__learning_rate=1e-4), key(step2__aim="adaptive"),
              key(translation__method="fda"), key(pseudo_label__cap=0.8), key(target__size=[128, 64])}  # fmt: skip
    assert len(others) == 7


def test_settings_that_came_later_leave_published_runs_their_names() -> None:
    on_one_core = {"run.device": "cpu", "run.num_workers": 0}
    published = [job.folder.name for job in last("streets", "with_adversary", changes=on_one_core).chain]
    assert published == ["step1-692d49892e", "step1-9afc2a041f", "pseudo_label-baa2f778be", "step2-bd3e8f4a1e"]
    assert last("streets", "configured", changes={"model.freeze_backbone": True}).folder.name != published[-1]


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"translation.method": "histogram", "translation.probability": 0.5}, False),
        ({"step1.weights.masked": 1.0}, False),
        ({"step1.weights": {"seg": 1.0, "entropy": 1.0}}, False),
        ({"step1.statistics": "both"}, False),
        ({"step1.rare_classes": 0.1}, False),
        ({"step1.learning_rate": 1e-4}, True),
        ({"step1.statistics": "kept"}, True),
        ({"source.size": [128, 64]}, True),
    ],
)
def test_overrides_of_the_method_do_not_reach_the_warm_up(changes: dict[str, Any], shared: bool) -> None:
    """Source-only starts there, too, and sees no target image."""
    assert (last("streets", "source_only", changes=changes).key != last("streets", "source_only").key) is shared
    assert last("streets", "configured", changes=changes).key != last("streets", "configured").key


def test_a_recipe_may_start_elsewhere() -> None:
    moved = last("streets", "configured", changes={"step1.restore_from": "runs/roads_source_only/step1"})
    assert moved.chain[0].settings["step1"]["restore_from"] != "runs/roads_source_only/step1"


def test_how_a_teacher_teaches_matters_only_where_there_is_one() -> None:
    for key, value in (("teacher_weights", "pixel"), ("teacher_threshold", 0.9), ("mask_ratio", 0.5)):
        changes = {f"{stage}.{key}": value for stage in ("step1", "step2")}
        for rung, untaught in (("source_only", True), ("sim", True), ("configured", False), ("modern", False)):
            assert (last("streets", rung, changes=changes).key == last("streets", rung).key) is untaught, (key, rung)


@pytest.mark.parametrize("name", RECIPES)
def test_rungs_change_what_they_say(name: str) -> None:
    of = {rung.name: settings(last(name, rung.name)) for rung in RUNGS}
    labels_alone = {"seg": 1.0}
    kept = plain(name).config.step1.statistics == "kept"
    for rung, domain in (("source_only", "source"), ("control", "target"), ("oracle", "source")):
        weights = vars(of[rung].step1.weights)
        assert {term: weight for term, weight in weights.items() if weight} == labels_alone
        assert of[rung].step1.statistics == ("kept" if kept else domain)
    adversary = vars(of["adversary"].step1.weights)
    assert {term for term, weight in adversary.items() if weight} == {"seg", "adv"}
    assert of["sim"].step2.label_map == "merged"
    assert of["no_separation"].step2.weights.separation == of["no_adversary"].step1.weights.adv == 0
    assert of["with_adversary"].step1.weights.adv == of["with_adversary"].step2.weights.adv == 1e-3
    assert (of["no_aim"].step2.aim, of["rare"].step2.rare_classes) == ("none", 0.01)
    modern = of["modern"].step1
    assert (modern.weights.mixed, modern.weights.masked, modern.rare_classes, modern.aim, modern.isia) == (
        *(1, 1, 0.01), "adaptive", "paper"
    )  # fmt: skip
    bare = replace(modern.weights, separation=0.0, aggregation=0.0, instances=0.0)
    assert of["modern_bare"].step1.weights == bare
    for key, value in of["oracle"].source.items():
        assert of["oracle"].target[key] == value
    untouched = {key: of["configured"].source[key] for key in ("root", "size")}
    assert all(of["mixed"].source[key] == value for key, value in untouched.items())


@pytest.mark.parametrize("name", ["camvid_day_to_dusk", "roads_epfl_to_massachusetts"])
def test_statistics_that_the_recipe_keeps_are_kept_on_every_rung(name: str) -> None:
    ends = {rung.name: last(name, rung.name) for rung in RUNGS}
    assert all(settings(job).step1.statistics == settings(job).step2.statistics == "kept" for job in ends.values())
    assert ends["control"].folder == ends["source_only"].folder


def test_the_sibling_recipes_are_what_the_rungs_make_of_the_recipe() -> None:
    for stem, name in (("camvid", "camvid_day_to_dusk"), ("roads", "roads_epfl_to_massachusetts")):
        for rung in ("source_only", "oracle"):
            sibling = build_config(read_config(CONFIGS / f"{stem}_{rung}.toml"), where=stem)
            ours = settings(last(name, rung))
            assert (ours.step1.weights, ours.step1.statistics) == (sibling.step1.weights, sibling.step1.statistics)
            assert [ours.source[key] for key in ("root", "train_list", "size")] == [
                sibling.source[key] for key in ("root", "train_list", "size")
            ]


def test_a_recipe_of_one_stage() -> None:
    chain = last("roads_epfl_to_massachusetts", "configured", stages=1).chain
    assert [job.section for job in chain] == ["step1"]
    assert chain[0].folder == last("roads_epfl_to_massachusetts", "no_stage2").folder


def test_image_level_of_baselines() -> None:
    translated = {"translation.method": "fda"}
    methods = {rung.name: settings(last("streets", rung.name, changes=translated)).translation.method for rung in RUNGS}
    stored = {name for name, method in methods.items() if method == "none"}
    assert stored == {"source_only", "control", "adversary", "no_image_level", "oracle"}


# ---- scores ----


def outcome(rung: str, seed: int, *scores: float, chosen: int = 1, **changes: Any) -> Outcome:
    """A run of checkpoints 1, 2, ... with these mIoUs; every criterion rises with the update."""
    steps = range(1, len(scores) + 1)
    values: dict[str, Any] = {
        "rung": rung,
        "seed": seed,
        "miou": dict(zip(steps, scores, strict=True)),
        "iou": {step: {"road": score / 2, "car": None} for step, score in zip(steps, scores, strict=True)},
        "criteria": {name: {step: float(step) for step in steps} for name in CRITERIA},
        "chosen": dict.fromkeys(CRITERIA, chosen),
        "seconds": 60.0,
        "commands": [],
        "device": "cpu",
        "folder": f"{rung}{seed}",
    }
    return Outcome(**(values | changes))


percent = st.integers(0, 10**6).map(lambda count: count / 10**4)  # no gap of 1e-313 to take a share of
numbers = st.lists(percent, min_size=3, max_size=3)


@given(numbers, numbers, numbers)
def test_summaries_equal_naive_formulas(low: list[float], ours: list[float], high: list[float]) -> None:
    rungs = {"source_only": low, "configured": ours, "oracle": high}
    outcomes = [outcome(name, seed, score) for name, scores in rungs.items() for seed, score in enumerate(scores)]
    found = summarize(outcomes, "miou")
    last_ = found["configured"]["last"]
    assert last_["mean"] == pytest.approx(sum(ours) / 3)
    assert last_["std"] == pytest.approx(math.sqrt(sum((x - sum(ours) / 3) ** 2 for x in ours) / 2), abs=1e-9)
    shares = [100 * (o - l) / (h - l) for l, o, h in zip(low, ours, high, strict=True) if h > l]  # noqa: E741
    expected = statistics.fmean(shares) if shares else None
    assert last_["gap_closed"]["mean"] == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-6))
    differences = [a - b for a, b in zip(low, ours, strict=True)]
    against = found["source_only"]["last"]["difference_to_configured"]
    assert against["mean"] == pytest.approx(statistics.fmean(differences), abs=1e-9)
    assert against["standard_error"] == pytest.approx(statistics.stdev(differences) / math.sqrt(3), abs=1e-9)


def test_the_three_checkpoints_are_kept_apart() -> None:
    found = summarize([outcome("configured", 0, 20.0, 50.0, 40.0, chosen=1)], "miou")["configured"]
    assert found["last"]["mean"] == 40
    assert found["best_selected_on_target_labels"]["mean"] == 50
    assert found["selected_without_labels"]["mean"] == 20
    assert found["last"]["std"] is None
    road = summarize([outcome("configured", 0, 20.0, 50.0, 40.0)], "road")["configured"]
    assert road["last"]["mean"] == 20


def test_of_equal_checkpoints_the_earliest_is_best() -> None:
    assert outcome("configured", 0, 20.0, 50.0, 50.0).steps("miou")["best"] == 2


def test_a_class_that_is_neither_there_nor_predicted_scores_nothing() -> None:
    assert outcome("configured", 0, 20.0, 50.0).measured("car") == {1: 0, 2: 0}


def test_a_run_that_nobody_looked_at_has_no_choice() -> None:
    found = summarize([replace(outcome("configured", 0, 20.0), criteria={}, chosen={})], "miou")
    assert found["configured"]["selected_without_labels"]["mean"] is None


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("1,2,5", [1, 2, 5]), ("2,", [2])])
def test_seeds_are_counted_or_named(text: str, seeds: list[int]) -> None:
    assert ladder._seeds(text) == seeds


def test_only_common_seeds_are_paired() -> None:
    assert paired({0: 5.0, 1: 7.0, 2: 100.0}, {0: 4.0, 1: 5.0, 9: 0.0}) == {
        "mean": 1.5, "standard_error": pytest.approx(0.5), "n": 2
    }  # fmt: skip
    assert paired({0: 1.0}, {})["mean"] is None
    assert spread([])["mean"] is None


def test_no_gap_no_share() -> None:
    assert gap_closed(30, 20, 40) == 50
    assert gap_closed(10, 20, 40) == -50
    assert gap_closed(30, 40, 40) is None


def test_rank_correlation_counts_a_shared_run_once() -> None:
    rising, falling = outcome("a", 0, 1.0, 2.0, 3.0, chosen=3), outcome("b", 0, 4.0, 2.0, 1.0, chosen=2)
    found = rank_correlation([rising, replace(rising, rung="c"), falling], "miou")[CRITERION]
    assert found["within_runs"]["mean"] == pytest.approx(0)
    assert found["within_runs"]["n"] == 2
    assert found["checkpoints"] == 6
    assert found["lost_to_best"]["mean"] == 1  # nothing and 2
    assert found["lost_by_last"]["mean"] == 1.5  # nothing and 3
    assert rank_correlation([], "miou") == {}


# ---- on paper ----


def result_of(outcomes: Sequence[Outcome], **changes: Any) -> dict[str, Any]:
    rungs = {rung: {"title": BY_NAME[rung].title, "same_as": None} for rung in ("source_only", "configured", "oracle")}
    return {
        "recipe": "tiny", "command": "python -m benchmarks.ladder tiny.toml", "complete": True, "metric": "miou",
        "seeds": [0, 1], "budget": {"rung": 24, "warm_up": 0}, "out": "runs", "devices": ["cpu"], "torch": ["2.6"],
        "rungs": rungs, "scores": summarize(outcomes, "miou"), "selection": rank_correlation(outcomes, "miou"),
        "runs": [vars(outcome) for outcome in outcomes],
    } | changes  # fmt: skip


def table_rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| ")]


def test_the_page_shows_every_rung_and_says_when_it_is_partial() -> None:
    outcomes = [outcome("source_only", seed, 20.0 + seed) for seed in (0, 1)]
    outcomes += [outcome("oracle", seed, 40.0 + seed) for seed in (0, 1)]
    page = markdown(result_of(outcomes, complete=False), "tiny.svg")
    rows = table_rows(page)
    assert any("source-only | 20.5 ± 0.7 | 0 ± 0" in row for row in rows)
    assert any(row.startswith(f"| as configured | {NONE}") for row in rows)
    assert "**Partial**" in page
    assert "**Partial**" not in markdown(result_of(outcomes), "tiny.svg")


def test_a_row_shows_the_difference_with_its_sign_and_each_choice_in_its_own_column() -> None:
    outcomes = [outcome("configured", seed, 30.0, 35.0 + seed, 33.0 + seed) for seed in (0, 1)]
    outcomes += [outcome("oracle", seed, 40.0 + 2 * seed) for seed in (0, 1)]
    rows = table_rows(markdown(result_of(outcomes), "tiny.svg"))
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    (configured,), (oracle,) = ([row for row in shown if row[0] == name] for name in ("as configured", "oracle"))
    assert configured[1] == "33.5 ± 0.7"
    assert configured[4:6] == ["30.0 ± 0.0", "35.5 ± 0.7"]
    assert oracle[3] == "+7.5 ± 0.5"


def test_the_page_says_which_rungs_are_of_which_device() -> None:
    outcomes = [outcome("source_only", 0, 20.0), outcome("oracle", 0, 40.0, device="an abacus")]
    page = markdown(result_of(outcomes) | {"devices": ["an abacus", "cpu"]}, "tiny.svg")
    assert "another one rounds otherwise: cpu: source-only; an abacus: oracle." in page
    assert "rounds otherwise" not in markdown(result_of(outcomes), "tiny.svg")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_picture_is_a_whole_svg_with_a_mark_per_score(count: int) -> None:
    outcomes = [outcome(rung, seed, 30.0, 35.0) for rung in ("source_only", "oracle") for seed in range(count)]
    root = ElementTree.fromstring(chart(result_of(outcomes)))
    marks = [element for element in root.iter() if element.get("class") == "last" and element.tag.endswith("circle")]
    assert len(marks) == 1 + (2 if count else 0), "one in the legend, one a rung"


# ---- climbing ----


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of four updates per stage, in the folder that the ladder is run from."""
    write_own(tmp_path, images=2, validation=1)
    brief = {"num_steps": 4, "batch_size": 1}
    stages: dict[str, Any] = {name: {**own_settings(tmp_path)[name], **brief} for name in ("step1", "step2")}
    made = own_settings(tmp_path, **stages)
    monkeypatch.chdir(tmp_path)
    return write_settings(tmp_path / "tiny.toml", made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, script: Script) -> list[list[str]]:
    """The scripts that the ladder calls, run in this process."""
    called: list[list[str]] = []

    def call(self: ladder.Runner, job: Job, words: Sequence[str]) -> bool:
        called.append(list(words))
        name, *flags = words[1:] if words[0] == "-m" else (Path(words[0]).name, *words[1:])
        code, output, errors = script(name, *flags)
        job.log_file.write_text(output + errors)
        return code == 0

    monkeypatch.setattr(ladder.Runner, "_call", call)
    return called


def test_a_ladder_is_climbed_resumed_and_reported(
    tiny: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tiny), "--rungs", "source_only,configured,oracle", "--results", "results"]
    ladder.main(command)
    ran = [Path(words[0]).name if words[0] != "-m" else words[1] for words in calls]
    trained = ["train_step1.py", "utils.choose"]
    assert ran == [*trained, "train_step1.py", "Generate_Pseudo_Label.py", "train_step2.py", "utils.choose", *trained]

    result = json.loads(Path("results/ladder_tiny.json").read_text())
    assert result["complete"]
    assert list(result["scores"]) == ["source_only", "configured", "oracle"]
    for run in result["runs"]:
        assert sorted(map(int, run["miou"])) == ([1, 2, 3, 4] if run["rung"] == "configured" else [2, 4, 6, 8])
        manifest = json.loads((Path(run["folder"]) / "manifest.json").read_text())["result"]
        score = result["scores"][run["rung"]]
        assert score["last"]["mean"] == manifest["last"]["miou"]
        assert score["best_selected_on_target_labels"]["mean"] == manifest["best_selected_on_target_labels"]["miou"]
    assert "as configured" in Path("results/ladder_tiny.md").read_text()
    ElementTree.parse("results/ladder_tiny.svg")

    calls.clear()
    ladder.main(command)
    assert calls == [], "everything was finished"
    finished = Path(result["runs"][0]["folder"])
    (finished / "manifest.json").unlink()
    ladder.main([*command, "--report-only"])
    said = capsys.readouterr().out
    assert "note: results/ladder_tiny.json holds runs that are not among these, and stays" in said
    assert "results: runs/ladder/tiny/ladder_tiny.json" in said
    assert json.loads(Path("results/ladder_tiny.json").read_text()) == result
    assert not json.loads(Path("runs/ladder/tiny/ladder_tiny.json").read_text())["complete"]
    assert calls == []
    ladder.main(command)
    assert [words[-1] for words in calls] == ["--continue-train", str(finished)]
    again = json.loads(Path("results/ladder_tiny.json").read_text())
    assert again["scores"]["source_only"]["last"] == result["scores"]["source_only"]["last"]


def test_a_rung_is_added_to_results_whose_runs_are_gone(tiny: Path, calls: list[list[str]]) -> None:
    results = ["--results", "results", "--rungs"]
    ladder.main([str(tiny), *results, "source_only,configured"])
    before = json.loads(Path("results/ladder_tiny.json").read_text())
    Path("runs").rename("elsewhere")
    calls.clear()
    known = ["--known", "results/ladder_tiny.json"]
    ladder.main([str(tiny), *results, "source_only,configured,oracle", *known])
    oracle = plan(Recipe.read(tiny), BY_NAME["oracle"], 0, Path("runs/ladder/tiny"))
    assert [words[-1] for words in calls] == [str(oracle.config_file), str(oracle.folder)]
    after = json.loads(Path("results/ladder_tiny.json").read_text())
    assert after["complete"]
    assert [run["rung"] for run in after["runs"]] == ["source_only", "configured", "oracle"]
    assert after["runs"][:2] == before["runs"]
    assert after["scores"]["configured"]["last"]["mean"] == before["scores"]["configured"]["last"]["mean"]
    assert after["devices"] == before["devices"]
    assert after["command"].endswith("--rungs source_only,configured,oracle"), "what makes it from nothing"


def test_the_list_says_which_runs_a_known_rung_spares(
    tiny: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    ladder.main([str(tiny), "--results", "results", "--rungs", "configured"])
    Path("runs").rename("elsewhere")
    capsys.readouterr()
    known = ["--list", "--known", "results/ladder_tiny.json", "--rungs"]
    ladder.main([str(tiny), *known, "configured"])
    assert capsys.readouterr().out.count("known)") == 3
    ladder.main([str(tiny), *known, "configured,isia"])
    said = capsys.readouterr().out
    assert said.count("to run)") == 3, "stage 1 and the labels are needed for the other stage 2"
    assert said.count("known)") == 1
    assert "3 runs below runs/ladder/tiny, 8 updates, 8 of them to do" in said
    Path("elsewhere").rename("runs")
    shutil.rmtree(plan(Recipe.read(tiny), BY_NAME["configured"], 0, Path("runs/ladder/tiny")).folder)
    ladder.main([str(tiny), *known, "configured"])
    said = capsys.readouterr().out
    assert (said.count("finished)"), said.count("known)")) == (2, 1)


@pytest.fixture
def known(tiny: Path, calls: list[list[str]]) -> dict[str, Any]:
    """The JSON of a ladder whose runs are gone, results/ladder_tiny.json."""
    ladder.main([str(tiny), "--results", "results", "--rungs", "source_only,configured"])
    Path("runs").rename("elsewhere")
    calls.clear()
    return json.loads(Path("results/ladder_tiny.json").read_text())


def climb(tiny: Path, rungs: str, known: dict[str, Any] | None = None, *flags: str) -> dict[str, Any]:
    """The results of these rungs with what is known, in a folder of their own."""
    Path("known.json").write_text(json.dumps(known))
    shutil.rmtree("again", ignore_errors=True)
    ladder.main([str(tiny), "--known", "known.json", "--results", "again", "--rungs", rungs, *flags])
    return json.loads(Path("again/ladder_tiny.json").read_text())


def test_what_known_results_were_made_with_is_not_forgotten(tiny: Path, known: dict[str, Any]) -> None:
    known |= {"devices": ["an abacus"], "commits": ["before"]}
    found = climb(tiny, "source_only,oracle", known)
    assert "an abacus" in found["devices"]
    assert len(found["devices"]) == 2, "the oracle's, too"
    assert "before" in found["commits"]
    alone = climb(tiny, "oracle", known | {"runs": found["runs"]}, "--report-only")
    assert "an abacus" not in alone["devices"], "it is here itself"


def test_what_nobody_looked_at_is_not_known(tiny: Path, known: dict[str, Any], calls: list[list[str]]) -> None:
    for entry in known["runs"]:
        entry["chosen"] = {} if entry["rung"] == "source_only" else entry["chosen"]
    assert climb(tiny, "source_only,configured", known)["complete"]
    assert [Path(words[0]).name if words[0] != "-m" else words[1] for words in calls] == [
        "train_step1.py",
        "utils.choose",
    ]


@pytest.mark.usefixtures("known")
def test_results_never_lose_what_was_known(tiny: Path, calls: list[list[str]]) -> None:
    before = Path("results/ladder_tiny.json").read_bytes()
    flags = [str(tiny), "--known", "results/ladder_tiny.json", "--results"]
    ladder.main([*flags, "results", "--rungs", "configured"])
    assert [run["rung"] for run in json.loads(Path("runs/ladder/tiny/ladder_tiny.json").read_text())["runs"]] == [
        "configured"
    ]
    with pytest.raises(ConfigError, match="none belongs to this recipe"):
        ladder.main([*flags, "again", "--rungs", "configured", "--seeds", "7,"])
    assert Path("results/ladder_tiny.json").read_bytes() == before
    assert calls == []


DAMAGE: tuple[dict[str, Any], ...] = (
    *({"miou": {}}, {"miou": {"4": None}}, {"seconds": None}, {"chosen": None}),
    {"criteria": {"of_then": {"4": 1.0}}},
)


def test_what_is_no_outcome_is_refused_before_anything_runs(
    tiny: Path, known: dict[str, Any], calls: list[list[str]]
) -> None:
    first, *others = known["runs"]
    damaged = [{"runs": [first | damage, *others]} for damage in DAMAGE]
    changes: list[dict[str, Any]] = [*damaged, {"devices": "cpu"}, {"runs": None}]
    for change in changes:
        with pytest.raises(ConfigError, match="not the JSON of a ladder"):
            climb(tiny, "source_only,oracle", known | change)
    assert calls == []


def test_a_known_run_serves_the_rung_that_it_is_today(tiny: Path, calls: list[list[str]]) -> None:
    ladder.main([str(tiny), "--results", "results", "--rungs", "no_adversary"])
    Path("runs").rename("elsewhere")
    calls.clear()
    without = ["--override", "step1.weights.adv=0.0", "--override", "step2.weights.adv=0.0"]
    known = ["--known", "results/ladder_tiny.json"]
    ladder.main([str(tiny), *without, *known, "--results", "again", "--rungs", "configured"])
    assert calls == []
    assert [run["rung"] for run in json.loads(Path("again/ladder_tiny.json").read_text())["runs"]] == ["configured"]


def test_what_needs_a_run_that_failed_is_left_out_and_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder.Runner, "_make", lambda self, job, final: False)
    said: list[str] = []
    monkeypatch.setattr(ladder, "say", said.append)
    with pytest.raises(SystemExit) as stop:
        ladder.main([str(tiny), "--rungs", "configured", "--results", "results", "--jobs", "2"])
    assert stop.value.code == 1
    left_out = [line.split("/")[-1].split("-")[0] for line in said if line.startswith("left out")]
    assert left_out == ["pseudo_label", "step2"]
    assert not json.loads(Path("results/ladder_tiny.json").read_text())["complete"]


def test_a_run_that_failed_says_why(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ladder.main([str(tiny), "--rungs", "source_only", "--override", "step1.restore_from=nowhere.pth"])
    said = capsys.readouterr().out
    assert ": FAILED after" in said
    assert "  nowhere.pth: neither a weights file nor the folder of a run" in said


def test_what_would_end_a_ladder_after_hours_is_said_before(tiny: Path, calls: list[list[str]], tmp_path: Path) -> None:
    for label in (tmp_path / "labels").glob("t*.png"):
        label.unlink()
    with pytest.raises(DataError, match=r"oracle: .*learns from the target's labels") as mistake:
        ladder.main([str(tiny), "--rungs", "source_only,oracle"])
    assert "\n" not in str(mistake.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(tuple(MISTAKES)):
        ladder.main([str(tiny), "--rungs", "source_only", "--results", "file/results"])
    assert calls == []


def test_the_list_runs_nothing(tiny: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    ladder.main([str(tiny), "--list", "--rungs", "configured,no_image_level", "--seeds", "2"])
    said = capsys.readouterr().out
    assert calls == []
    assert "of configured" in said
    assert "6 runs below runs/ladder/tiny, 16 updates, 16 of them to do" in said
    assert not Path("runs").exists()


def test_a_process_writes_its_log_and_gives_its_code(tmp_path: Path, tiny: Path) -> None:
    job = plan(Recipe.read(tiny), BY_NAME["configured"], 0, tmp_path / "out")
    job.folder.parent.mkdir(parents=True)
    runner = ladder.Runner(Any)  # type: ignore[arg-type]  # a process needs nothing of the ladder
    assert runner._call(job, ["-c", "print('hello')"])
    assert not runner._call(job, ["-c", "raise SystemExit(3)"])
    assert "hello" in job.log_file.read_text()
    assert runner.running == {}


def test_what_still_runs_is_asked_to_end(tiny: Path, tmp_path: Path) -> None:
    job = plan(Recipe.read(tiny), BY_NAME["configured"], 0, tmp_path / "out")
    job.folder.parent.mkdir(parents=True)
    runner = ladder.Runner(Any)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(runner._call, job, ["-c", "import time; time.sleep(100)"])
        while not runner.running:
            time.sleep(0.01)
        runner._end_all()
        assert ended.result(timeout=30) is False


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--rungs", "sorce_only"), "did you mean source_only"),
        (("--seeds", "1,1"), "neither a number"),
        (("--seeds", ","), "neither a number"),
        (("--seeds", "0"), "neither a number"),
        (("--seeds", "00"), "neither a number"),
        (("--seeds", "1,01"), "neither a number"),
        (("--jobs", "0"), "at least 1"),
        (("--steps-scale", "-1"), "above 0"),
        (("--metric", "raod"), "did you mean road"),
        (("--override", "target.val_list="), "names no val_list"),
        (("--known", "nowhere.json"), "--known nowhere.json: No such file"),
        (("--known", "tiny.toml"), "not the JSON of a ladder"),
    ],
)
def test_mistakes_are_one_line(tiny: Path, flags: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as mistake:
        ladder.main([str(tiny), *flags])
    assert "\n" not in str(mistake.value)
