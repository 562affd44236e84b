"""What an earlier ladder found, so that a rung can be added to its results without its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.ladder_plan import Job
from benchmarks.ladder_scores import Outcome
from benchmarks.origin import MADE_WITH
from utils.config import ConfigError


@dataclass(frozen=True)
class Known:
    """Outcomes by `Job.key`, and what they were made with.

    A key says which settings a run had, not what was in its images, nor on which machine it was made: another
    processor rounds otherwise, and the difference grows with the updates.
    """

    runs: Mapping[str, Outcome] = field(default_factory=dict)
    made_with: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Known:
        """What a ladder's JSON knows of runs that were looked at. Raises ConfigError for a file that is none."""
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            outcomes = [Outcome.of_entry(entry) for entry in result["runs"]]
            made_with = {name: _texts(result[name]) for name in MADE_WITH}
        except OSError as error:
            raise ConfigError(f"--known {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"--known {path}: this is not the JSON of a ladder") from error
        return cls({"/".join(Path(of.folder).parts[-2:]): of for of in outcomes if of.chosen}, made_with)

    def __contains__(self, job: Job) -> bool:
        return job.key in self.runs

    def outcome(self, rung: str, last: Job) -> Outcome:
        """What is known of a run; rungs may come to it by another name than they did, and folders be elsewhere."""
        return replace(self.runs[last.key], rung=rung, folder=str(last.folder))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError
    return values
