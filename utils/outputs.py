"""Folders that many files are written to: nobody takes half of them for all, and what is finished need not be again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.json_files import plain, write_json
from utils.lock import only_one

MARK = "unfinished.json"  # as dataset/corpora.py knows it


@contextlib.contextmanager
def unfinished(folder: Path, made_by: Mapping[str, Any]) -> Iterator[bool]:
    """Alone in a folder, which is marked as unfinished until the block has ended without an error.

    made_by: what decides the content of the files, in JSON's types. Yields whether the files that are there can stay:
    whether a process that was to write the same ones was interrupted here. Raises FolderInUseError as `only_one` does.
    """
    mark, wanted = folder / MARK, plain(made_by)
    with only_one(folder, "wait for its end, or choose another --save"):
        resumes = _content(mark) == wanted
        write_json(mark, wanted)
        yield resumes
        mark.unlink()


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or somebody else's
        return None
