"""The names of the files that a run leaves in its folder, and that a folder of pseudo labels has.

Snapshots of the weights are named in utils/snapshots.py.
"""

LAST, PREVIOUS = "last.pt", "previous.pt"
"""The state to resume from, and what was that before."""

CONFIG = "config.toml"
"""Every setting, resolved; `--config` takes it."""

LOG = "log.jsonl"
"""A line for every update that was logged."""

CONFUSION = "confusion.json"
"""Of the last validation."""

MANIFEST = "manifest.json"
"""Written last: what went in and what came out."""

SELECTION = "selection.json"
"""Which checkpoint `python -m utils.choose` has chosen without labels."""

THRESHOLDS = "thresholds.json"
"""Of pseudo labels, written last: what made them, and what was kept."""
