"""What every test may use: data, one thread, a way to run the project's scripts in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.worlds import write_own

ROOT = Path(__file__).resolve().parents[1]

Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def one_thread() -> None:
    """Small networks are slow where several threads wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of one's own, without pseudo labels; modules that need more make their own."""
    root = tmp_path_factory.mktemp("world")
    write_own(root)
    return root


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs `python NAME.py ARGUMENTS`, or `python -m room.name ARGUMENTS`, in this process.

    Returns exit code, output and errors.
    """

    def run(name: str, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *argv])
        capsys.readouterr()
        code = 0
        try:
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                with monkeypatch.context() as patch:
                    patch.delitem(sys.modules, name, raising=False)  # runpy warns of a script that a test has imported
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
