"""Settings that travel with weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.run_files import CONFIG, LAST


def recorded_settings(restore_from: str) -> tuple[str, dict[str, Any]] | None:
    """The configuration that travels with our weights (for `parse`), after a file beside them that holds it, or "".

    Its `[run]` is left out, which concerns the machine that trained. None for weights of other origin, or none at all.
    """
    # Here: it imports torch, and `parse` asks only once it has found no mistake among the flags.
    from model.weights import read_record

    folder = Path(restore_from)
    path = folder / LAST if folder.is_dir() else folder
    meta = read_record(path) if path.is_file() else {}
    if not isinstance(meta.get("config"), Mapping):
        return None
    settings = {name: value for name, value in meta["config"].items() if name != "run"}
    if "subsets" in meta.get("classes", {}):  # the whole table, whatever becomes of the one that is shipped
        settings["classes"] = meta["classes"]
    beside = path.with_name(CONFIG)
    return str(beside) if beside.is_file() else "", settings
