"""How far a translation brings the source to the target, in the eyes of a network that was trained on the target.

    python -m dataset.translate configs/streets.toml --method fda --set train val          and every other method
    python -m benchmarks.translation configs/streets.toml --json docs/results/translation_streets.json

The oracle's mIoU on the source as it is, on each translated copy, and on the target itself, which is where the others
should come to. All on val, at each domain's own input size, labels at native size. A network that knows the target
alone is no judge of how good an adaptation will be, but of whether images look to it as those of the target do.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.ladder_scores import gap_closed
from benchmarks.origin import origin
from dataset.labels import ClassTable
from dataset.loading import BatchLoader
from dataset.transforms import Normalize
from dataset.translation import COPIES
from utils import datasets, networks
from utils.config import Config, Parser, build_config, read_config
from utils.console import say
from utils.flags import output_file
from utils.inference import predict
from utils.json_files import write_json
from utils.launch import launch
from utils.metrics import ConfusionMatrix
from utils.runtime import pick_device
from utils.tables import format_columns


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print a table, and write the JSON."""
    arguments = _arguments(argv)
    path = Path(arguments.config)
    config = build_config(read_config(path), where=str(path))
    runs = Path("runs") / path.stem
    classes, device = datasets.class_table(config), pick_device(arguments.device)
    oracle = arguments.oracle or str(Path("runs") / f"{path.stem}_oracle" / "step1")
    network, normalize, weights, report = networks.trained_network(oracle, config, classes, device)
    for line in report.lines:
        say(line)

    domains: dict[str, Config] = {"source": _as_target(config, config.source)}
    for method in COPIES:
        copy = (arguments.translated or runs / "translated") / method
        domains[method] = _as_target(config, {**config.source, "root": str(copy)})
    domains["target"] = config
    made = origin("benchmarks.translation", argv, device)
    # All of them before the first score: a copy that is missing is said now.
    loaders = {name: datasets.prediction_loader(own, "val", classes, labelled=True) for name, own in domains.items()}
    scores = {name: _scores(loader, classes, network, normalize) for name, loader in loaders.items()}

    say(format_columns(classes.names, {name: score["iou"] for name, score in scores.items()}))
    low, high = scores["source"]["miou"], scores["target"]["miou"]
    percent = {method: gap_closed(scores[method]["miou"], low, high) for method in COPIES}
    closed = {method: None if share is None else share / 100 for method, share in percent.items()}
    for method, share in closed.items():
        way = "no way" if share is None else f"{share:.0%} of the way"
        say(f"{method}: {scores[method]['miou']:.2f} mIoU, {way} from {low:.2f} to {high:.2f}")
    if arguments.json:
        judge = {"step": weights.meta.get("step"), "sha256": weights.sha256}
        write_json(
            arguments.json, {**made, "config": path.stem, "oracle": judge, "gap_closed": closed, "scores": scores}
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="TOML file")
    parser.add_argument("--oracle", default="", metavar="RUN", help="default: runs/<name>_oracle/step1")
    parser.add_argument("--translated", type=Path, metavar="DIR", help="default: runs/<name>/translated")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--json", type=output_file, default="", metavar="FILE", help="also write the scores there")
    return parser.parse_args(argv)


def _as_target(config: Config, source: Any) -> Config:
    """The configuration with a source in the target's place."""
    return dataclasses.replace(config, target=source)


def _scores(loader: BatchLoader, classes: ClassTable, network: nn.Module, normalize: Normalize) -> dict[str, Any]:
    """The network's scores on labelled images."""
    confusion = ConfusionMatrix(classes.num_classes)
    for item in predict(network, loader, normalize=normalize):
        confusion.update(item.classes(), item.label.numpy())
    return confusion.to_dict(classes.names, classes.subsets)


if __name__ == "__main__":
    launch(main)
