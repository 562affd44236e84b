"""JSON files: written whole, of whatever a run has to say, and read with errors for people. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config import ConfigError
from utils.files import atomic_write


def plain(data: Any) -> Any:
    """`data` in JSON's types: numpy and torch values, tuples, paths converted; NaN and infinity are None."""
    if hasattr(data, "tolist"):  # of torch or numpy, neither of which is needed to know it
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file; ConfigError for a damaged one."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to do without it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object; remove it to do without it")
    return content
