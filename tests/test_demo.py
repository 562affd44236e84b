"""The demo, tiny: what `make demo` runs, from drawing to the page, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import demo
from tests.conftest import ROOT, Script
from utils.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {r"num_steps = \d+": "num_steps = 2", r"save_pred_every = \d+": "save_pred_every = 2"}
TINY |= {r"size = \[256, 128\]": "size = [64, 32]", r"batch_size = 4": "batch_size = 1", r"width = 24": "width = 4"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipes of streets, of two updates each."""
    for name in ("streets", "streets_source_only", "streets_control"):
        text = (ROOT / "configs" / f"{name}.toml").read_text()
        for pattern, replacement in TINY.items():
            text = re.sub(pattern, replacement, text)
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path / "streets.toml"


def test_the_demo_ends_with_table_picture_summary_and_page(
    recipe: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def call(self: demo.Demo, *command: str) -> None:
        name, *flags = command[1:] if command[0] == "-m" else (Path(command[0]).name, *command[1:])
        called.append(name)
        code, _, errors = script(name, *flags)
        assert code == 0, errors

    monkeypatch.setattr(demo.Demo, "call", call)
    out = tmp_path / "demo"
    command = ["--config", str(recipe), "--out", str(out), "--images", "3", "1", "3", "2"]
    demo.main(command)
    trained = ["train_step1.py"] * 3
    scored = ["evaluate_cityscapes.py", "compute_iou.py"] * 2
    assert called == [
        "dataset.streets",
        *trained,
        "Generate_Pseudo_Label.py",
        "train_step2.py",
        *scored,
        "utils.report",
    ]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"].startswith(f"python -m benchmarks.demo --config {recipe}")
    manifest = json.loads((out / "step2" / "manifest.json").read_text())
    assert summary["devices"] == [manifest["device"]]
    assert summary["commits"] == [str(manifest["commit"])]
    for name in demo.RUNS:
        assert summary[name] == json.loads((out / name / "manifest.json").read_text())["result"]["last"]["miou"]
    scores = json.loads((out / "predictions" / "step2.json").read_text())
    assert scores["miou"] == pytest.approx(summary["step2"]), "scored from PNGs as in training"
    with Image.open(out / "adaptation.png") as picture:
        assert picture.width > 4 * 64, "image, truth, before, after"
    assert (out / "report.html").is_file()

    called.clear()
    demo.main(command)
    assert not {"train_step1.py", "Generate_Pseudo_Label.py", "train_step2.py"} & set(called), "kept"

    called.clear()
    note = out / "settings.json"
    older = json.loads(note.read_text())
    del older["recipes"]["streets.toml"]["step1"]["random_turn"]
    note.write_text(json.dumps(older))
    demo.main(command)  # a setting that the note is older than is no difference

    called.clear()
    for changed, named in ((["--seed", "1"], "seed: 0 -> 1"), (["--images", "3", "1", "3", "1"], "images: ")):
        with pytest.raises(ConfigError, match=f"a demo of other settings \\({named}.*remove it"):
            demo.main([*command, *changed])
    control = recipe.with_name("streets_control.toml")
    kept = control.read_text()
    control.write_text(kept.replace("num_steps = 2", "num_steps = 3"))
    with pytest.raises(ConfigError, match=r"streets_control\.toml\.step1\.num_steps: 2 -> 3"):
        demo.main(command)
    control.write_text(kept)
    for damage, named in (("{", "damaged"), ("[]", "no JSON object")):
        note.write_text(damage)
        with pytest.raises(ConfigError, match=named):
            demo.main(command)
    note.unlink()
    with pytest.raises(ConfigError, match="runs that no demo has noted; remove it"):
        demo.main(command)
    assert not note.exists()
    assert not called, "refused before anything is drawn over"
