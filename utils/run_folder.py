"""What the folder of a run says: settings, scores, logs. Reads files only; nothing is computed.

A run is its configuration and its log; the manifest is there once it has ended, confusions once it has been validated,
a selection once `python -m utils.choose` has chosen a checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import Config, ConfigError, Stage, build_config, read_config
from utils.json_files import read_json
from utils.metrics import Counts, Scores, iou_array
from utils.run_files import CONFIG, CONFUSION, LOG, MANIFEST, SELECTION

Series = list[tuple[int, float]]
"""(update, value) pairs."""

SECTIONS = ("step1", "step2")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run. label: a short name for people; log: the lines of log.jsonl; manifest: empty while the run goes on."""

    folder: Path
    label: str
    config: Config
    config_text: str
    section: str
    log: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    confusion_file: Mapping[str, Any]
    selection: Mapping[str, Any]

    @property
    def stage(self) -> Stage:
        """The settings of the stage that was run."""
        return getattr(self.config, self.section)

    @property
    def result(self) -> Mapping[str, Any]:
        """The run's summary, empty while it goes on."""
        return self.manifest.get("result") or {}

    @property
    def last(self) -> Mapping[str, Any]:
        """The scores of the last checkpoint, as long as the run goes on of the last validation in its log; empty
        without validation."""
        return self.result.get("last") or {} if self.result else self._logged

    @property
    def _logged(self) -> Mapping[str, Any]:
        rows = [row for row in self.log if row.get("miou") is not None]
        if not rows:
            return {}
        iou = {key.removeprefix("iou/"): value for key, value in rows[-1].items() if key.startswith("iou/")}
        return {"miou": rows[-1]["miou"], "iou": iou, "step": rows[-1]["step"]}

    @property
    def best(self) -> Mapping[str, Any]:
        """mIoU and step of the checkpoint chosen on target labels; empty without validation."""
        return self.result.get("best_selected_on_target_labels") or {}

    @property
    def choice(self) -> Mapping[str, Any]:
        """criterion, step and mIoU (None without validation) of the checkpoint chosen without labels; empty while none
        has been, or where the run has gone on since."""
        choice = self.selection.get("choice") or {}
        seen = max(map(int, self.selection["scores"][choice["criterion"]])) if choice else 0
        return choice if not self.log or seen >= self.log[-1]["step"] else {}

    def iou(self, names: Sequence[str]) -> Scores | None:
        """(C,) IoU of the last checkpoint, None without validation."""
        return iou_array(names, self.last["iou"]) if self.last else None

    @property
    def confusion(self) -> Counts | None:
        """(C, C+1) counts of the last validation."""
        return np.array(self.confusion_file["confusion"], dtype=np.int64) if self.confusion_file else None

    def series(self, key: str) -> Series:
        """The values of a key of the log, where they are numbers."""
        return [(row["step"], row[key]) for row in self.log if row.get(key) is not None]

    def keys(self, prefix: str) -> list[str]:
        """Keys of the log that start with `prefix`, in the order in which they first appear."""
        found = dict.fromkeys(key for row in self.log for key in row if key.startswith(prefix))
        return list(found)


def read_run(folder: Path, *, label: str = "") -> RunRecord:
    """Read a run's folder. Raises ConfigError where it is none, or one of its files is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: there is no {CONFIG} in it")
    config = build_config(read_config(path), where=str(path))
    manifest = read_json(folder / MANIFEST)
    return RunRecord(
        folder=folder,
        label=label or folder.name,
        config=config,
        config_text=path.read_text(encoding="utf-8"),
        section=_section(folder, config, manifest),
        log=_lines(folder / LOG),
        manifest=manifest,
        confusion_file=read_json(folder / CONFUSION),
        selection=read_json(folder / SELECTION),
    )


def last_confusion(folder: str, names: Sequence[str]) -> Counts | None:
    """(C, C+1) counts of a run's last validation; None where `folder` is no run, has none, or has other classes."""
    if not (folder and Path(folder).is_dir()):
        return None
    file = read_json(Path(folder) / CONFUSION)
    return np.array(file["confusion"], dtype=np.int64) if file.get("classes") == list(names) else None


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read several runs in different folders; those of the same name are told apart by their parents."""
    return [read_run(folder, label=label) for folder, label in zip(folders, labels(folders), strict=True)]


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths of different folders that differ from each other."""
    parts = [folder.absolute().parts for folder in folders]
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(part[-depth:]) for part in parts]


def _section(folder: Path, config: Config, manifest: Mapping[str, Any]) -> str:
    """Which stage was run: what the manifest says, else the stage that writes to this folder."""
    said = (manifest.get("result") or {}).get("section")
    if said in SECTIONS:
        return said
    own = [name for name in SECTIONS if Path(getattr(config, name).snapshot_dir).name == folder.name]
    return own[0] if own else SECTIONS[0]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The log's lines; one that a crash cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and math.isfinite(row.get("step", math.inf)):
            rows.append(row)
    return rows
