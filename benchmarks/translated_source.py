"""What translated source images are worth to a network that learns from the source alone.

    python -m benchmarks.translated_source configs/streets_source_only.toml --seeds 3
    python -m benchmarks.translated_source configs/roads_source_only.toml --seeds 3 --metric road --report-only

The recipe under several seeds with the images as they are, with each translation on the fly, and with the copy that
`python -m dataset.translate ... --method cyclegan` wrote, if --cyclegan names it. A run that is finished is kept, one
that was stopped goes on. Writes docs/results/translated_<recipe>.json and prints the table of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ladder_scores import metric_named, paired, spread
from benchmarks.origin import made_with, module_command
from utils.config import TRANSLATIONS, ConfigError, Parser, build_config, override, read_config
from utils.console import say
from utils.flags import assignment, at_least_one
from utils.json_files import write_json
from utils.launch import launch
from utils.run_files import LAST, MANIFEST
from utils.run_folder import RunRecord, read_run

ROOT = Path(__file__).resolve().parent.parent
AS_STORED = "none"


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, then report."""
    arguments = _parser().parse_args(argv)
    data = read_config(arguments.config)
    for path, value in map(assignment, arguments.override):
        override(data, path, value)
    metric = metric_named(arguments.metric, build_config(data, where=str(arguments.config)), where=arguments.config)
    out = arguments.out or Path("runs") / "translated_source" / arguments.config.stem
    methods = [*TRANSLATIONS, *(["cyclegan"] if arguments.cyclegan else [])]
    folders = {(method, seed): out / f"{method}_seed{seed}" for seed in range(arguments.seeds) for method in methods}
    if not arguments.report_only:
        for (method, seed), folder in folders.items():
            train(arguments, method, seed, folder)
    runs = {key: read_run(folder) for key, folder in folders.items() if (folder / MANIFEST).is_file()}
    result = report(runs, metric)
    for method, found in result["methods"].items():
        say(line(method, found))
    missing = [str(folder) for key, folder in folders.items() if key not in runs]
    if missing:
        say(f"not finished: {', '.join(missing)}")
    facts = {
        "command": module_command("benchmarks.translated_source", argv),
        "config": arguments.config.stem,
        "metric": metric,
        "overrides": arguments.override,
        "not_finished": missing,
    }
    path = arguments.results / f"translated_{arguments.config.stem}.json"
    write_json(path, facts | result)
    say(f"results: {path}")


def train(arguments: argparse.Namespace, method: str, seed: int, folder: Path) -> None:
    """One run of train_step1.py, unless it is finished. Raises ConfigError where it fails."""
    if (folder / MANIFEST).is_file():
        return
    copy = method == "cyclegan"
    source = ["--data-dir", arguments.cyclegan] if copy else []
    source += ["--translation", AS_STORED if copy else method]
    flags = ["--random-seed", str(seed), "--snapshot-dir", str(folder), *source]
    flags += [word for change in arguments.override for word in ("--override", change)]
    resumed = ["--continue-train"] if (folder / LAST).is_file() else []
    script = [str(ROOT / "train_step1.py"), "--config", str(arguments.config)]
    if subprocess.run([sys.executable, *script, *flags, *resumed], check=False).returncode:
        raise ConfigError(f"the run {folder} failed, see above")


def report(runs: dict[tuple[str, int], RunRecord], metric: str) -> dict[str, Any]:
    """Per method: scores of the last checkpoints by seed, mean, standard deviation, paired difference to the images as
    they are; and what the runs were made with."""
    scores: dict[str, dict[int, float]] = {}
    for (method, seed), run in runs.items():
        last = run.result["last"]
        scores.setdefault(method, {})[seed] = last["miou"] if metric == "miou" else last["iou"][metric]
    return {
        "methods": {
            method: {
                "per_seed": found,
                **spread(list(found.values())),
                "difference_to_none": paired(found, scores.get(AS_STORED, {})),
            }
            for method, found in scores.items()
        },
        "updates": sorted({run.result["steps"] for run in runs.values()}),
        **made_with(runs.values()),
    }


def line(method: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    deviation = "" if found["std"] is None else f" ± {found['std']:.1f}"
    per_seed = ", ".join(f"{value:.1f}" for value in found["per_seed"].values())
    gain = found["difference_to_none"]
    error = "" if gain["standard_error"] is None else f" ± {gain['standard_error']:.1f}"
    against = f"  {gain['mean']:+.1f}{error}" if method != AS_STORED and gain["mean"] is not None else ""
    return f"{method:<10} {found['mean']:5.1f}{deviation}  ({per_seed}){against}"


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a recipe that learns from the source alone")
    parser.add_argument("--seeds", type=at_least_one, default=1, metavar="N", help="0 to N-1 (1)")
    parser.add_argument("--cyclegan", default="", metavar="FOLDER", help="a translated copy of the source")
    parser.add_argument("--metric", default="miou", metavar="CLASS", help="class whose IoU counts (mean of all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="runs (runs/translated_source/<recipe>)")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), metavar="FOLDER", help="of the tables (docs/results)"
    )
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as of the scripts")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    return parser


if __name__ == "__main__":
    launch(main)
