"""What a run tells: console lines, progress, `log.jsonl`, TensorBoard, JSON files, the manifest."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from utils.files import atomic_write, errors_naming
from utils.run_files import LOG

_MANIFEST_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "tensorboard",
    "connected-components-3d",
)
_QUIET_INTERVAL = 10.0  # seconds between updates of a progress bar that nobody watches


class LogError(ValueError):
    """A log that cannot be kept; the message is one line for the user."""


class RunLog:
    """A run's scalars over the steps, in `folder`/log.jsonl and, if wanted, for TensorBoard in `board_folder`
    (`folder`/tensorboard unless given).

    `names` are the class names, used to write out per-class vectors. Without `resume_step` the run is a new
    one and its log starts empty. With it, what an interrupted run wrote beyond that step is dropped, since
    those steps run again, and what it wrote beyond its first `resume_lines`. `lines`: how many there are now.
    A context manager; LogError when TensorBoard is wanted and not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        names: Sequence[str] = (),
        tensorboard: bool = True,
        resume_step: int | None = None,
        resume_lines: int | None = None,
        board_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        path = self._path = Path(folder) / LOG
        self._names = tuple(names)
        last_step = -1 if resume_step is None else resume_step
        board = Path(board_folder) if board_folder else Path(folder) / "tensorboard"
        self._board = _open_board(board, last_step + 1) if tensorboard else None
        kept = _lines_until(path, last_step)[:resume_lines]
        self.lines = len(kept)
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of numbers (or tensors of them); NaN and infinity become null in the JSON.

        A vector with one entry per class becomes the numbers `key/class name`.
        """
        flat = self._flatten(values)
        line = json.dumps({"step": int(step), **flat}, allow_nan=False, ensure_ascii=False) + "\n"
        with errors_naming(self._path):
            self._file.write(line)
            self._file.flush()
        self.lines += 1
        if self._board is not None:
            for key, value in flat.items():
                if value is not None:
                    self._board.add_scalar(key, value, step)

    @property
    def has_board(self) -> bool:
        """Whether pictures and texts are kept at all."""
        return self._board is not None

    def picture(self, step: int, key: str, pixels: npt.NDArray[np.uint8]) -> None:
        """A picture (H, W, 3), for TensorBoard alone."""
        if self._board is not None:
            self._board.add_image(key, pixels, step, dataformats="HWC")

    def text(self, step: int, key: str, markdown: str) -> None:
        """A text, for TensorBoard alone."""
        if self._board is not None:
            self._board.add_text(key, markdown, step)

    def _flatten(self, values: Mapping[str, Any]) -> dict[str, int | float | None]:
        flat: dict[str, int | float | None] = {}
        for key, value in values.items():
            numbers = plain(value)
            if isinstance(numbers, list) and len(numbers) == len(self._names):
                flat.update({f"{key}/{name}": n for name, n in zip(self._names, numbers, strict=True)})
            else:
                flat[key] = numbers
        for key, number in flat.items():
            if key == "step" or not isinstance(number, (int, float, type(None))):
                raise ValueError(
                    f"{key!r} cannot be logged: every key but 'step' may have one number, or one for each of "
                    f"the {len(self._names)} classes"
                )
        return flat

    def close(self) -> None:
        """Flush and close both logs."""
        with errors_naming(self._path):
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _lines_until(path: Path, last_step: int) -> list[str]:
    """The log's lines with step <= last_step. A line that a crash cut short has no step and goes too."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line for line in file if _step_of(line) <= last_step]


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _open_board(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer that hides what earlier runs wrote to `folder` from `first_step` on."""
    try:
        with warnings.catch_warnings():  # its import is loud about other packages' deprecations
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LogError(
            f"TensorBoard cannot be imported ({error}): pip install tensorboard, or switch it off"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)  # whose errors say what is in the way
    return SummaryWriter(str(folder), purge_step=first_step)


def say(text: str) -> None:
    """Print a line at once, above any progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    description: str | None = None,
    unit: str = "it",
    shown: bool = True,
) -> tqdm:
    """A tqdm bar with the time left, on standard error; plain and rare lines where that is no terminal."""
    watched = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not shown,
        dynamic_ncols=watched,
        ascii=not watched,
        mininterval=0.5 if watched else _QUIET_INTERVAL,
    )


def plain(data: Any) -> Any:
    """`data` in JSON's types: numpy and torch values, tuples, paths converted; NaN and infinity are None."""
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu().tolist()
    elif isinstance(data, (np.ndarray, np.generic)):
        data = data.tolist()
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return os.fspath(data) if isinstance(data, os.PathLike) else data


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write `plain(data)` as indented JSON, atomically; TypeError for what JSON cannot hold."""
    text = json.dumps(plain(data), indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_manifest(
    path: str | os.PathLike[str], extra: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> None:
    """Write how a run came about: versions, commit, device, command line, and `extra`.

    `extra` is the caller's part (such as the inputs' sha256, peak memory, time); a key of the manifest's
    own in it is a ValueError.
    """
    manifest: dict[str, Any] = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _MANIFEST_PACKAGES},
        "cuda": torch.version.cuda,
        "device": device_name(torch.device(device)),
        "commit": commit_of_code(),
    }
    taken = sorted(manifest.keys() & extra.keys())
    if taken:
        raise ValueError(f"the manifest's own keys cannot be given by the caller: {', '.join(taken)}")
    write_json(path, {**manifest, **extra})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU's and how many of its threads torch uses: another one rounds otherwise."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    """The CPU's own name where the system tells (Linux), else what it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()


def commit_of_code() -> str | None:
    """The git commit of this code, with `-dirty` where files differ but those of docs/; None outside of git."""
    return _commit(Path(__file__).resolve().parents[1])


def _commit(folder: Path) -> str | None:
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    # Results are written below docs/ while other runs go on, and change none of them.
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it has nothing to say, fails or is not there."""
    command = ["git", "-C", str(folder), *words]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
