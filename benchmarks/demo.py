"""`make demo`: the whole pipeline on the embedded benchmark, through the same scripts that run on real data.

    python -m benchmarks.demo                        runs/demo, configs/streets.toml, seed 0
    python -m benchmarks.demo --seed 1 --out runs/demo1

Renders the data, trains source-only, the control, stage 1 and stage 2, and ends with a table, a picture,
`summary.json` and the pages of utils/report/. What an earlier, interrupted demo finished in the same folder is kept;
one of other settings, or of a recipe that has changed since, is refused.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.origin import made_with, module_command
from dataset.corpora import Sample
from dataset.labels import ClassTable
from utils import datasets
from utils.config import Config, ConfigError, Parser, build_config, completed, read_config
from utils.console import say
from utils.flags import not_negative
from utils.json_files import read_json, write_json
from utils.launch import launch
from utils.resume import changes
from utils.run_files import LAST, MANIFEST, THRESHOLDS
from utils.run_folder import read_run
from utils.sheet import contact_sheet
from utils.tables import format_columns

ROOT = Path(__file__).resolve().parent.parent
RUNS = ("source_only", "control", "step1", "step2")
TITLES = {"source_only": "source-only", "control": "control", "step1": "stage 1", "step2": "stage 2"}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One demo: where it writes, which recipes it runs, and the command that asked for it."""

    out: Path
    config: Path
    seed: int
    images: tuple[int, int, int, int]  # source train, source val, target train, target val
    command: str

    def run(self) -> dict[str, Any]:
        """Everything from data to summary; returns the summary."""
        began = time.monotonic()
        config = self.recipe()
        settings = self.settings()
        self.require_same(settings)
        self.render(config)
        write_json(self.note, settings)
        self.train("source_only", "train_step1.py", recipe="_source_only")
        after = ["--restore-from", self.folder("source_only")]
        self.train("control", "train_step1.py", recipe="_control", flags=after)
        self.train("step1", "train_step1.py", flags=after)
        self.pseudo_labels()
        labels = ["--ssl-target-dir", str(self.out / "pseudo_labels")]
        self.train("step2", "train_step2.py", flags=["--restore-from", self.folder("step1"), *labels])
        for name in ("source_only", "step2"):
            self.predict(name)
        summary = self.report(config, time.monotonic() - began)
        self.pages()
        return summary

    def recipe(self, suffix: str = "") -> Config:
        """The recipe, or with a suffix the one beside it. Raises ConfigError for mistakes in it."""
        path = self.beside(suffix)
        return build_config(read_config(path), where=str(path))

    def beside(self, suffix: str) -> Path:
        """The file of a recipe, e.g. streets_control.toml for "_control"."""
        return self.config.with_name(f"{self.config.stem}{suffix}.toml")

    @property
    def note(self) -> Path:
        """Where the folder says what its runs are made from."""
        return self.out / "settings.json"

    def settings(self) -> dict[str, Any]:
        """What the runs are made from."""
        recipes = {
            self.beside(suffix).name: self.recipe(suffix).to_dict() for suffix in ("", "_source_only", "_control")
        }
        return {"seed": self.seed, "images": list(self.images), "recipes": recipes}

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError where runs in the folder are made from something else: kept, they would be reported as of
        this command."""
        found = read_json(self.note)
        if not found and not any(Path(self.folder(name)).exists() for name in RUNS):
            return
        recipes = {name: completed(recipe) for name, recipe in found.get("recipes", {}).items()}
        if other := changes({**found, "recipes": recipes}, settings):
            reason = f"a demo of other settings ({other[0]})" if found else "runs that no demo has noted"
            raise ConfigError(f"{self.out} holds {reason}; remove it, or give another --out")

    def folder(self, name: str) -> str:
        """The folder of one run."""
        return str(self.out / name)

    def render(self, config: Config) -> None:
        """Draw the two domains, once."""
        width, height = config.source["size"]
        counts = zip(("--source", "--source-val", "--target", "--target-val"), map(str, self.images), strict=True)
        flags = [flag for pair in counts for flag in pair]
        size = ["--size", f"{width},{height}"]
        self.call("-m", "dataset.streets", str(self.out / "data"), "--seed", str(self.seed), *flags, *size)

    def train(self, name: str, script: str, *, recipe: str = "", flags: list[str] | None = None) -> None:
        """One training run, unless its manifest says that it is done."""
        folder = Path(self.folder(name))
        if (folder / MANIFEST).exists():
            say(f"{TITLES[name]}: finished earlier, kept; remove {folder} to run it again")
            return
        say(f"\n== {TITLES[name]} ==")
        resume = ["--continue-train"] if (folder / LAST).exists() else []
        self.call(str(ROOT / script), *self.common(recipe), "--snapshot-dir", str(folder), *(flags or []), *resume)

    def pseudo_labels(self) -> None:
        """Pseudo labels from stage 1's last checkpoint."""
        folder = self.out / "pseudo_labels"
        if (folder / THRESHOLDS).exists():
            return
        say("\n== pseudo labels ==")
        where = ["--restore-from", self.folder("step1"), "--save", str(folder)]
        self.call(str(ROOT / "Generate_Pseudo_Label.py"), *self.common(prediction=True), *where)

    def predict(self, name: str) -> None:
        """PNGs of target val by one of the networks, scored from the PNGs."""
        say(f"\n== evaluation: {TITLES[name]} ==")
        folder = str(self.out / "predictions" / name)
        where = ["--restore-from", self.folder(name), "--save", folder]
        self.call(str(ROOT / "evaluate_cityscapes.py"), *self.common(prediction=True), *where)
        truth = str(self.out / "data" / "Cityscapes" / "gtFine" / "val")
        scores = str(self.out / "predictions" / f"{name}.json")
        self.call(str(ROOT / "compute_iou.py"), truth, folder, "--config", str(self.config), "--json", scores)

    def common(self, recipe: str = "", *, prediction: bool = False) -> list[str]:
        """Flags of every script: recipe, seed, and this demo's data."""
        target = str(self.out / "data" / "Cityscapes")
        data = ["--data-dir", target]
        if not prediction:
            data = ["--data-dir", str(self.out / "data" / "gta5_deeplab"), "--data-dir-target", target]
            data += ["--override", "run.report=false"]  # `pages` makes them all
        return ["--config", str(self.beside(recipe)), "--random-seed", str(self.seed), *data]

    def call(self, *command: str) -> None:
        """Run a script as a user would; its output is the demo's. Stops the demo with the script's exit code."""
        result = subprocess.run([sys.executable, *command], check=False, cwd=Path.cwd())
        if result.returncode:
            raise SystemExit(result.returncode)

    def report(self, config: Config, seconds: float) -> dict[str, Any]:
        """Table, picture, summary."""
        classes = datasets.class_table(config)
        runs = {name: read_run(self.out / name) for name in RUNS}
        scores = {name: run.result["last"] for name, run in runs.items()}
        say("\n" + format_columns(classes.names, {TITLES[name]: scores[name]["iou"] for name in RUNS}))
        picture(self.out, config, classes).save(self.out / "adaptation.png")
        summary = {
            "command": self.command,
            **made_with(runs.values()),
            **{name: scores[name]["miou"] for name in RUNS},
            "seconds": seconds,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "run_seconds": {name: run.result["seconds"] for name, run in runs.items()},
        }
        write_json(self.out / "summary.json", summary)
        gain = summary["step2"] - summary["source_only"], summary["step2"] - summary["control"]
        say(f"\nstage 2 is {gain[0]:+.1f} mIoU on source-only and {gain[1]:+.1f} on the control, after {seconds:.0f} s")
        say(f"picture: {self.out / 'adaptation.png'}\nsummary: {self.out / 'summary.json'}")
        return summary

    def pages(self) -> None:
        """A page of each run against source-only, and one that compares them; says where they are."""
        folders = [self.folder(name) for name in RUNS]
        self.call("-m", "utils.report", *folders, "--out", str(self.out / "report.html"))


def picture(out: Path, config: Config, classes: ClassTable, *, rows: int = 4) -> Image.Image:
    """Image, truth, source-only and adapted prediction, side by side, for a few target validation images."""
    target = {**config.target, "root": str(out / "data" / "Cityscapes")}
    data = datasets.corpus(replace(config, target=target), "target", classes)
    samples = data.samples("val", labelled=True)
    chosen = samples[:: max(1, len(samples) // rows)][:rows]
    titles = ("image", "truth", "source-only", "adapted (stage 2)")
    return contact_sheet(titles, [panels(sample, data, out, classes) for sample in chosen])


def panels(sample: Sample, data: Any, out: Path, classes: ClassTable) -> list[Image.Image]:
    """The four pictures of one image. Truth that is ignored stays black."""
    stem = Path(sample.name).stem
    coloured = [out / "predictions" / name / f"{stem}_color.png" for name in ("source_only", "step2")]
    truth = classes.colorize(data.decoding.decode(sample.label))
    return [Image.open(sample.image).convert("RGB"), truth.convert("RGB")] + [
        Image.open(path).convert("RGB") for path in coloured
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = Parser(description=__doc__)
    recipe, images = ROOT / "configs" / "streets.toml", (400, 50, 400, 100)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="of it all (runs/demo)")
    parser.add_argument("--config", type=Path, default=recipe, metavar="CONFIG", help="recipe (configs/streets.toml)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of images and trainings (0)")
    parser.add_argument(
        "--images",
        type=not_negative,
        nargs=4,
        default=images,
        metavar="N",
        help="source training and validation, target training and validation images (400 50 400 100)",
    )
    arguments = parser.parse_args(argv)
    demo = Demo(
        out=arguments.out,
        config=arguments.config,
        seed=arguments.seed,
        images=tuple(arguments.images),
        command=module_command("benchmarks.demo", argv),
    )
    demo.run()


if __name__ == "__main__":
    launch(main)
