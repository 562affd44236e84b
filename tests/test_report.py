"""The report: its numbers, its honesty about what is missing, what it refuses; diagnostics during a training."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import Generate_Pseudo_Label
import train_step1
import train_step2
from tests.conftest import Script
from tests.worlds import ALIGNED, NAMES, own_settings, write_own, write_settings
from utils.report.page import _change_chart
from utils.run_folder import labels, read_run

PSEUDO = ("precision", "coverage", "right")
HOSTILE = ("<script>alert(1)</script>", "a & b", 'quo"te', "it's/<b>")


pytestmark = pytest.mark.usefixtures("one_thread")


class Page(HTMLParser):
    """What a test asks of a page: its tables by heading, its words, its tags, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.headings: list[str] = []
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.words = ""
        self._inside: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Open a heading, a row, a cell; note a number's exact value."""
        self.tags.add(tag)
        given = dict(attributes)
        self.references += [str(given[key]) for key in ("src", "href", "action", "data") if key in given]
        if tag in ("h1", "h2", "style"):
            self._inside.append(tag)
            self.headings += [""] if tag == "h2" else []
        elif tag == "tr":
            self.tables.setdefault(self.headings[-1], []).append([])
        elif tag in ("td", "th"):
            self.tables[self.headings[-1]][-1].append(("", None))
        elif tag == "data":
            row = self.tables.get(self.headings[-1], [[]])[-1] if self.headings else []
            if row:
                row[-1] = (row[-1][0], float(str(given["value"])))

    def handle_endtag(self, tag: str) -> None:
        """Close a heading."""
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        """Collect words, a heading's and a cell's apart."""
        if self._inside and self._inside[-1] == "style":
            return
        self.words += data
        if self._inside and self._inside[-1] == "h2":
            self.headings[-1] += data
        elif self.headings and self.tables.get(self.headings[-1]):
            row = self.tables[self.headings[-1]][-1]
            if row:
                row[-1] = (row[-1][0] + data, row[-1][1])

    def numbers(self, heading: str) -> dict[str, list[float | None]]:
        """The exact numbers of the rows of a section's tables."""
        return {row[0][0]: [value for _, value in row[1:]] for row in self.tables[heading] if row}


@dataclass
class World:
    """Runs on tiny data: `base` on the source, `adapted` from it with pseudo labels, diagnosed at its snapshots."""

    root: Path
    settings: dict[str, Any]

    @property
    def base(self) -> Path:
        """The folder of the first run."""
        return self.root / "base"

    @property
    def adapted(self) -> Path:
        """The folder of the second run."""
        return self.root / "adapted"

    def config(self, name: str, **sections: Any) -> list[str]:
        """The flag of a configuration that lays `sections` over the world's."""
        merged = {key: dict(value) for key, value in self.settings.items()}
        for section, keys in sections.items():
            merged[section] = {**merged.get(section, {}), **keys}
        return ["--config", str(write_settings(self.root / f"{name}.toml", merged))]


def make_world(root: Path, **sections: Any) -> World:
    """Data and both runs."""
    write_own(root / "data")
    stage = {"num_steps": 4, "save_pred_every": 2}
    classes = {"subsets": {"stuff alone": [0, 1]}}
    sections = {"classes": classes, "step1": stage, "step2": stage, "run": {"report": True}, **sections}
    world = World(root, own_settings(root / "data", **sections))
    plain = world.config("base", step1={"weights": {"seg": 1.0}, "statistics": "source"})
    train_step1.main([*plain, "--snapshot-dir", str(world.base)])
    pseudo = str(root / "pseudo")
    config = world.config("adapted", run={"diagnostics": True})
    start = ["--restore-from", str(world.base)]
    Generate_Pseudo_Label.main([*config, *start, "--save", pseudo])
    train_step2.main([*config, *start, "--ssl-target-dir", pseudo, "--snapshot-dir", str(world.adapted)])
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Both runs, trained once; tests change copies."""
    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("report"))


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run to spoil."""
    shutil.copytree(run, folder)
    return folder


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


# ---- numbers ----


def test_the_scores_are_those_of_the_manifests_and_of_the_json(world: World) -> None:
    content, page = read(world.adapted / "report.json"), Page(world.adapted / "report.html")
    last, before = (read(run / "manifest.json")["result"]["last"] for run in (world.adapted, world.base))
    assert content["scores"]["last"] == {"miou": last["miou"], "iou": last["iou"]}
    assert content["scores"]["baseline"]["iou"] == before["iou"]
    rows = page.numbers("Scores")
    for name in NAMES:
        old, new = before["iou"][name], last["iou"][name]
        if old is not None and new is not None:
            assert rows[name][:3] == [old, new, content["scores"]["difference"][name]]
            assert content["scores"]["difference"][name] == new - old
    assert rows["mIoU"][:2] == [pytest.approx(before["miou"]), pytest.approx(last["miou"])]
    assert rows["mIoU over stuff alone"][:2] == list(content["scores"]["subsets"]["stuff alone"].values())


def test_the_variance_below_the_map_is_in_the_json(world: World) -> None:
    content, page = read(world.adapted / "report.json"), Page(world.adapted / "report.html")
    explained = content["variance_explained"]
    assert list(explained) == ["base", "adapted"]
    assert explained["base"] == explained["adapted"]  # one basis
    assert f"both: {100 * sum(explained['base']):.0f} % of the variance" in page.words


def test_the_distances_are_those_of_the_json_and_of_the_last_snapshot(world: World, script: Script) -> None:
    code, _, errors = script("utils.report", str(world.adapted), "--images", "8")
    assert code == 0, errors
    content, page = read(world.adapted / "report.json"), Page(world.adapted / "report.html")
    summary = content["divergence"]["summary"]
    row = page.numbers("Distances")["ratio: distance between classes / within a class"]
    assert row[:2] == [content["divergence_baseline"]["summary"]["ratio"], summary["ratio"]]
    snapshot = read(world.adapted / "diagnostics" / "4.json")
    assert snapshot["summary"] == pytest.approx(summary, nan_ok=True)  # the same network, the same images
    gaps = {row[0][0]: row[4][1] for row in page.tables["Distances"] if len(row) == 7 and row[0][0] in NAMES}
    expected = dict(zip(NAMES, content["divergence"]["gap"], strict=True))
    assert gaps == expected


def test_matrices_across_and_within_the_domains_are_those_of_the_json(world: World) -> None:
    content, page = read(world.adapted / "report.json"), Page(world.adapted / "report.html").source
    section = page[page.index('<h2 id="distances">') : page.index('<h2 id="memory">')]
    shown, folded = section.split("<details>")
    for part, kinds in ((shown, ("",)), (folded, ("source_", "target_"))):
        drawn = [ET.fromstring(one) for one in re.findall(r'<figure class="matrix">.*?</figure>', part)]
        expected = [
            content[look][kind + what]
            for kind in kinds
            for look in ("divergence_baseline", "divergence")
            for what in ("distance", "cosine")
        ]
        for figure, matrix in zip(drawn, expected, strict=True):
            known = [value for row in matrix for value in row if value is not None]
            said = [float(str(title.text).split(": ")[-1]) for title in figure.iter("title")]
            assert said == pytest.approx(known, rel=1e-5, abs=1e-12)


def test_pseudo_label_scores_equal_a_naive_count(world: World) -> None:
    content, page = read(world.adapted / "report.json"), Page(world.adapted / "report.html")
    pairs = [
        (np.array(Image.open(path)), np.array(Image.open(world.root / "data" / "labels" / path.name)))
        for path in sorted((world.root / "pseudo").glob("*.png"))
    ]
    given = np.concatenate([label.ravel() for label, _ in pairs])
    truth = np.concatenate([label.ravel() for _, label in pairs])
    rows = page.numbers("Pseudo labels")
    for category, name in enumerate(NAMES):
        own, labelled = truth == category, given == category
        precision = 100 * (own & labelled).sum() / labelled.sum() if labelled.any() else None
        covered = 100 * (own & (given != 255)).sum() / own.sum()
        assert content["pseudo_labels"]["precision"][name] == (precision and pytest.approx(precision))
        assert content["pseudo_labels"]["coverage"][name] == pytest.approx(covered)
        right = 100 * (own & labelled).sum() / own.sum()
        assert content["pseudo_labels"]["right"][name] == pytest.approx(right)
        assert rows[name][1:] == [content["pseudo_labels"][key][name] for key in PSEUDO]
    assert rows["mean"][1:] == [content["pseudo_labels"]["mean"][key] for key in PSEUDO]


def test_the_confusion_matrix_is_the_last_validation_s(world: World) -> None:
    content = read(world.adapted / "report.json")
    counts = np.array(content["confusion"])
    assert counts.shape == (4, 5)
    assert counts.sum() == read(world.adapted / "manifest.json")["result"]["last"]["pixels"]
    changed = content["confusions_changed"]
    old, new = (np.array(read(run / "confusion.json")["confusion"]) for run in (world.base, world.adapted))
    for pair in [*changed["improved"], *changed["worsened"]]:
        row, column = NAMES.index(pair["truth"]), NAMES.index(pair["predicted"])
        assert pair["before"] == pytest.approx(100 * old[row, column] / old[row].sum())
        assert pair["after"] == pytest.approx(100 * new[row, column] / new[row].sum())


def test_a_change_of_confusions_is_coloured_by_what_is_better() -> None:
    change = np.array([[20.0, -20.0], [9.0, -9.0]])
    chart = _change_chart("t", change, ["a", "b"])
    assert np.array_equal(np.sign(chart.strength), [[1, 1], [-1, -1]])
    drawn = ET.fromstring(chart.draw())
    assert [one.get("class") for one in drawn.iter("rect")] == ["plus", "plus", "minus", "minus"]
    keys = {span[0].get("class"): span[0].tail for span in drawn.iter("span")}
    assert str(keys["key plus"]).startswith("better")
    assert str(keys["key minus"]).startswith("worse")


# ---- the page ----


def test_the_page_needs_nothing_but_itself(world: World) -> None:
    page = Page(world.adapted / "report.html")
    assert page.references
    assert all(one.startswith(("data:image/", "#")) for one in page.references)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert "://" not in page.source
    assert "url(" not in page.source
    assert page.source.count("data:image/jpeg") == 2 + 4  # photographs of target val and of target train


def test_the_page_tells_what_was_run(world: World) -> None:
    page = Page(world.adapted / "report.html")
    manifest = read(world.adapted / "manifest.json")
    for text in (manifest["command"], manifest["packages"]["torch"], 'snapshot_dir = "', "chosen on target labels"):
        assert text in page.words
    assert "No weights of AIM yet" in page.words
    assert "Share of each class's source regions that enter its bank" in page.words
    assert "base" in [cell for cell, _ in page.tables["Scores"][0]]  # compared with the run that it started from


def test_weights_of_aim_are_shown_from_when_a_class_was_seen(world: World, tmp_path: Path, script: Script) -> None:
    run = copied(world.adapted, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {row["aim/car"] for row in rows if "aim/car" in row} == {None}  # four updates fill no bank of things
    assert all(0 <= row["accepted/road"] <= 1 for row in rows if row.get("accepted/road") is not None)
    rows[-1]["aim/car"] = 1.25
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, errors = script("utils.report", str(run), "--images", "1")
    assert code == 0, errors
    words = Page(run / "report.html").words
    assert "above 1: more than the average class" in words  # what the hues of the strips mean
    assert "No weights of AIM" not in words


def test_the_map_of_features_has_the_colours_of_its_marks(world: World) -> None:
    source = Page(world.adapted / "report.html").source
    section = source[source.index('<h2 id="features">') : source.index('<h2 id="distances">')]
    for category, name in enumerate(NAMES):
        assert f'<span class="swatch mark k{category}"></span>{name}</span>' in section
        assert f'class="centroid k{category}"' in section
        assert f".k{category}{{--k:" in source


def test_the_pictures_of_a_gallery_carry_their_headings(world: World) -> None:
    page = Page(world.adapted / "report.html")
    head, row = page.tables["Examples"][:2]
    titles = [title for title, _ in head]
    assert titles == ["", "image", "truth", "base", "adapted", "confidence of adapted"]
    assert [text for text, _ in row[1:]] == titles[1:]


def test_hostile_names_and_paths_stay_text(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_own(data)
    run = tmp_path / "<img src=x onerror=alert(1)>"
    classes = {"names": list(HOSTILE), "stuff": [0, 1], "things": [2, 3]}
    stage = {"num_steps": 2, "save_pred_every": 1, "snapshot_dir": str(run)}
    settings = own_settings(data, classes=classes, step1=stage, run={"report": True, "diagnostics": True})
    train_step1.main(["--config", str(write_settings(tmp_path / "c.toml", settings))])
    page = Page(run / "report.html")
    assert "script" not in page.tags
    assert all(one.startswith(("data:image/", "#")) for one in page.references)
    assert "onerror=alert(1)>" in page.words
    assert [row[0][0] for row in page.tables["Scores"][1:5]] == list(HOSTILE)


def test_a_training_ends_with_its_report_unless_it_is_not_wanted(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wanted in (True, False):
        run = tmp_path / str(wanted)
        config = world.config("short", run={"report": wanted}, step1={"num_steps": 1})
        train_step1.main([*config, "--snapshot-dir", str(run)])
        assert (run / "report.html").exists() == wanted
        assert (f"report: {run / 'report.html'}" in capsys.readouterr().out) == wanted


def test_a_report_that_cannot_be_written_does_not_lose_the_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)
    train_step1.main([*world.config("short", step1={"num_steps": 1}), "--snapshot-dir", str(run)])
    assert "note: no report (" in capsys.readouterr().out
    assert read(run / "manifest.json")["result"]["steps"] == 1


# ---- what is missing is said ----


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    write_own(tmp_path / "data")
    stage = {"num_steps": 2, "snapshot_dir": str(tmp_path / "run")}
    settings = own_settings(tmp_path / "data", target={"val_list": ""}, step1=stage, run={"report": True})
    train_step1.main(["--config", str(write_settings(tmp_path / "c.toml", settings))])
    page, content = Page(tmp_path / "run" / "report.html"), read(tmp_path / "run" / "report.json")
    assert page.words.count("The run was not validated") >= 3  # scores, curves, confusions
    assert content["scores"]["last"] is None
    assert content["target_regions"] == "prediction"
    assert content["divergence"] is not None
    assert "The run read no pseudo labels." in page.words


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("confusion.json", "no confusion.json in the run's folder"),
        ("log.jsonl", "There is no log.jsonl"),
        ("last.pt", "The network of spoilt cannot be looked through"),
    ],
)
def test_a_file_that_is_gone_is_said(world: World, tmp_path: Path, script: Script, lost: str, said: str) -> None:
    run = copied(world.adapted, tmp_path / "spoilt")
    for name in (lost, "previous.pt") if lost == "last.pt" else (lost,):
        (run / name).unlink(missing_ok=True)
    code, _, errors = script("utils.report", str(run), "--baseline", str(world.base), "--images", "2")
    assert code == 0, errors
    assert said in Page(run / "report.html").words


def test_a_run_that_goes_on_shows_its_last_validation(world: World, tmp_path: Path, script: Script) -> None:
    run = copied(world.adapted, tmp_path / "run")
    last = read(run / "manifest.json")["result"]["last"]
    (run / "manifest.json").unlink()
    code, _, errors = script("utils.report", str(run), "--baseline", str(world.base), "--images", "2")
    assert code == 0, errors
    page = Page(run / "report.html")
    assert "There is no manifest.json" in page.words
    assert page.numbers("Scores")["mIoU"][1] == pytest.approx(last["miou"])
    assert read(run / "report.json")["scores"]["last"]["iou"] == last["iou"]


def test_without_validation_each_image_is_shown_once(world: World, tmp_path: Path, script: Script) -> None:
    run = copied(world.adapted, tmp_path / "run")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('val_list = "val.txt"', 'val_list = ""'))
    code, _, errors = script("utils.report", str(run), "--images", "2")
    assert code == 0, errors
    page = Page(run / "report.html")
    assert "Target training images, with the pseudo labels" in page.words
    assert "Target validation images" not in page.words
    assert page.source.count("data:image/jpeg") == 4


def test_images_and_pseudo_labels_that_are_gone_are_said(world: World, tmp_path: Path, script: Script) -> None:
    run = copied(world.adapted, tmp_path / "run")
    text = (run / "config.toml").read_text(encoding="utf-8")
    text = text.replace(str(world.root / "data"), str(tmp_path / "gone"))
    (run / "config.toml").write_text(text, encoding="utf-8")
    code, _, errors = script("utils.report", str(run), "--baseline", str(world.base))
    assert code == 0, errors
    content = read(run / "report.json")
    assert content["missing"].keys() == {"features", "baseline_features", "examples", "pseudo_labels"}
    words = Page(run / "report.html").words
    assert all(reason in words for reason in content["missing"].values())
    assert content["scores"]["last"] is not None


# ---- several runs ----


def test_several_runs_are_compared_with_the_first(world: World, tmp_path: Path, script: Script) -> None:
    out = tmp_path / "all.html"
    runs = {name: copied(run, tmp_path / name) for name, run in (("base", world.base), ("adapted", world.adapted))}
    code, printed, errors = script("utils.report", *map(str, runs.values()), "--out", str(out), "--images", "2")
    assert code == 0, errors
    assert printed.splitlines()[-1] == f"report: {out}"
    page, content = Page(out), read(out.with_suffix(".json"))
    for name, run in runs.items():
        result = read(run / "manifest.json")["result"]
        assert content["runs"][name]["last"] == result["last"]
        assert page.numbers("Runs")[name][0] == result["last"]["miou"]
        assert content["runs"][name]["divergence"] == read(run / "report.json")["divergence"]["summary"]
    for name in NAMES:
        assert page.numbers("IoU per class")[name] == [content["runs"][run]["last"]["iou"][name] for run in runs]
    assert read(runs["adapted"] / "report.json")["baseline"] == str(runs["base"])


def test_what_was_chosen_without_labels_stands_beside_the_last_and_the_best(
    world: World, tmp_path: Path, script: Script
) -> None:
    runs = [copied(world.base, tmp_path / "base"), copied(world.adapted, tmp_path / "adapted")]
    code, printed, errors = script("utils.choose", str(runs[1]), "--images", "2")
    assert code == 0, errors
    assert printed.splitlines()[-1] == f"in the report: python -m utils.report {runs[1]}"
    choice = read(runs[1] / "selection.json")["choice"]
    assert choice["miou"] == dict(read_run(runs[1]).series("miou"))[choice["step"]]
    code, _, errors = script("utils.report", *map(str, runs), "--images", "2")
    assert code == 0, errors
    assert read(runs[1] / "report.json")["scores"]["chosen_without_labels"] == choice
    assert f"update {choice['step']}, chosen without labels by information" in (runs[1] / "report.html").read_text()
    assert "chosen without labels by" not in (runs[0] / "report.html").read_text()
    content, rows = read(runs[0] / "comparison.json")["runs"], Page(runs[0] / "comparison.html").numbers("Runs")
    assert content["base"]["chosen_without_labels"] is None
    assert content["adapted"]["chosen_without_labels"] == choice
    assert rows["adapted"][2] == choice["miou"]


def test_a_baseline_comes_first_and_a_run_given_twice_once(world: World, tmp_path: Path, script: Script) -> None:
    first, second = copied(world.adapted, tmp_path / "a" / "run"), copied(world.adapted, tmp_path / "b" / "run")
    arguments = [*map(str, (first, second, first)), "--baseline", str(world.base), "--images", "1"]
    code, printed, errors = script("utils.report", *arguments)
    assert code == 0, errors
    pages = [first / "report.html", second / "report.html", first / "comparison.html"]
    assert printed.splitlines() == [f"report: {page}" for page in pages]
    assert list(read(first / "comparison.json")["runs"]) == ["report0/base", "a/run", "b/run"]


def test_runs_of_other_classes_are_refused(world: World, tmp_path: Path, script: Script) -> None:
    other = copied(world.adapted, tmp_path / "other")
    text = (other / "config.toml").read_text(encoding="utf-8").replace('"person"', '"pedestrian"')
    (other / "config.toml").write_text(text, encoding="utf-8")
    for arguments in ((str(world.base), str(other)), (str(world.base), "--baseline", str(other))):
        code, _, errors = script("utils.report", *arguments)
        assert code == 2
        assert errors == (
            f"error: {other} has other classes than {world.base} (pedestrian, person); only runs of one class table "
            "compare\n"
        )
    assert not (world.base / "comparison.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, world: World, script: Script) -> None:
    code, _, errors = script("utils.report", str(tmp_path))
    assert (code, errors) == (2, f"error: {tmp_path} is not the folder of a run: there is no config.toml in it\n")
    code, _, errors = script("utils.report", str(world.base), "--images", "0")
    assert code == 2
    assert errors.endswith("argument --images: '0' is not a whole number of at least 1\n")
    for place, reason in ((tmp_path, "is a folder; name a file in it"), ("all.json", "its numbers are written beside")):
        code, _, errors = script("utils.report", str(world.base), "--out", str(place))
        assert code == 2
        assert reason in errors
    run = copied(world.base, tmp_path / "run")
    (run / "confusion.json").write_text("{", encoding="utf-8")
    code, _, errors = script("utils.report", str(run))
    assert code == 2
    assert f"{run / 'confusion.json'} is damaged" in errors


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/x/step1", "/r/y/step1"], ["x/step1", "y/step1"]),
    ],
)
def test_runs_are_told_apart_by_the_ends_of_their_paths(folders: list[str], expected: list[str]) -> None:
    assert labels([Path(folder) for folder in folders]) == expected


# ---- diagnostics in training ----


def test_diagnostics_are_logged_and_change_nothing_else(world: World, tmp_path: Path) -> None:
    states = []
    for diagnosed in (False, True):
        run = tmp_path / str(diagnosed)
        config = world.config(
            "diagnosed",
            run={"diagnostics": diagnosed, "report": False},
            step1={
                "num_steps": 2,
                "save_pred_every": 1,
                "weights": ALIGNED,
                "statistics": "target",
                "random_mirror": True,
            },
        )
        train_step1.main([*config, "--snapshot-dir", str(run)])
        states.append(torch.load(run / "last.pt", weights_only=True))
    plain, diagnosed_state = states
    for part in ("network", "discriminator"):
        for name, value in plain[part].items():
            assert torch.equal(value, diagnosed_state[part][name]), name
    assert torch.equal(plain["rng"]["torch"], diagnosed_state["rng"]["torch"])
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("False", "True")
    ]
    rows = [row for row in logs[1] if "divergence/ratio" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert {f"gap/{name}" for name in NAMES} <= rows[0].keys()
    assert [row for row in logs[1] if row not in rows] == logs[0]
    assert not (tmp_path / "False" / "diagnostics").exists()


def test_what_pseudo_labels_are_worth_is_logged_where_truth_is_known(world: World) -> None:
    lines = (world.adapted / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "divergence/ratio" in row]
    content = read(world.adapted / "report.json")["pseudo_labels"]
    for name in NAMES:  # five images: all of them, in the log and in the report
        assert rows[-1][f"pseudo_coverage/{name}"] == pytest.approx(content["coverage"][name])
