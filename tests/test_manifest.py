"""How a result came about: the manifest, and the commit that is named in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import manifest
from utils.manifest import write_manifest


def test_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step1.py", "--config", "my config.toml"])
    write_manifest(tmp_path / "manifest.json", {"inputs": {"a.pth": "00ff"}}, device="cpu")
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["inputs"] == {"a.pth": "00ff"}
    assert written["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert written["command"].endswith("train_step1.py --config 'my config.toml'")
    assert written["python"] == ".".join(map(str, sys.version_info[:3]))
    assert written["device"].startswith("cpu (")
    with pytest.raises(ValueError, match="commit"):
        write_manifest(tmp_path / "manifest.json", {"commit": "mine"})


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert manifest._commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert manifest._commit(tmp_path) is None  # a checkout without a commit
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert manifest._commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert manifest._commit(tmp_path) == f"{commit}-dirty"


def test_results_that_change_leave_the_code_as_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git(tmp_path, "init", "-q")
    (tmp_path / "docs").mkdir()
    for name in ("code", "docs/result"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "docs" / "result").write_text("2")
    assert manifest._commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")


def test_no_git_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest._commit(Path(manifest.__file__).parents[1]) is None
