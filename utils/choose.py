"""Which of a run's checkpoints to take, without a label of the target.

    python -m utils.choose runs/streets/step2                  every snapshot of the run by every criterion
    python -m utils.choose runs/streets/step2 --images 50      on at most 50 target training images

Looks at target training images, evenly spread, through every `<prefix>_<update>.pth` of the folder, and says which
checkpoint each criterion chooses; where the run has been validated, the true mIoU stands beside it. Writes
`selection.json` in the run's folder. Criteria: utils/selection.py, docs/ladder.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.corpora import evenly
from dataset.labels import ClassTable
from dataset.loading import Batch, BatchLoader, eval_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Normalize
from model.deeplab import SegmentationNetwork
from utils import datasets, networks
from utils.checkpoint import load_last
from utils.config import ConfigError, Parser
from utils.console import progress, say
from utils.flags import at_least_one
from utils.inference import output_of
from utils.json_files import write_json
from utils.launch import launch
from utils.run_files import SELECTION
from utils.run_folder import RunRecord, read_run
from utils.runtime import pick_device
from utils.selection import CRITERIA, CRITERION, Labels, Tally, agreement, choose, label_map, spearman
from utils.snapshots import snapshots


def main(argv: Sequence[str] | None = None) -> None:
    """Score the checkpoints, say what is chosen, write it down."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run (--snapshot-dir)")
    parser.add_argument("--images", type=at_least_one, default=200, metavar="N", help="images to look at (200)")
    arguments = parser.parse_args(argv)
    run = read_run(arguments.run)
    result = select(run, images=arguments.images)
    write_json(run.folder / SELECTION, result)
    say(_table(result))
    say(f"chosen by {CRITERION}: update {result['choice']['step']}; all numbers: {run.folder / SELECTION}")
    say(f"in the report: python -m utils.report {shlex.quote(str(arguments.run))}")


def select(run: RunRecord, *, images: int) -> dict[str, Any]:
    """Every criterion for every checkpoint, and what each chooses. Raises ConfigError where there is no checkpoint."""
    files = _snapshots(run)
    gaze = _Gaze.at(run, images=images)
    tallies, consensus = _tallies(run, files, gaze)
    taught = _teacher_labels(run, gaze)
    scores = {
        step: tally.scores() | {"teacher": agreement(tally.labels, taught or consensus, gaze.classes.num_classes)}
        for step, tally in tallies.items()
    }
    by_criterion = {name: {step: scores[step][name] for step in scores} for name in CRITERIA}
    chosen = {name: choose(values) for name, values in by_criterion.items()}
    truth = _truth(run, by_criterion)
    true = truth.get("miou_on_target_labels", {})
    return {
        "choice": {"criterion": CRITERION, "step": chosen[CRITERION], "miou": true.get(chosen[CRITERION])},
        "images": len(gaze.loader.images),
        "split": run.stage.split,
        "teacher": "the run's" if taught else "mean of the checkpoints",
        "scores": by_criterion,
        "chosen": chosen,
        **truth,
    }


def _tallies(run: RunRecord, snapshots: Mapping[int, Path], gaze: _Gaze) -> tuple[dict[int, Tally], list[Labels]]:
    """What each checkpoint answers, and per image the answers of the mean of all checkpoints' probabilities."""
    tallies: dict[int, Tally] = {}
    total: list[Tensor] = []
    for step, path in snapshots.items():
        network, normalize, _, _ = networks.trained_network(str(path), run.config, gaze.classes, gaze.device)
        tallies[step] = Tally(gaze.classes.num_classes)
        for index, (answer, mirrored, features) in enumerate(gaze.answers(network, normalize, f"update {step}")):
            tallies[step].add(answer, mirrored, features)
            if index == len(total):
                total.append(torch.zeros_like(answer))
            total[index] += answer
    return tallies, [label_map(answer) for answer in total]


def _truth(run: RunRecord, scores: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """What validation said of the checkpoints: for comparison, nothing is chosen by it."""
    true = {step: value for step, value in run.series("miou") if step in scores[CRITERION]}
    ranks = {name: spearman([values[step] for step in true], list(true.values())) for name, values in scores.items()}
    return {"miou_on_target_labels": true, "spearman": ranks} if true else {}


def _snapshots(run: RunRecord) -> dict[int, Path]:
    """Update -> weights, ascending."""
    prefix = run.stage.prefix
    found = snapshots(run.folder, prefix)
    if not found:
        raise ConfigError(f"{run.folder} holds no snapshot {prefix}_<update>.pth; train first")
    return {step: run.folder / f"{prefix}_{step}.pth" for step in sorted(found)}


@dataclass(frozen=True, kw_only=True)
class _Gaze:
    """What every network is shown, and how."""

    classes: ClassTable
    loader: BatchLoader
    device: torch.device
    precision: str

    @classmethod
    def at(cls, run: RunRecord, *, images: int) -> _Gaze:
        """At most so many target training images of a run; their labels are not looked for."""
        config = run.config
        classes = datasets.class_table(config)
        samples = datasets.corpus(config, "target", classes).samples(run.stage.split, labelled=False)
        dataset = SegmentationDataset(
            evenly(samples, images),
            decoding=None,
            size=datasets.input_size(config, "target"),
            cache=datasets.image_cache(config),
        )
        return cls(
            classes=classes,
            loader=eval_loader(dataset, num_workers=datasets.worker_count(config)),
            device=pick_device(config.run.device),
            precision=config.run.precision,
        )

    @torch.no_grad()
    def answers(
        self, network: SegmentationNetwork, normalize: Normalize, what: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per image: probabilities (C, h, w), those of its mirror image turned back, features (D, h, w)."""
        batch: Batch
        for batch in progress(self.loader, total=self.loader.num_images, description=what, unit="image"):
            images = batch.images.to(self.device)
            both = torch.cat([images, images.flip(-1)])
            output = output_of(network, both, normalize=normalize, precision=self.precision)
            answer, mirrored = output.logits.float().softmax(dim=1)
            yield answer, mirrored.flip(-1), output.features[0]


def _teacher_labels(run: RunRecord, gaze: _Gaze) -> list[Labels]:
    """The answers of the teacher that the run ended with; nothing where it had none."""
    state = load_last(run.folder)["teacher"]
    if state is None:
        return []
    network, normalize, _, _ = networks.trained_network(str(run.folder), run.config, gaze.classes, gaze.device)
    prefix = "network."
    network.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    seen = gaze.answers(network, normalize, "teacher")
    return [label_map(answer) for answer, _, _ in seen]


def _table(result: Mapping[str, Any]) -> str:
    """Checkpoints down, criteria across; a star at what each chooses."""
    true = result.get("miou_on_target_labels", {})
    lines = ["update".rjust(8) + "".join(name.rjust(14) for name in CRITERIA) + ("mIoU".rjust(8) if true else "")]
    for step in result["scores"][CRITERION]:
        cells = [
            f"{result['scores'][name][step]:.4f}{'*' if result['chosen'][name] == step else ' '}".rjust(14)
            for name in CRITERIA
        ]
        lines.append(f"{step:8d}" + "".join(cells) + (f"{true[step]:8.2f}" if step in true else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main)
