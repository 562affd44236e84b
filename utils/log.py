"""What a run writes down while it goes on: `log.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.files import atomic_write, errors_naming
from utils.json_files import plain
from utils.run_files import LOG


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
