"""Write a copy of the source whose images look like the target's; the labels stay what they are.

    python -m dataset.translate configs/gta5_to_cityscapes.toml --method fda
    python -m dataset.translate configs/gta5_to_cityscapes.toml --method lab --set train val
    python -m dataset.translate configs/gta5_to_cityscapes.toml --method cyclegan --segmenter runs/source_only/step1

`fda`, `lab` and `histogram` take the style of a target image, drawn for every source image, and work in --num-workers
processes; `cyclegan` first trains a translator (--continue-train goes on with one) and then runs it in batches. Of the
target only images are read. The copy is laid out as the source: --data-dir, or the configuration that is written beside
it, makes a training read it. Images have the shape of the source's, reduced to where they just cover [source] size. A
run that was stopped goes on where it was. docs/translation.md.
"""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from PIL import Image

from dataset.corpora import Corpus, Sample, evenly, number_of
from dataset.images import read_image, resize
from dataset.pool import processes
from dataset.toml import DataError
from dataset.translation import COPIES, Method, Translator, drawn_images, method_named
from utils.background import ENCODINGS, in_background, write_image
from utils.config import Config, ConfigError, Parser
from utils.console import progress, say
from utils.files import atomic_write, names_and_sizes, remove_temporaries
from utils.json_files import write_json
from utils.lock import only_one
from utils.sheet import contact_sheet

if TYPE_CHECKING:
    from torch import nn

    from utils.flags import Options

# What else this script composes is imported where it is used: every worker process imports this module again.
FORMAT = 1
"""Version of the copies; raise it whenever the same settings would give other images."""

MANIFEST = "translation.json"
SHEET, SHEET_ROWS, SHEET_CELL = "before_after.png", 6, 384
AGAIN = "start again, what is translated is kept"
ANOTHER = "choose another --save or remove that folder"
AS_STORED = "none"  # the translation on the fly of a copy that is translated already


def main(argv: Sequence[str] | None = None) -> None:
    """Translate what the command line names, and say how to use it."""
    from utils.flags import TRANSLATING, parse

    config, options = parse(argv, description=__doc__ or "", section="cyclegan", flags=TRANSLATING, extend=_arguments)
    from utils.notes import say_notes  # only now, as in the training scripts: with torch

    say_notes(config, options)
    job = _job(config, options)
    with only_one(job.folder, "wait for it, or choose another --save"):
        _refuse_what_is_not_ours(job)  # before hours of training
        painter = _painter(config, options, job)
        _claim(job, painter.settings)
        kept = list(progress(painter.paint(job.tasks), total=len(job.tasks), description="translate", unit="image"))
        _write_sheet(job, painter)
        _finish(job, painter.settings, config, options)
    say(f"{number_of(len(kept), 'image')} in {job.folder}" + (f", {sum(kept)} of an earlier run" if any(kept) else ""))
    say(f"before and after: {job.folder / SHEET}")
    if options.json:
        write_json(options.json, json.loads((job.folder / MANIFEST).read_text(encoding="utf-8")) | {"kept": sum(kept)})
    if job.same_layout:
        as_stored = "" if config.translation.method == AS_STORED else f" --translation {AS_STORED}"
        say(f"the same configuration reads it with --data-dir {job.folder}{as_stored}")
    say(f"next: {_next_command(options, job.fragment)}")


# ---- what is to be done ----


@dataclass(frozen=True)
class Task:
    """One source image and its label, and where the translated one and the same label go."""

    name: str
    image: Path
    label: Path
    new_image: Path
    new_label: Path


@dataclass(frozen=True)
class Job:
    """A copy to be made, as `corpus` will lie in `folder`. size: (W,H) that images have to cover; same_layout: its
    folders have the names of the source's; fragment: the configuration that reads it."""

    folder: Path
    method: str
    size: tuple[int, int]
    corpus: Corpus
    same_layout: bool
    splits: Mapping[str, Sequence[Task]]
    fragment: Path

    @property
    def tasks(self) -> list[Task]:
        """All images, one split after the other."""
        return [task for tasks in self.splits.values() for task in tasks]

    @property
    def lists(self) -> dict[Path, Sequence[Task]]:
        """The list files that are part of the copy, and what they name."""
        lists = {}
        for split, tasks in self.splits.items():
            given = PurePath(self.corpus.lists.get(split, ""))
            # Absolute, or found from the working directory: read from where it is, whatever the root.
            if given.name and not given.is_absolute() and ".." not in given.parts and not Path(given).is_file():
                lists[self.folder / given] = tasks
        return lists


def _arguments(parser: Parser) -> None:
    from utils.flags import add_positional_config

    add_positional_config(parser)
    parser.add_argument("--method", required=True, choices=COPIES, help="how images are translated")
    parser.add_argument("--save", type=Path, metavar="DIR", help="the copy (default: runs/<name>/translated/<method>)")
    parser.add_argument("--set", nargs="+", default=["train"], metavar="SPLIT", help="parts of the source to translate")


def _job(config: Config, options: Options) -> Job:
    from utils import datasets

    arguments = options.arguments
    corpus = datasets.corpus(config, "source", datasets.class_table(config))
    if Path(f"x{corpus.image_suffix}").suffix.lower() not in ENCODINGS:
        raise ConfigError(
            f"[source] image_suffix {corpus.image_suffix!r}: images can be written as {', '.join(ENCODINGS)} only"
        )
    folder = arguments.save or Path("runs") / options.name / "translated" / arguments.method
    if folder.resolve() == corpus.root.resolve():
        raise ConfigError(f"--save {folder}: this is the source itself; choose another folder")
    copy = _copy_of(corpus, folder)
    splits = {
        split: [_task(copy, split, sample) for sample in datasets.samples_of(corpus, split, labelled=True)]
        for split in dict.fromkeys(arguments.set)
    }
    same_layout = (copy.images, copy.labels) == (corpus.images, corpus.labels)
    size, fragment = datasets.input_size(config, "source"), f"{options.name}_{arguments.method}.toml"
    return Job(folder, arguments.method, size, copy, same_layout, splits, folder / fragment)


def _copy_of(corpus: Corpus, folder: Path) -> Corpus:
    """The corpus as it lies in `folder`: folders that are not below the source's root get names of their own."""

    def below(given: str, name: str) -> str:
        parts = PurePath(given).parts
        inside = bool(parts) and not PurePath(given).is_absolute() and ".." not in parts
        return given if inside else (f"{name}/{{split}}" if "{split}" in given else name)

    images, labels = below(corpus.images, "images"), below(corpus.labels, "labels")
    return dataclasses.replace(corpus, root=folder, images=images, labels=labels)


def _task(copy: Corpus, split: str, sample: Sample) -> Task:
    assert sample.label is not None, "source images are labelled"
    new_image = copy.image_folder(split) / sample.name
    return Task(
        sample.name, sample.image, sample.label, new_image, copy.label_folder(split) / copy.label_name(sample.name)
    )


# ---- one image ----


def covering(native: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (W,H) of an image of `native` size, reduced in its own shape to where it just covers `size`; never enlarged.

    In its own shape, since its label still fits it, at any size.
    """
    factor = min(1.0, max(size[0] / native[0], size[1] / native[1]))
    return max(1, round(native[0] * factor)), max(1, round(native[1] * factor))


def read_source(task: Task, size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8: the image as it will be translated. Raises DataError naming a file that cannot be read."""
    image = read_image(task.image)
    return np.asarray(resize(image, None, covering(image.size, size))[0])


def finished(task: Task) -> bool:
    """Whether an earlier run has written image and label; what was damaged since is made again."""
    if not (task.new_image.exists() and same_content(task.label, task.new_label)):
        return False
    try:
        read_image(task.new_image)
    except DataError:
        return False
    return True


def write_pair(task: Task, pixels: np.ndarray) -> None:
    """Write the translated image (H,W,3), after its label. Raises DataError where the disk does not take them."""
    try:
        _same_file(task.label, task.new_label)
        write_image(task.new_image, Image.fromarray(pixels))
    except OSError as error:  # a full disk, for one
        reason = error.strerror or error
        raise DataError(f"{task.new_image}: cannot be written ({reason}); mend that and {AGAIN}") from None


def same_content(path: Path, twin: Path) -> bool:
    """Whether `twin` exists and holds what the file does, be it the same one or a copy."""
    return twin.exists() and (twin.samefile(path) or filecmp.cmp(path, twin, shallow=False))


def _same_file(path: Path, twin: Path) -> None:
    """The file under another name: a hard link, or a copy where the file system has none between the two, or where
    something else has the name."""
    if same_content(path, twin):
        return
    twin.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(path), twin)
    except OSError:
        with atomic_write(twin) as temporary:
            shutil.copyfile(path, temporary)


# ---- the ways to translate ----


@dataclass(frozen=True)
class Painter:
    """A way to translate. settings: all that decides what comes out, in JSON's types. paint: writes the images and
    labels of tasks that are not there yet; for each in turn, whether it was. model_of: the target image beside which a
    translated one is shown."""

    settings: dict[str, Any]
    paint: Callable[[Sequence[Task]], Iterator[bool]]
    model_of: Callable[[Task], Path]


def _painter(config: Config, options: Options, job: Job) -> Painter:
    from utils import datasets

    classes = datasets.class_table(config, options.arguments)
    target = datasets.corpus(config, "target", classes).samples(config.step1.split, labelled=False)
    make = _network_painter if job.method == "cyclegan" else _style_painter
    return make(config, options, job, target)


def _style_painter(config: Config, options: Options, job: Job, target: Sequence[Sample]) -> Painter:
    """The methods of dataset/translation.py: each image in the style of a target image that seed and name draw."""
    from utils import datasets
    from utils.prepared import target_styles

    settings, seed = config.translation, config.run.seed
    method = method_named(job.method, beta=settings.beta, size=job.size)
    models = [target[index] for index in drawn_images(len(target), settings.styles, seed=seed)]
    translator = Translator(method, target_styles(config, method, models))

    def draw(task: Task) -> int:
        drawn = translator.draw((seed, zlib.crc32(task.name.encode())))
        assert drawn is not None, "every image is translated"
        return drawn

    def paint(tasks: Sequence[Task]) -> Iterator[bool]:
        workers = min(datasets.worker_count(config), len(tasks))
        with processes(workers, remedy=f"{AGAIN}, or with fewer --num-workers") as each:
            styled = ((task, translator.styles[draw(task)]) for task in tasks)
            yield from each(partial(translate_one, method, job.size), styled)

    described = {
        "translation": str(method),
        "seed": seed,
        "styles": len(models),
        "target_size": list(datasets.input_size(config, "target")),
        "target": names_and_sizes(model.image for model in models),
    }
    return Painter(described, paint, lambda task: models[draw(task)].image)


def translate_one(method: Method, size: tuple[int, int], styled: tuple[Task, np.ndarray]) -> bool:
    """Translate one image to a style, unless it is there already; whether it was."""
    task, style = styled
    if finished(task):
        return True
    write_pair(task, method.apply(read_source(task, size), style))
    return False


def _network_painter(config: Config, options: Options, job: Job, target: Sequence[Sample]) -> Painter:
    """CycleGAN's generator from source to target, trained first if it is not."""
    from utils import datasets
    from utils.cyclegan import trained_translator

    generator = trained_translator(config, options, datasets.class_table(config)).to_target
    batch = config.evaluate.batch_size

    def paint(tasks: Sequence[Task]) -> Iterator[bool]:
        # Cut the same way whatever is there already: who shares a batch does not depend on where a run was stopped.
        batches = [tasks[first : first + batch] for first in range(0, len(tasks), batch)]
        read = in_background(partial(_read_unfinished, job.size), batches)
        painted = _in_batches(generator, zip(batches, read, strict=True))
        return itertools.chain.from_iterable(in_background(_write_batch, painted))

    described = {"translation": "CycleGAN", "weights": _hash_of(generator), "batch": batch}
    return Painter(described, paint, lambda task: target[zlib.crc32(task.name.encode()) % len(target)].image)


def _hash_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, values in network.state_dict().items():
        digest.update(name.encode() + values.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read_unfinished(size: tuple[int, int], tasks: Sequence[Task]) -> list[np.ndarray]:
    """The images of a batch, none where all of them are there already."""
    from model.translator import LEAST_SIZE

    images = [] if all(map(finished, tasks)) else [read_source(task, size) for task in tasks]
    for task, image in zip(tasks, images, strict=False):
        if min(image.shape[:2]) < LEAST_SIZE:
            raise DataError(
                f"{task.image}: {image.shape[1]}x{image.shape[0]} pixels; the translator takes {LEAST_SIZE} a side or"
                " more, leave it out of the list"
            )
    return images


def _in_batches(
    generator: nn.Module, batches: Iterator[tuple[Sequence[Task], list[np.ndarray]]]
) -> Iterator[tuple[Sequence[Task], list[np.ndarray]]]:
    """Each batch translated; neighbours of one size go through the network together."""
    import torch

    from model.translator import to_bytes, to_unit

    device = next(generator.parameters()).device
    for tasks, images in batches:
        translated: list[np.ndarray] = []
        for _, alike in itertools.groupby(images, key=np.shape):
            pixels = torch.from_numpy(np.stack(list(alike))).to(device).permute(0, 3, 1, 2)
            with torch.inference_mode():
                painted = to_bytes(generator(to_unit(pixels)))
            translated += list(painted.permute(0, 2, 3, 1).cpu().numpy())
        yield tasks, translated


def _write_batch(batch: tuple[Sequence[Task], list[np.ndarray]]) -> list[bool]:
    """Write what is not there yet of a batch; for each, whether it was."""
    tasks, images = batch
    if not images:
        return [True] * len(tasks)
    there = [finished(task) for task in tasks]
    for task, image, kept in zip(tasks, images, there, strict=True):
        if not kept:
            write_pair(task, image)
    return there


# ---- the copy's manifest, lists, configuration and contact sheet ----


def _refuse_what_is_not_ours(job: Job) -> None:
    """Raises DataError when files are where the copy's will be, or images or labels among them, and no run of this
    script has written them."""
    if (job.folder / MANIFEST).exists():
        return
    corpus = job.corpus
    images = (path for split in job.splits for path in corpus.image_folder(split).rglob(f"*{corpus.image_suffix}"))
    labels = (path for split in job.splits for path in corpus.label_folder(split).rglob(f"*{corpus.label_suffix}"))
    single = (path for path in (*job.lists, job.fragment, job.folder / SHEET) if path.exists())
    path = next(itertools.chain(single, images, labels), None)
    if path is not None:
        raise DataError(f"{path}: exists and was not written by dataset.translate; {ANOTHER}")


def _claim(job: Job, settings: Mapping[str, Any]) -> None:
    """Write an unfinished manifest. Raises DataError when the folder holds another copy."""
    path = job.folder / MANIFEST
    asked = _manifest(job, settings)
    there: dict[str, Any] = {}
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            different = _differences(there, asked)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a manifest of dataset.translate ({error!r}); {ANOTHER}") from None
        if different:
            raise DataError(f"{job.folder}: was translated with {', '.join(different)}; {ANOTHER}")
    for folder in {task.new_image.parent for task in job.tasks} | {task.new_label.parent for task in job.tasks}:
        remove_temporaries(folder)
    write_json(path, {**asked, "splits": {**there.get("splits", {}), **asked["splits"]}})


def _manifest(job: Job, settings: Mapping[str, Any], *, state: str = "in progress") -> dict[str, Any]:
    splits = {
        split: {
            "images": len(tasks),
            "source": names_and_sizes(task.image for task in tasks),
            "labels": names_and_sizes(task.label for task in tasks),
            "state": state,
        }
        for split, tasks in job.splits.items()
    }
    return {"settings": {"format": FORMAT, "size": list(job.size), **settings}, "splits": splits}


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """`what = was, not asked` for all that decides the images; splits that one side lacks do not differ."""
    pairs = [("", there["settings"], asked["settings"])]
    pairs += [
        (f"{split}: ", there["splits"][split] | {"state": ""}, entry | {"state": ""})
        for split, entry in asked["splits"].items()
        if split in there["splits"]
    ]
    return [
        f"{where}{key} = {old.get(key)}, not {new.get(key)}"
        for where, old, new in pairs
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _finish(job: Job, settings: Mapping[str, Any], config: Config, options: Options) -> None:
    """Write lists, the configuration that reads the copy, and the complete manifest.

    The configuration names no validation list where that part has not been translated, and translates nothing on the
    fly.
    """
    for path, tasks in job.lists.items():
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{task.name}\n" for task in tasks), encoding="utf-8")
    path = job.folder / MANIFEST
    there = json.loads(path.read_text(encoding="utf-8"))
    source = {"root": str(job.folder), "images": job.corpus.images, "labels": job.corpus.labels}
    if job.corpus.lists.get("val") and "val" not in there["splits"]:
        source["val_list"] = ""
    changed: dict[str, Any] = {"source": source}
    if config.translation.method != AS_STORED:
        changed["translation"] = {"method": AS_STORED}
    # Of real paths: the system takes `..` of a linked folder for its real parent.
    extends = Path(os.path.relpath(os.path.realpath(options.config_path), os.path.realpath(job.folder))).as_posix()
    with atomic_write(job.fragment) as temporary:
        temporary.write_bytes(tomli_w.dumps({"extends": extends, **changed}).encode())
    complete = _manifest(job, settings, state="complete")
    write_json(path, {**there, "splits": {**there["splits"], **complete["splits"]}})


def _next_command(options: Options, fragment: Path) -> str:
    """The training on the copy: what the command line said of the data still holds, but for the source's folders."""
    from utils.flags import TRAINING, next_command

    replaced = ("source.root", "source.images", "source.labels", "translation.method")
    changes = {path: value for path, value in options.changes.items() if path not in replaced}
    own = dataclasses.replace(options, config_path=str(fragment), changes=changes)
    return next_command(own, ["train_step1.py"], flags=TRAINING, section="step1", hands={})


def _write_sheet(job: Job, painter: Painter) -> None:
    """The contact sheet: a row for each of a few images, as it was, as it is, and the target image it looks like."""
    width = min(SHEET_CELL, job.size[0])
    cell = width, max(1, round(width * job.size[1] / job.size[0]))
    rows = [
        [resize(read_image(path), None, cell)[0] for path in (task.image, task.new_image, painter.model_of(task))]
        for task in evenly(job.tasks, SHEET_ROWS)
    ]
    write_image(job.folder / SHEET, contact_sheet(("source", job.method, "target"), rows))


if __name__ == "__main__":
    from utils.launch import launch

    launch(main)
