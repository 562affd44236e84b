"""The doctor for data: examines the files of data sets, in parallel, and collects everything that is wrong.

A data set is cut into chunks of files; a chunk's `Tally` holds counters and the first places of each kind of finding,
so that memory does not grow with what is wrong: of each image its name and 8 bytes are kept.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.corpora import Corpus, Sample, flat_names, pseudo_label_name
from dataset.doctor_files import (
    REFETCH,
    ImageFacts,
    LabelFacts,
    image_facts,
    label_facts,
    label_remedy,
    looks_like_train_ids,
)
from dataset.labels import IGNORE, LabelDecoding, same_shape
from dataset.orientation import TURN_FILES, seen_size
from dataset.pool import processes
from dataset.toml import DataError

PROBLEM, NOTE = "problem", "note"
CHUNK = 16  # images in a unit of work
MOST_PLACES = 1000  # that a finding remembers
PSEUDO_LABEL = "pseudo label"
ORIENTED = "images with an EXIF orientation"
MAKE_ANEW = "make them anew with Generate_Pseudo_Label.py"


class Pair(NamedTuple):
    """Paths of an image and of its label, empty for none."""

    image: str
    label: str = ""


def listed_pair(sample: Sample) -> Pair:
    """The paths of a sample."""
    return Pair(str(sample.image), str(sample.label or ""))


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the files of a set are examined.

    title: name of the set. table: where its settings stand, such as `[source]`. decoding: of its labels. what: what to
    call them. stretched: a (W,H) that labels may have whatever the shape of their image, since they cover all of it.
    trust_ids: labels that look like train ids are not. decode: inflate PNG images, too.
    """

    title: str
    table: str
    decoding: LabelDecoding | None = None
    what: str = "label"
    stretched: tuple[int, int] | None = None
    trust_ids: bool = False
    decode: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A split of a corpus that is to be examined.

    labelled: its label files are read. pseudo_labels: flat folder of pseudo labels that are read in their place.
    held_out: its images must not be in any set that is not held out. learnt: classes that never occur in it are worth
    a note.
    """

    method: Method
    corpus: Corpus
    split: str
    labelled: bool = False
    pseudo_labels: Path | None = None
    held_out: bool = False
    learnt: bool = False

    @property
    def title(self) -> str:
        return self.method.title

    def pair(self, name: str) -> Pair:
        """The paths of an image and of what is read as its label."""
        image = os.path.join(self.corpus.image_folder(self.split), name)
        if self.pseudo_labels is not None:
            return Pair(image, os.path.join(self.pseudo_labels, pseudo_label_name(name)))
        if self.labelled:
            return Pair(image, os.path.join(self.corpus.label_folder(self.split), self.corpus.label_name(name)))
        return Pair(image)


# ---- findings ----


@dataclass
class Finding:
    """Something found `count` times in a set, `first` in this place. remedy: what to do; detail: of the first; more:
    further places, as far as they are remembered."""

    severity: str
    title: str
    kind: str
    remedy: str
    first: str
    detail: str = ""
    count: int = 1
    more: list[str] = field(default_factory=list)

    @classmethod
    def of_names(
        cls, severity: str, title: str, kind: str, remedy: str, names: Sequence[str], *, detail: str = ""
    ) -> Finding:
        """A finding about each of some names, of which there is one at least."""
        return cls(severity, title, kind, remedy, names[0], detail, len(names), list(names[1:MOST_PLACES]))

    def __str__(self) -> str:
        return f"{self.title}: {self.kind} ({self.count}): {self.where}; {self.remedy}"

    @property
    def where(self) -> str:
        """The first place, and what was wrong there."""
        return ": ".join(filter(None, (self.first, self.detail)))

    def add(self, other: Finding) -> None:
        """Count another one of the same kind."""
        self.count += other.count
        self.more += [other.first, *other.more][: MOST_PLACES - 1 - len(self.more)]


class Findings:
    """Findings in the order in which they were first made, one for each set, kind and remedy."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, ...], Finding] = {}

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._by_key.values())

    def add(self, finding: Finding) -> None:
        """Count a finding with those of its kind."""
        key = (finding.severity, finding.title, finding.kind, finding.remedy)
        known = self._by_key.setdefault(key, finding)
        if known is not finding:
            known.add(finding)

    def update(self, others: Iterable[Finding]) -> None:
        """Count all of them."""
        for finding in others:
            self.add(finding)

    def of(self, severity: str) -> list[Finding]:
        """Those of a severity."""
        return [finding for finding in self if finding.severity == severity]


def refused(
    title: str, kind: str, error: DataError, *, first: str = "", otherwise: str = REFETCH, instead: str = ""
) -> Finding:
    """The problem that an error is about.

    What its message says after the last semicolon (names may have some) is the remedy, `otherwise` where it says
    nothing; `instead` takes its place where that is known better here.
    """
    message = str(error).removeprefix(f"{first}: ")
    detail, semicolon, remedy = message.rpartition("; ")
    if not semicolon:
        detail, remedy = message, otherwise
    return Finding(PROBLEM, title, kind, instead or remedy, first, detail)


# ---- one chunk of files ----


@dataclass
class Tally:
    """What was counted in some of a set's files.

    images, labels: how many could be read. files, size: how many were opened, and their bytes. sizes: (W,H) -> images.
    counts: (256,) label pixels per raw id; beyond: those of ids above 255. palettes: labels that are palette images.
    digests: 64 bits per image, 0 for none. suspects: labels that look like train ids, to be judged as a set.
    """

    images: int = 0
    labels: int = 0
    files: int = 0
    size: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    beyond: int = 0
    palettes: int = 0
    digests: array[int] = field(default_factory=lambda: array("Q"))
    findings: Findings = field(default_factory=Findings)
    suspects: Findings = field(default_factory=Findings)

    def update(self, other: Tally) -> None:
        """Add what was counted in the files that follow."""
        self.images += other.images
        self.labels += other.labels
        self.files += other.files
        self.size += other.size
        self.sizes.update(other.sizes)
        self.counts += other.counts
        self.beyond += other.beyond
        self.palettes += other.palettes
        self.digests.extend(other.digests)
        self.findings.update(other.findings)
        self.suspects.update(other.suspects)


def examine(method: Method, pairs: Sequence[Pair]) -> Tally:
    """Examine the files of some pairs, one after the other. Whatever is wrong with them is counted, never raised."""
    tally = Tally()
    for pair in pairs:
        image = _examine_image(method, pair, tally) if pair.image else None
        if pair.label:
            _examine_label(method, pair, image, tally)
    return tally


def _examine_image(method: Method, pair: Pair, tally: Tally) -> ImageFacts | None:
    """What the image holds, None where it cannot be read."""
    tally.digests.append(0)
    if not os.path.isfile(pair.image):
        remedy = f"fetch them, or correct root, images or the list of {method.table}"
        tally.findings.add(Finding(PROBLEM, method.title, "missing images", remedy, pair.image))
        return None
    tally.files += 1
    try:
        facts, size = image_facts(Path(pair.image), decode=method.decode)
    except DataError as error:
        tally.findings.add(refused(method.title, "unreadable images", error, first=pair.image))
        return None
    tally.images += 1
    tally.size += size
    tally.sizes[facts.size] += 1
    tally.digests[-1] = facts.digest
    if facts.form:
        remedy = (
            "read as 8-bit RGB: transparency is dropped, of 16 bits the high byte is kept; convert if that is wrong"
        )
        tally.findings.add(Finding(NOTE, method.title, "images that are not 8-bit RGB", remedy, pair.image, facts.form))
    if facts.orientation != 1:
        remedy = (
            "training and evaluation read them as stored, predict.py alone turns them upright; where labels do not lie"
            f" on the stored pixels, {TURN_FILES}"
        )
        detail = f"orientation {facts.orientation}"
        tally.findings.add(Finding(NOTE, method.title, ORIENTED, remedy, pair.image, detail))
    return facts


def _examine_label(method: Method, pair: Pair, image: ImageFacts | None, tally: Tally) -> None:
    decoding = method.decoding
    assert decoding is not None, "a set whose labels are examined has a decoding"
    if not os.path.isfile(pair.label):
        tally.findings.add(_missing_label(method, pair))
        return
    tally.files += 1
    try:
        facts, size = label_facts(Path(pair.label), decoding)
    except DataError as error:
        kind = f"{method.what}s that cannot be read as decode = {decoding.kind!r}"
        instead = MAKE_ANEW if method.what == PSEUDO_LABEL else label_remedy(Path(pair.label), decoding)
        tally.findings.add(refused(method.title, kind, error, first=pair.label, instead=instead))
        return
    tally.labels += 1
    tally.size += size
    tally.counts += facts.counts
    tally.beyond += facts.size[0] * facts.size[1] - int(facts.counts.sum())
    tally.palettes += facts.palette
    _examine_ids(method, decoding, pair.label, facts, tally)
    if image is not None:
        _compare_sizes(method, pair, image, facts.size, tally)


def _examine_ids(method: Method, decoding: LabelDecoding, path: str, facts: LabelFacts, tally: Tally) -> None:
    pseudo = method.what == PSEUDO_LABEL
    try:
        decoding.check_ids(path, facts.found)
    except DataError as error:
        kind, instead = f"{method.what}s with unknown ids", MAKE_ANEW if pseudo else ""
        tally.findings.add(refused(method.title, kind, error, first=path, instead=instead))
        return
    if not method.trust_ids and looks_like_train_ids(decoding, facts.counts):
        tally.suspects.add(_suspect(method, path, facts))
    if not decoding.knows(facts.counts):
        remedy = "they teach nothing; remove them from the list if there should be labels"
        if pseudo:
            remedy = "none needed: such images take part in the other losses; a lower [pseudo_label] cap keeps more"
        tally.findings.add(Finding(NOTE, method.title, f"{method.what}s without a labelled pixel", remedy, path))


def _suspect(method: Method, path: str, facts: LabelFacts) -> Finding:
    """The note of one label that looks like train ids."""
    remedy = (
        f"use the raw labels, or set ids = {{}} and ignore = [255] in {method.table}; trust_ids = true there if these"
        " are raw ids"
    )
    found = ", ".join(map(str, facts.found))
    return Finding(NOTE, method.title, f"{method.what}s that look like train ids", remedy, path, f"only {found} occur")


def _missing_label(method: Method, pair: Pair) -> Finding:
    remedy = f"fetch them, or correct labels and label_suffix of {method.table}"
    if method.what != "label":
        remedy = "run Generate_Pseudo_Label.py, which writes one per image, or correct pseudo_labels (--ssl-target-dir)"
    return Finding(PROBLEM, method.title, f"missing {method.what}s", remedy, pair.label, f"label of {pair.image}")


def _compare_sizes(method: Method, pair: Pair, image: ImageFacts, label: tuple[int, int], tally: Tally) -> None:
    """Labels are resized by themselves: another size does no harm, another shape moves them away from the image."""
    if label in (image.size, method.stretched):
        return
    detail = f"{spelled(label)}, its image {spelled(image.size)}"
    if same_shape(image.size, label):
        kind, remedy = f"{method.what}s of another size than their image", "none needed: they are resized by nearest"
        if method.what == "label":
            tally.findings.add(Finding(NOTE, method.title, kind, remedy, pair.label, detail))
        return
    kind = f"{method.what}s of another shape than their image"
    remedy = "fetch both again, or leave them out of the list"
    if method.what != "label":
        remedy = MAKE_ANEW
    elif same_shape(seen_size(image.size, image.orientation), label):
        remedy = f"they lie on the images as EXIF turns them, not as stored; {TURN_FILES}"
    tally.findings.add(Finding(PROBLEM, method.title, kind, remedy, pair.label, detail))


def spelled(size: tuple[int, int]) -> str:
    """`640x480`."""
    return f"{size[0]}x{size[1]}"


# ---- a whole set ----


@dataclass
class Chart:
    """A set's images, listed and then examined. names: of those that the list or the folder holds."""

    data: DataSet
    names: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def title(self) -> str:
        return self.data.title

    @property
    def total(self) -> int:
        """Files to open."""
        return len(self.names) * (2 if self.data.method.decoding else 1)

    def pixels(self) -> np.ndarray:
        """(256,) int64: label pixels per train id, 255 for ignored ones, 254 for unknown ids."""
        assert self.data.method.decoding is not None
        pixels = np.zeros(256, dtype=np.int64)
        np.add.at(pixels, self.data.method.decoding.lookup, self.tally.counts)
        pixels[IGNORE - 1] += self.tally.beyond
        return pixels


def listed(data: DataSet) -> Chart:
    """A set with the names of its images; bad entries of its list are findings, as is a set that is not there."""
    chart = Chart(data)
    add = chart.tally.findings.add
    try:
        for name, flaw in data.corpus.listing(data.split):
            if flaw is None:
                chart.names.append(name)
            else:
                add(refused(data.title, flaw.kind, flaw, first=flaw.where))
    except DataError as error:
        add(refused(data.title, "set that cannot be listed", error, otherwise=f"correct {data.method.table}"))
    note = data.corpus.count_note(data.split, len(chart.names)) if chart.names else None
    if note:
        add(Finding(NOTE, data.title, "number of images", "none needed if this is a part of the corpus", note))
    if data.method.table == "[target]":
        try:
            flat_names([Sample(name, Path()) for name in chart.names])
        except DataError as error:
            add(refused(data.title, "images that share a file name", error))
    return chart


def scan(charts: Sequence[Chart], *, workers: int) -> Generator[int, None, None]:
    """Examine all files of listed sets in `workers` processes, 0 for none; yields how many files each step dealt with.

    Results are taken in the order of the files, so that every number of processes reports the same. Raises DataError
    when a process dies.
    """
    tasks, sent = itertools.tee(
        (chart, [chart.data.pair(name) for name in chart.names[start : start + CHUNK]])
        for chart in charts
        for start in range(0, len(chart.names), CHUNK)
    )
    with processes(workers, remedy="try again with --workers 1") as each:
        tallies = each(_examine_task, ((chart.data.method, pairs) for chart, pairs in sent))
        for (chart, pairs), tally in zip(tasks, tallies, strict=True):
            chart.tally.update(tally)
            yield sum(2 if pair.label else 1 for pair in pairs)


def _examine_task(task: tuple[Method, list[Pair]]) -> Tally:
    return examine(*task)
