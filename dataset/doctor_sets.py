"""What only whole sets show: labels that look like others, held-out images in training, files that nobody names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataset.corpora import files_below, number_of, other_pictures, pseudo_label_name
from dataset.doctor import MAKE_ANEW, NOTE, PROBLEM, PSEUDO_LABEL, Chart, Finding, Findings, Tally, spelled
from dataset.labels import IGNORE
from dataset.toml import DataError


def judge(charts: Sequence[Chart], names: Sequence[str]) -> Findings:
    """All findings of examined sets: those of their files, and those that only sets as a whole show.

    names: of the classes.
    """
    findings = Findings()
    for chart in charts:
        findings.update(chart.tally.findings)
        if len(chart.tally.sizes) > 1:
            sizes = spelled_sizes(chart.tally)
            remedy = "none needed: all are resized"
            findings.add(Finding(NOTE, chart.title, "sizes of images", remedy, sizes, count=len(chart.tally.sizes)))
        if chart.tally.labels:
            findings.update(_label_findings(chart, names))
    findings.update(_overlaps(charts))
    findings.update(_strays(charts))
    return findings


def spelled_sizes(tally: Tally, most: int = 4) -> str:
    """The sizes of images that occur most, each with its number of images."""
    sizes = [f"{spelled(size)} ({count})" for size, count in tally.sizes.most_common(most)]
    return ", ".join([*sizes, "..."] if len(tally.sizes) > most else sizes)


def _label_findings(chart: Chart, names: Sequence[str]) -> Iterator[Finding]:
    method = chart.data.method
    labelled = chart.pixels()[: len(names)]
    yield from train_id_suspicion(chart.tally)
    if not labelled.any():
        remedy = MAKE_ANEW if method.what == PSEUDO_LABEL else f"correct ids and ignore of {method.table}"
        read = number_of(chart.tally.labels, method.what)
        yield Finding(PROBLEM, chart.title, "set without a labelled pixel", remedy, read)
    elif chart.data.learnt and not labelled.all():
        absent = [name for name, pixels in zip(names, labelled, strict=True) if not pixels]
        severity = NOTE if np.count_nonzero(labelled) > 1 else PROBLEM  # one class alone teaches nothing
        remedy = f"nothing can be learnt of them; {_absence_remedy(chart)}"
        yield Finding(severity, chart.title, "classes that never occur", remedy, ", ".join(absent), count=len(absent))


def _absence_remedy(chart: Chart) -> str:
    """What may be behind classes that never occur: a mask is easily written so that its class 1 is read as ignored."""
    decoding, table = chart.data.method.decoding, chart.data.method.table
    assert decoding is not None, "a set whose labels were read has a decoding"
    if decoding.kind == "mask" and chart.tally.palettes and chart.tally.counts[IGNORE]:
        return (
            f"index 255 of palette images is ignored ({chart.tally.palettes} of {chart.tally.labels} are such): convert"
            " them to grey masks of 0 and 255, which are read as 0 and 1"
        )
    if decoding.num_classes == 2 and decoding.lookup[IGNORE] == IGNORE and chart.tally.counts[IGNORE]:
        return f'255 is ignored; set decode = "mask" in {table} if it is class 1'
    return "check ids if they should be there"


def train_id_suspicion(tally: Tally, *, tolerated: float = 0.1) -> Iterator[Finding]:
    """What labels that look like train ids mean to their set: a problem where it is more than a tolerated share.

    A few of them are a note: an image of mostly ignored objects may look like that.
    """
    for suspect in tally.suspects:
        severity = PROBLEM if suspect.count > tolerated * tally.labels else NOTE
        yield dataclasses.replace(suspect, severity=severity)


def shared(held_out: str, train: str, *, names: Sequence[str], twin: str, table: str) -> Finding:
    """The problem of held-out images that are among the training images; twin: what the first one is called there."""
    detail = "" if names[0] == twin else f"there it is {twin}"
    kind, remedy = f"images that are in {train}, too", f"remove them from one of the two; lists are set in {table}"
    return Finding.of_names(PROBLEM, held_out, kind, remedy, names, detail=detail)


def _overlaps(charts: Sequence[Chart]) -> Iterator[Finding]:
    """Images of held-out sets whose content is also in a training set."""
    for held_out in (chart for chart in charts if chart.data.held_out):
        for train in (chart for chart in charts if not chart.data.held_out):
            yield from _overlap(held_out, train)


def _overlap(held_out: Chart, train: Chart) -> Iterator[Finding]:
    ours, theirs = (np.frombuffer(chart.tally.digests, dtype=np.uint64) for chart in (held_out, train))
    common = np.flatnonzero(np.isin(ours, theirs) & (ours != 0))
    if len(common):
        twin = int(np.flatnonzero(theirs == ours[common[0]])[0])
        names = [held_out.names[index] for index in common]
        table = held_out.data.method.table
        yield shared(held_out.title, train.title, names=names, twin=train.names[twin], table=table)


def _strays(charts: Sequence[Chart]) -> Iterator[Finding]:
    """Files that no set names: images beside a list or of another kind, labels and pseudo labels without an image."""
    folders: dict[str, list[Chart]] = {}
    for chart in charts:
        if chart.names:
            folders.setdefault(os.path.realpath(chart.data.corpus.image_folder(chart.data.split)), []).append(chart)
        if chart.data.pseudo_labels is not None:
            yield from _stray_pseudo_labels(chart)
    for sharing in folders.values():
        yield from _stray_images(sharing)


def _stray_images(sharing: Sequence[Chart]) -> Iterator[Finding]:
    """Of sets that share an image folder."""
    title = sharing[0].title if len(sharing) == 1 else f"{sharing[0].title} and others"
    corpus, split = sharing[0].data.corpus, sharing[0].data.split
    folder, named = corpus.image_folder(split), {name for chart in sharing for name in chart.names}
    files = set(_files(folder))
    suffixes = tuple({chart.data.corpus.image_suffix for chart in sharing})
    unlisted = sorted(name for name in files - named if name.endswith(suffixes))
    yield from _note(
        title, "images that no list names", "they are not used; list them if they should be", folder, unlisted
    )
    known = (*suffixes, *(chart.data.corpus.label_suffix for chart in sharing))
    others = sorted(other_pictures(files, known))
    remedy = f"they are not used; convert them, or correct image_suffix of {sharing[0].data.method.table}"
    yield from _note(title, f"images that do not end in {suffixes[0]!r}", remedy, folder, others)
    for chart in sharing:
        if chart.data.labelled:
            yield from _stray_labels(chart, files)


def _stray_labels(chart: Chart, images: set[str]) -> Iterator[Finding]:
    corpus = chart.data.corpus
    folder, suffixes = corpus.label_folder(chart.data.split), (corpus.image_suffix, corpus.label_suffix)
    expected = {corpus.label_name(name) for name in images if name.endswith(corpus.image_suffix)}
    lonely = sorted(name for name in _files(folder) if name.endswith(corpus.label_suffix) and name not in expected)
    if os.path.realpath(folder) == os.path.realpath(corpus.image_folder(chart.data.split)):
        lonely = [name for name in lonely if not name.endswith(suffixes[0])]
    remedy = f"fetch their images if {chart.data.method.table} images should be complete (translated ones, too)"
    yield from _note(chart.title, "labels without an image", remedy, folder, lonely)


def _stray_pseudo_labels(chart: Chart) -> Iterator[Finding]:
    assert chart.data.pseudo_labels is not None
    expected = {pseudo_label_name(name) for name in chart.names}
    strays = sorted(set(_files(chart.data.pseudo_labels)) - expected)
    strays = [name for name in strays if name.endswith(".png")]
    remedy = "they are not used; are they of another data set?"
    yield from _note(chart.title, "pseudo labels without an image", remedy, chart.data.pseudo_labels, strays)


def _note(title: str, kind: str, remedy: str, folder: Path, names: Sequence[str]) -> Iterator[Finding]:
    if names:
        paths = [os.path.join(folder, name) for name in names]
        yield Finding.of_names(NOTE, title, kind, remedy, paths)


def _files(folder: Path) -> Iterable[str]:
    """Files below a folder; none where it cannot be walked, which listing has reported."""
    try:
        return list(files_below(folder))
    except DataError:
        return []


def frequencies(charts: Sequence[Chart], names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Per labelled set: class name -> percent of the labelled pixels, and `ignored` and `unknown` percent of all."""
    columns = {}
    for chart in charts:
        if chart.tally.labels:
            pixels = chart.pixels()
            labelled, total = int(pixels[: len(names)].sum()), int(pixels.sum())
            shares = {name: 100 * int(count) / max(labelled, 1) for name, count in zip(names, pixels, strict=False)}
            rest = {"ignored": pixels[IGNORE], "unknown": pixels[IGNORE - 1]}
            columns[chart.title] = shares | {key: 100 * int(count) / max(total, 1) for key, count in rest.items()}
    return columns
