"""The doctor for data: looks at every file that a recipe will touch, and says what is wrong and how to mend it.

    python -m dataset.check configs/gta5_to_cityscapes.toml
    python -m dataset.check configs/own.toml --data-dir elsewhere --json report.json

Takes the flags of the training scripts; --set and --ssl-target-dir concern both stages, and what does not concern data
is passed over. PNG images are checked by the checksums
of their chunks, everything else is decoded; --decode decodes the images, too. Exit code 2 if training would suffer.
What is found and what to do about it: docs/doctor.md.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.corpora import Corpus, number_of
from dataset.doctor import CHUNK, NOTE, PROBLEM, Chart, DataSet, Finding, Findings, Method, listed, scan
from dataset.doctor_sets import frequencies, judge, spelled_sizes
from dataset.labels import ClassTable, train_id_decoding
from dataset.toml import DataError
from utils.console import progress, say
from utils.json_files import write_json

# What else this script composes is imported where it is used: every worker process imports this module again, and has
# no need of networks.
if TYPE_CHECKING:
    from utils.config import Config, Parser

TINY = 4 * CHUNK  # images that are examined before worker processes have started
SECTIONS = ("step1", "step2")
OF_DATA = ("source.", "target.", "{section}.split", "{section}.pseudo_labels")  # settings that data depend on
SHOWN = 3  # places of a finding on the console


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report, with --json write it, too; raises DataError if there is a problem."""
    from utils.flags import TRAINING, parse

    argv, passed_over = data_flags(sys.argv[1:] if argv is None else argv)
    config, options = parse(argv, description=__doc__, section=SECTIONS, flags=TRAINING, extend=_flags)
    from utils import datasets  # only now, as in the training scripts: with torch

    for note in (*options.notes, *passed_over):
        say(f"note: {note}")
    classes = datasets.class_table(config, options.arguments)
    began = time.monotonic()
    sets, notes = examined_sets(config, classes, decode=options.arguments.decode)
    charts = [listed(data) for data in sets]
    workers = worker_count(options.arguments.workers, sum(len(chart.names) for chart in charts))
    with progress(total=sum(chart.total for chart in charts), description="check", unit="file") as bar:
        for files in scan(charts, workers=workers):
            bar.update(files)
    findings = judge(charts, classes.names)
    findings.update(notes)
    seconds = time.monotonic() - began
    for line in report_lines(charts, findings, classes, seconds):
        say(line)
    if options.json:
        settings = {"config": options.config_path, "seconds": seconds, "workers": workers}
        write_json(options.json, settings | report_data(charts, findings, classes))
    problems = findings.of(PROBLEM)
    if problems:
        raise DataError(f"training would suffer: {number_of(len(problems), 'problem')} above; the first: {problems[0]}")
    say("no problem found")


def data_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A training script's command line without what concerns only training, and a note if there was any.

    Such a flag of one stage would be held against the limits of the other. Raises ConfigError for a bad value.
    """
    from utils.config import Parser
    from utils.flags import TRAINING, add_flag

    parser = Parser(add_help=False, argument_default=SUPPRESS)
    for flag in TRAINING:
        if not flag.path.startswith(OF_DATA):
            add_flag(parser, flag, flag.name)
    training, rest = parser.parse_known_args(argv)
    given = ", ".join(vars(training))
    return rest, [f"{given}: of training alone, nothing to do with the data"] if given else []


def _flags(parser: Parser) -> None:
    from utils.flags import add_positional_config

    add_positional_config(parser)
    parser.add_argument("--decode", action="store_true", help="decode PNG images, too, not only their checksums")
    parser.add_argument("--workers", type=_workers, metavar="N", help="processes (default: one per processor; 0: none)")


def _workers(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def worker_count(wanted: int | None, images: int) -> int:
    """Processes for a number of images: as many as are wanted, else one per processor, none for a handful."""
    if wanted is not None:
        return wanted
    return 0 if images <= TINY else os.cpu_count() or 1


# ---- what is examined ----


def examined_sets(config: Config, classes: ClassTable, *, decode: bool) -> tuple[list[DataSet], list[Finding]]:
    """All that a recipe will read: source, the target's training splits with pseudo labels, its validation images.

    The findings tell of what is not there yet. decode: inflate PNG images, too.
    """
    from utils import datasets, quick_check

    source, target = (datasets.corpus(config, domain, classes) for domain in ("source", "target"))
    sets = [_split("source", source, "train", decode, labelled=True, learnt=True)]
    if "val" in source.lists:
        sets.append(_split("source", source, "val", decode, labelled=True, held_out=True))
    notes = []
    folders = datasets.pseudo_label_folders(config)
    for split, named in folders.items():
        notes += [_not_there(split, folder) for folder in named if not folder.is_dir()]
        there: list[Path | None] = [folder for folder in named if folder.is_dir()]
        for folder in there or [None]:
            decoding = train_id_decoding(classes.num_classes) if folder else None
            method = quick_check.target_method(config, _training_title(split, folder, named), decoding, decode=decode)
            sets.append(DataSet(method=method, corpus=target, split=split, pseudo_labels=folder))
    if datasets.validates(config, classes):
        sets.append(_split("target", target, "val", decode, labelled=True, held_out=True))
    elif config.run.validate:
        remedy = "set val_list of [target] to validate, and for a best checkpoint"
        notes.append(Finding(NOTE, "target val", "set that is not named", remedy, "no validation"))
    if config.evaluate.split not in ("val", *folders):
        sets.append(_split("target", target, config.evaluate.split, decode, held_out=True))
    return sets, notes


def _split(
    domain: str,
    corpus: Corpus,
    split: str,
    decode: bool,
    *,
    labelled: bool = False,
    held_out: bool = False,
    learnt: bool = False,
) -> DataSet:
    """A split with its own labels, or without."""
    decoding = corpus.decoding if labelled else None
    method = Method(
        title=f"{domain} {split}",
        table=f"[{domain}]",
        decoding=decoding,
        trust_ids=corpus.trust_ids,
        decode=decode,
    )
    return DataSet(method=method, corpus=corpus, split=split, labelled=labelled, held_out=held_out, learnt=learnt)


def _training_title(split: str, folder: Path | None, named: Sequence[Path]) -> str:
    """Every set has a name of its own, also where two stages read different pseudo labels."""
    title = f"target {split}" if split != "val" else "target val as training set"
    return f"{title} with {folder}" if len(named) > 1 else title


def _not_there(split: str, folder: Path) -> Finding:
    kind, remedy = "folder of pseudo labels that is not there yet", "Generate_Pseudo_Label.py fills it after stage 1"
    return Finding(NOTE, f"target {split}", kind, remedy, str(folder))


# ---- the report ----


def report_lines(charts: Sequence[Chart], findings: Findings, classes: ClassTable, seconds: float) -> Iterator[str]:
    """The report for the console: sets, findings with their remedies, class frequencies, speed."""
    for chart in charts:
        yield _summary(chart)
    yield from _finding_lines(findings)
    yield from _frequency_lines(charts, classes)
    files, size = sum(chart.tally.files for chart in charts), sum(chart.tally.size for chart in charts)
    speed = f"{files / seconds:.0f} files/s, {size / seconds / 1e6:.0f} MB/s"
    yield f"{number_of(files, 'file')}, {size / 1e9:.2f} GB in {seconds:.1f} s: {speed}"


def _summary(chart: Chart) -> str:
    tally, method = chart.tally, chart.data.method
    labels = f", {number_of(tally.labels, method.what)}" if method.decoding else ", no labels needed"
    sizes = spelled_sizes(tally) or "none could be read"
    folder = chart.data.corpus.image_folder(chart.data.split)
    return f"{chart.title}: {number_of(tally.images, 'image')} in {folder}, {sizes}{labels}"


def _finding_lines(findings: Findings) -> Iterator[str]:
    """A row per finding, problems first, with the first few places, and below it the remedy."""
    rows = [*findings.of(PROBLEM), *findings.of(NOTE)]
    if not rows:
        return
    width = max(len(row.title) for row in rows)
    yield ""
    for row in rows:
        yield f"{row.severity:<7}  {row.title:<{width}}  {row.count:>6}  {row.kind}: {_places(row)}"
        yield f"{'':<7}  {'':<{width}}  {'':>6}  -> {row.remedy}"


def _places(finding: Finding) -> str:
    also = ", ".join(finding.more[: SHOWN - 1])
    return f"{finding.where}; also {also}" if also else finding.where


def _frequency_lines(charts: Sequence[Chart], classes: ClassTable) -> Iterator[str]:
    """Percent of the labelled pixels per class, a column per labelled set, and percent of all pixels ignored."""
    columns = frequencies(charts, classes.names)
    if not columns:
        return
    rows = [*classes.names, "ignored", "unknown"]
    first = max(map(len, ["% of pixels", *rows]))
    titles = [f"{chart.title}, {chart.data.method.what}s" for chart in charts if chart.title in columns]
    yield ""
    yield "  ".join([f"{'% of pixels':<{first}}", *titles])
    for row in rows:
        shares = [f"{column[row]:>{len(title)}.3f}" for title, column in zip(titles, columns.values(), strict=True)]
        yield "  ".join([f"{row:<{first}}", *shares])
    yield ""


def report_data(charts: Sequence[Chart], findings: Findings, classes: ClassTable) -> dict[str, Any]:
    """The report for --json, unrounded."""
    shares = frequencies(charts, classes.names)
    return {
        "problems": len(findings.of(PROBLEM)),
        "notes": len(findings.of(NOTE)),
        "files": sum(chart.tally.files for chart in charts),
        "bytes": sum(chart.tally.size for chart in charts),
        "findings": [vars(finding) for finding in findings],  # `more`: as many further places as are remembered
        "sets": {chart.title: _set_data(chart) | {"percent": shares.get(chart.title)} for chart in charts},
    }


def _set_data(chart: Chart) -> dict[str, Any]:
    tally = chart.tally
    return {
        "listed": len(chart.names),
        "images": tally.images,
        "labels": tally.labels,
        "bytes": tally.size,
        "sizes": [[*size, count] for size, count in tally.sizes.most_common()],
        "pixels_per_raw_id": {str(raw): int(count) for raw, count in enumerate(tally.counts) if count},
        "pixels_of_ids_above_255": tally.beyond,
    }


if __name__ == "__main__":
    from utils.launch import launch

    launch(main)
