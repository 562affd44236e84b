"""What an earlier ladder found, so that a rung can be added to its results without its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.ladder_plan import Job
from benchmarks.ladder_scores import Outcome
from utils.config import ConfigError

MADE_WITH = ("devices", "torch", "commits")


@dataclass(frozen=True)
class Known:
    """Outcomes by run folder, which is named after everything that matters to them, and what they were made with."""

    runs: Mapping[str, Outcome] = field(default_factory=dict)
    made_with: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Known:
        """What a ladder's JSON knows. Raises ConfigError for a file that is none."""
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            outcomes = [Outcome.of_entry(entry) for entry in result["runs"]]
            return cls({outcome.folder: outcome for outcome in outcomes}, {name: result[name] for name in MADE_WITH})
        except OSError as error:
            raise ConfigError(f"--known {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"--known {path}: this is not the JSON of a ladder") from error

    def __contains__(self, job: Job) -> bool:
        return str(job.folder) in self.runs

    def outcome(self, rung: str, seed: int, last: Job) -> Outcome:
        """What is known of a run; rungs may come to it by another name than they did."""
        return replace(self.runs[str(last.folder)], rung=rung, seed=seed)


def union(*sources: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What results of several origins were made with."""
    return {name: sorted({value for source in sources for value in source.get(name, ())}) for name in MADE_WITH}
