"""The folder of golden numbers: where it is, its arrays, and the module that rebuilds their inputs.

`GOLDEN_DIR` (environment) points the golden tests at another folder of the same files; the default is the
project's own copy.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden").resolve()

# Every file of numbers and the test module that asserts all of it; test_golden_networks.py checks the list.
COVERED_BY = {
    "keys.json": "test_golden_networks.py",
    "networks.npz": "test_golden_networks.py",
    "network_vgg.npz": "test_golden_networks.py",
    "losses.npz": "test_golden_losses.py",
}


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of the golden file `name`, read into memory; a missing file raises."""
    with np.load(GOLDEN_DIR / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def load_keys() -> dict[str, dict[str, list[int]]]:
    """Network name -> tensor name -> shape, from keys.json."""
    return json.loads((GOLDEN_DIR / "keys.json").read_text(encoding="utf-8"))


def load_inputs() -> ModuleType:
    """The folder's own inputs.py as a module."""
    spec = importlib.util.spec_from_file_location("golden_inputs", GOLDEN_DIR / "inputs.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(GOLDEN_DIR / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
