"""What a run leaves behind: log.jsonl through crashes and resumes, TensorBoard, JSON, console."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.console import progress, say
from utils.json_files import plain, write_json
from utils.log import LogError, RunLog


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_kind_of_number_becomes_a_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, names=("road", "sky"), tensorboard=False) as run:
        run.scalars(1, {"loss": torch.tensor(0.5), "lr": 2.5e-4, "seen": 3, "none": None})
        run.scalars(2, {"loss": float("nan"), "iou": np.array([50.0, np.nan]), "peak": np.float32(0.25)})
        assert len(lines(tmp_path)) == 2  # readable while the run goes on
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "lr": 2.5e-4, "seen": 3, "none": None},
        {"step": 2, "loss": None, "iou/road": 50.0, "iou/sky": None, "peak": 0.25},
    ]


def test_values_that_are_no_scalars_are_refused(tmp_path: Path) -> None:
    with RunLog(tmp_path, names=("road", "sky"), tensorboard=False) as run:
        for key, value in (("iou", np.zeros(3)), ("iou", np.zeros((2, 2))), ("note", "text"), ("step", 2)):
            with pytest.raises(ValueError, match=f"'{key}.*' cannot be logged.* 2 classes"):
                run.scalars(1, {"loss": 0.5, key: value})
    assert lines(tmp_path) == []


def write_steps(folder: Path, steps: range, **options: Any) -> None:
    with RunLog(folder, tensorboard=False, **options) as run:
        for step in steps:
            run.scalars(step, {"loss": step / 2})


def test_resuming_drops_what_runs_again(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 9))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the power went
    write_steps(tmp_path, range(6, 8), resume_step=5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_resuming_without_a_log_and_starting_anew(tmp_path: Path) -> None:
    write_steps(tmp_path, range(3, 5), resume_step=2)
    assert [line["step"] for line in lines(tmp_path)] == [3, 4]
    write_steps(tmp_path, range(1, 2))
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_failing_rewrite_keeps_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_steps(tmp_path, range(1, 4))

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        RunLog(tmp_path, tensorboard=False, resume_step=1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def board_steps(folder: Path, tag: str) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_tensorboard_holds_the_finite_numbers_and_follows_a_resume(tmp_path: Path) -> None:
    with RunLog(tmp_path) as run:
        for step, loss in enumerate((0.5, float("nan"), 0.25, 0.2), start=1):
            run.scalars(step, {"loss": loss})
    assert board_steps(tmp_path, "loss") == [1, 3, 4]
    with RunLog(tmp_path, resume_step=3) as run:
        run.scalars(4, {"loss": 0.1})
        run.scalars(5, {"loss": 0.1})
    assert board_steps(tmp_path, "loss") == [1, 3, 4, 5]


def test_tensorboard_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", board_folder=tmp_path / "tensorboard") as run:
        run.scalars(1, {"loss": 0.5})
    assert board_steps(tmp_path, "loss") == [1]
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_folder_of_tensorboard_below_a_dead_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "dead").symlink_to("nowhere")
    with pytest.raises(FileExistsError) as error:
        RunLog(tmp_path / "run", board_folder=tmp_path / "dead" / "board")
    assert error.value.filename == str(tmp_path / "dead")


def test_a_fresh_process_opens_tensorboard_without_a_warning(tmp_path: Path) -> None:
    code = f"from utils.log import RunLog\nwith RunLog({str(tmp_path)!r}) as run: run.scalars(1, {{'x': 1.0}})"
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_missing_tensorboard_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LogError, match="pip install tensorboard"):
        RunLog(tmp_path)
    write_steps(tmp_path, range(1, 2))  # without it the log works


def test_plain_data_of_every_kind() -> None:
    data = {
        "tensor": torch.tensor([1.0, float("nan")]),
        "array": np.array([[1, 2]]),
        "scalar": np.float64("inf"),
        "flag": np.bool_(True),
        "path": Path("a") / "b",
        3: (1, None, "x"),
    }
    assert plain(data) == {
        "tensor": [1.0, None],
        "array": [[1, 2]],
        "scalar": None,
        "flag": True,
        "path": str(Path("a") / "b"),
        "3": [1, None, "x"],
    }


def test_json_is_strict_readable_and_atomic(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"miou": float("nan"), "name": "Straße"})
    assert path.read_text(encoding="utf-8") == '{\n  "miou": null,\n  "name": "Straße"\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["miou"] is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_say_prints_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    say("resumed at step 5")
    assert capsys.readouterr().out == "resumed at step 5\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "interval"), [(io.StringIO(), 10.0), (Terminal(), 0.5)])
def test_progress_is_quiet_without_a_terminal(
    stream: io.StringIO, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(range(1000), description="validate", unit="image") as bar:
        assert list(bar) == list(range(1000))
        assert bar.mininterval == interval
    text = stream.getvalue()
    assert text.startswith("\rvalidate:")
    assert "1000/1000" in text
    assert text.count("\r") <= 4


def test_progress_goes_on_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(total=10, initial=4) as bar:
        bar.update(2)
        assert (bar.n, bar.total) == (6, 10)
