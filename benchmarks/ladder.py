"""The ladder: what every part of the method is worth, from source-only to the oracle, on one recipe.

    python -m benchmarks.ladder configs/streets.toml --list                      what would be run
    python -m benchmarks.ladder configs/streets.toml --seeds 3                   all rungs, seeds 0, 1, 2
    python -m benchmarks.ladder configs/streets.toml --seeds 1,2,5 --rungs source_only,configured,oracle
    python -m benchmarks.ladder configs/streets.toml --seeds 3 --report-only     tables from what is finished
    python -m benchmarks.ladder configs/streets.toml --seeds 3 --known docs/results/ladder_streets.json
                                                  without the runs whose results that file has: to add a rung

Every rung has the recipe's updates, and runs that rungs have in common are made once. Each run is one of the scripts,
in a process of its own, with its settings and output beside its folder; what an earlier call finished is kept and what
it began goes on. After each run docs/results/ladder_<recipe>.json, .md and .svg are written anew. docs/ladder.md
explains the rungs and the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.ladder_known import Known
from benchmarks.ladder_plan import Job, Recipe, plan, unique
from benchmarks.ladder_report import chart, markdown
from benchmarks.ladder_scores import Outcome, metric_named, rank_correlation, summarize
from benchmarks.origin import command_line, made_with, module_command, union
from benchmarks.rungs import BY_NAME, RUNGS, Rung
from dataset.corpora import DataError
from utils import datasets
from utils.config import ConfigError, Parser, build_config, nearest
from utils.console import say
from utils.files import atomic_write
from utils.flags import assignment, at_least_one
from utils.interrupts import exit_code
from utils.json_files import write_json
from utils.launch import launch
from utils.run_files import SELECTION
from utils.run_folder import read_run

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> None:
    """List, run, or report."""
    arguments = _parser().parse_args(argv)
    changes = dict(map(assignment, arguments.override))
    recipe = Recipe.read(arguments.config, scale=arguments.steps_scale, changes=changes, stages=arguments.stages)
    ladder = Ladder(
        recipe=recipe,
        rungs=_rungs(arguments.rungs),
        seeds=arguments.seeds,
        out=arguments.out or Path("runs") / "ladder" / arguments.config.stem,
        results=arguments.results,
        metric=metric_named(arguments.metric, recipe.config, where=recipe.path),
        command=module_command("benchmarks.ladder", argv),
        known=Known.read(arguments.known) if arguments.known else Known(),
    )
    if arguments.known:
        ladder.check_known(arguments.known)
    if arguments.list:
        ladder.list()
        return
    if not arguments.report_only:
        ladder.check_before_hours()
    failed = [] if arguments.report_only else Runner(ladder, at_once=arguments.jobs).run()
    written = ladder.write()
    if written != ladder.json:
        say(f"note: {ladder.json} holds runs that are not among these, and stays; to have it replaced, remove it first")
    say(f"results: {written}")
    if failed:
        raise SystemExit(1)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="recipe")
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="N|A,B,...", help="how many (from 0), or which")
    parser.add_argument("--rungs", default="", metavar="NAME,...", help=f"of {', '.join(BY_NAME)} (all)")
    parser.add_argument("--stages", type=int, choices=(1, 2), default=2, help="of the recipe as configured (2)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="runs (runs/ladder/<recipe>)")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), metavar="FOLDER", help="of the tables (docs/results)"
    )
    parser.add_argument("--metric", default="miou", metavar="CLASS", help="class whose IoU counts (mean of all)")
    parser.add_argument("--steps-scale", type=_scale, default=1.0, metavar="X", help="factor of all updates (1)")
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help="runs at once (1)")
    parser.add_argument("--known", type=Path, metavar="FILE", help="results of an earlier ladder, not made again")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as of the scripts")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--report-only", action="store_true", help="write the results of what is finished")
    return parser


def _seeds(text: str) -> list[int]:
    parts = text.removesuffix(",").split(",")
    seeds = [int(part) for part in parts if part.isdecimal()]
    if len(set(seeds)) < len(parts) or (seeds == [0] and "," not in text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor a list of different ones")
    return seeds if "," in text else list(range(seeds[0]))


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _rungs(names: str) -> list[Rung]:
    """The rungs of these names, in the ladder's order; all for none."""
    wanted = [name for name in names.split(",") if name] or list(BY_NAME)
    for name in wanted:
        if name not in BY_NAME:
            raise ConfigError(f"--rungs: there is no rung {name!r}{nearest(name, list(BY_NAME))}")
    return [rung for rung in RUNGS if rung.name in wanted]


# ---- what there is ----


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rungs of a recipe under several seeds.

    command: the one that was given, for the results. known: results whose runs need not be here.
    """

    recipe: Recipe
    rungs: Sequence[Rung]
    seeds: Sequence[int]
    out: Path
    results: Path
    metric: str
    command: str
    known: Known = field(default_factory=Known)

    @property
    def climbs(self) -> list[tuple[Rung, int, Job]]:
        """(rung, seed, its last run), seed by seed: what is finished first can be compared first."""
        return [(rung, seed, plan(self.recipe, rung, seed, self.out)) for seed in self.seeds for rung in self.rungs]

    @property
    def finals(self) -> list[Job]:
        """The last runs of all rungs, but those that are known and not here."""
        return [last for *_, last in self.climbs if last.finished or last not in self.known]

    def list(self) -> None:
        """Say what would be run, what each shares with those before it, and how many updates that makes."""
        shared: dict[Path, str] = {}
        jobs = unique(self.finals)
        needed = {job.folder for job in jobs}
        for rung, seed, last in self.climbs:
            parts = []
            for job in last.chain:
                state = self._state(job, needed)
                owner = shared.setdefault(job.folder, rung.name)
                state = state if owner == rung.name else f"of {owner}"
                parts.append(f"{job.folder.name} ({f'{job.updates} updates, ' if job.updates else ''}{state})")
            say(f"seed {seed}, {rung.name}: {' -> '.join(parts)}")
        left = sum(job.updates for job in jobs if not job.finished)
        say(f"{len(jobs)} runs below {self.out}, {sum(job.updates for job in jobs)} updates, {left} of them to do")

    @staticmethod
    def _state(job: Job, needed: set[Path]) -> str:
        if job.finished:
            return "finished"
        if job.folder not in needed:
            return "known"
        return "to go on" if job.interrupted else "to run"

    def check_known(self, file: Path) -> None:
        """Say what of an earlier ladder's JSON is of use. Raises ConfigError where nothing is."""
        planned = {last.key for *_, last in self.climbs}
        found = planned & self.known.runs.keys()
        if not found:
            raise ConfigError(f"--known {file}: of its runs none belongs to this recipe, its settings and these seeds")
        say(f"known from {file}: {len(found)} of {len(planned)} results")

    def check_before_hours(self) -> None:
        """Raise what would end the ladder after its first trainings: results that cannot be written, and labels that a
        rung learns from and nobody has."""
        self.results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.results):
            pass
        left = [(rung, last) for rung, _, last in self.climbs if last not in self.known and not last.finished]
        for rung, last in {rung.target_labels: (rung, last) for rung, last in left}.values():
            config = build_config(last.settings, where=str(self.recipe.path))
            labelled = datasets.corpus(config, "source", datasets.class_table(config))
            try:
                labelled.samples("train", labelled=True)
            except DataError as error:
                others = "; it learns from the target's labels, name the other --rungs" if rung.target_labels else ""
                raise DataError(f"{rung.name}: {error}{others}") from None

    @property
    def json(self) -> Path:
        """Where the results go; their page and picture lie beside it."""
        return self.results / f"ladder_{self.recipe.path.stem}.json"

    def write(self) -> Path:
        """Write the results of what is finished; the JSON file, below `out` where they would replace other runs'."""
        result, file = self.result(), self.json
        if _runs(file) - {Path(run["folder"]).parts[-2:] for run in result["runs"]}:
            file = self.out / file.name
        write_json(file, result)
        page, picture = (file.with_suffix(suffix) for suffix in (".md", ".svg"))
        for beside, text in ((page, markdown(result, picture.name)), (picture, chart(result))):
            with atomic_write(beside) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return file

    def result(self) -> dict[str, Any]:
        """Everything that is known so far."""
        climbs = self.climbs
        done = [(rung, seed, last) for rung, seed, last in climbs if last.finished or last in self.known]
        outcomes = [
            _outcome(rung, seed, last) if last.finished else self.known.outcome(rung.name, last)
            for rung, seed, last in done
        ]
        here = [last for *_, last in done if last.finished]
        known = self.known.made_with if len(here) < len(done) else {}
        warm_up = next((last.chain[0].updates for *_, last in climbs if self.recipe.warm_up), 0)
        return {
            "recipe": self.recipe.path.stem,
            "command": self.command,
            "complete": len(outcomes) == len(climbs) and all(outcome.chosen for outcome in outcomes),
            "metric": self.metric,
            "seeds": self.seeds,
            "budget": {"rung": self.recipe.budget, "warm_up": warm_up},
            "out": self.out,
            **union(made_with(read_run(job.folder) for job in unique(here) if job.updates), known),
            "rungs": self._described(),
            "scores": summarize(outcomes, self.metric),
            "selection": rank_correlation(outcomes, self.metric),
            "runs": [vars(outcome) for outcome in outcomes],
        }

    def _described(self) -> dict[str, Any]:
        """The rungs, and which of them come to the same runs."""
        owner: dict[Path, str] = {}
        described: dict[str, Any] = {}
        for rung in self.rungs:
            last = plan(self.recipe, rung, self.seeds[0], self.out)
            first = owner.setdefault(last.folder, rung.title)
            described[rung.name] = {"title": rung.title, "same_as": first if first != rung.title else None}
        return described


def _runs(file: Path) -> set[tuple[str, ...]]:
    """Seed and folder of every run that a ladder's JSON speaks of; none where there is no such file."""
    if not file.is_file():
        return set()
    return {Path(run["folder"]).parts[-2:] for run in json.loads(file.read_text(encoding="utf-8"))["runs"]}


def _outcome(rung: Rung, seed: int, last: Job) -> Outcome:
    """What a rung's last run says."""
    run = read_run(last.folder)
    names = run.keys("iou/")
    miou = dict(run.series("miou"))
    iou = {row["step"]: {name.removeprefix("iou/"): row[name] for name in names} for row in run.log if "miou" in row}
    scores = run.selection.get("scores", {})
    return Outcome(
        rung=rung.name,
        seed=seed,
        miou=miou,
        iou=iou,
        criteria={name: {int(step): value for step, value in of.items()} for name, of in scores.items()},
        chosen=run.selection.get("chosen", {}),
        seconds=sum(_seconds(job) for job in last.chain),
        device=", ".join(made_with(read_run(job.folder) for job in last.chain if job.updates)["devices"]),
        folder=str(last.folder),
        commands=[command_line(command(job)) for job in last.chain],
    )


def _seconds(job: Job) -> float:
    """What a training took; pseudo labels are not timed."""
    return read_run(job.folder).result["seconds"] if job.updates else 0.0


# ---- running ----


def command(job: Job) -> list[str]:
    """The script and its flags; everything else is in the configuration."""
    resumed = ["--continue-train"] if job.interrupted else []
    return [job.script, "--config", str(job.config_file), *resumed]


@dataclass
class Runner:
    """Makes the runs of a ladder that are not finished, as many at once as wanted."""

    ladder: Ladder
    at_once: int = 1
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False

    def run(self) -> list[Job]:
        """Make them; the ones that failed. What depends on those is left out, everything else is made."""
        last = self.ladder.finals
        finals = {job.folder for job in last}
        waiting = [job for job in unique(last) if not self._settled(job, finals)]
        total, failed = len(waiting), list[Job]()
        under_way: dict[Future[bool], Job] = {}
        with _terminable(), ThreadPoolExecutor(self.at_once) as pool:
            try:
                while waiting or under_way:
                    for job in [job for job in waiting if all(parent.finished for parent in job.after)]:
                        if len(under_way) == self.at_once:
                            break
                        waiting.remove(job)
                        say(f"[{total - len(waiting)}/{total}] {job.key}, {job.updates} updates; {job.log_file}")
                        under_way[pool.submit(self._make, job, job.folder in finals)] = job
                    if not under_way:  # what is left waits for a run that failed
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        job = under_way.pop(future)
                        if not future.result():
                            failed.append(job)
                    self.ladder.write()
            finally:
                self._end_all()
        for job in waiting:
            say(f"left out, since a run that it needs failed: {job.key}")
        return [*failed, *waiting]

    def _settled(self, job: Job, finals: set[Path]) -> bool:
        """Whether nothing is left to do: the last run of a rung is looked at for a choice of its checkpoint, too."""
        return job.finished and (job.folder not in finals or (job.folder / SELECTION).is_file())

    def _make(self, job: Job, final: bool) -> bool:
        """Run a job's script, and look at the checkpoints of a final one; whether all went well."""
        began = time.monotonic()
        with atomic_write(job.config_file) as temporary:
            temporary.write_bytes(tomli_w.dumps(dict(job.settings)).encode())
        good = job.finished or self._call(job, [str(ROOT / job.script), *command(job)[1:]])
        if good and final:
            good = self._call(job, ["-m", "utils.choose", str(job.folder)])
        minutes = (time.monotonic() - began) / 60
        how = "done" if good else "interrupted" if self.ended else "FAILED"
        say(f"{job.key}: {how} after {minutes:.1f} min")
        if how == "FAILED":
            say(f"  {_last_words(job.log_file)}; the whole log: {job.log_file}")
        return good

    def _call(self, job: Job, words: Sequence[str]) -> bool:
        """A process whose output goes to the job's log; whether it ended well."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with job.log_file.open("ab") as log:
            log.write(f"\n$ {command_line(words)}\n".encode())
            log.flush()
            # Its own session: Ctrl-C reaches it once, by way of `_end_all`.
            process = subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=log, env=environment, start_new_session=True
            )
            with self.lock:
                self.running[process.pid] = process
            code = process.wait()
            with self.lock:
                del self.running[process.pid]
        return code == 0

    def _end_all(self) -> None:
        """Ask what still runs to save its state and end."""
        self.ended = True
        with self.lock:
            for process in self.running.values():
                process.send_signal(signal.SIGTERM)


def _last_words(log_file: Path) -> str:
    """The last line of a log, which is the script's mistake or the end of its traceback."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "nothing was said"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM within ends the ladder in order, as Ctrl-C does: its processes would outlive it."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(exit_code(number))

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    launch(main)
