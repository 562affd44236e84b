"""The tables of the pages, each from results below docs/results; benchmarks.readme puts them in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.ladder_report import LAST, markdown_table, plus_minus
from benchmarks.rungs import CONFIGURED, ORACLE, SOURCE_ONLY
from benchmarks.timing import duration, three_digits
from utils.config import ConfigError

Results = Callable[[str], Mapping[str, Any]]
"""Name of a JSON, without its ending -> what it says."""

NOT_MEASURED = "not measured"

# ---- the ladder ----

STREETS = {
    SOURCE_ONLY: "source-only",
    "control": "source-only, target's batch-norm statistics",
    "adversary": "adversary alone (AdaptSegNet)",
    "sim": "SIM, Lab translation",
    "released": "BAFFT as released, Lab translation",
    "paper": "BAFFT as in the paper, Lab translation",
    CONFIGURED: "`configs/streets.toml`: matching, Lab translation, ClassMix",
    "isia_aim": "the same, with ISIA and AIM",
    "no_alignment": "the same, without matching",
    "no_image_level": "the same, without translation",
    "no_mixed": "the same, without ClassMix",
    "no_stage2": "the same, without pseudo labels",
    "modern": "one stage: teacher, ClassMix, masked images, rare classes, ISIA and AIM",
    ORACLE: "oracle, on the target's labels",
}
PHOTOGRAPHS = {  # recipe -> what is scored on what
    "camvid_day_to_dusk": "CamVid day -> dusk, mIoU, {updates} updates of 4 images",
    "roads_epfl_to_massachusetts": "Aerial roads, EPFL -> Massachusetts, IoU of road, {updates} updates of 2 tiles",
}
RECIPES = {"streets": "streets", "camvid_day_to_dusk": "CamVid", "roads_epfl_to_massachusetts": "roads"}
PARTS = {
    "no_image_level": "without translated images",
    "no_stage2": "without stage 2",
    "no_mixed": "without ClassMix",
    "no_alignment": "without matching",
    "no_stuff": "without matching of stuff",
    "no_instances": "without matching of instances",
    "isia_aim": "with ISIA and AIM in stage 2",
}


def streets(of: Results) -> list[str]:
    """A row per rung."""
    scores = _ladder(of, "streets")["scores"]
    return markdown_table(
        ("", "mIoU", "of the gap"), [[title, *_score(scores, rung)] for rung, title in STREETS.items()]
    )


def photographs(of: Results) -> list[str]:
    """A row per recipe."""
    rows = []
    for recipe, title in PHOTOGRAPHS.items():
        result = _ladder(of, recipe)
        updates = result["budget"]["rung"] + result["budget"]["warm_up"]
        ours, share = _score(result["scores"], CONFIGURED)
        low, high = (_score(result["scores"], rung)[0] for rung in (SOURCE_ONLY, ORACLE))
        rows.append([title.format(updates=updates), low, ours, high, share])
    return markdown_table(("", "source-only", "adapted", "oracle", "of the gap"), rows)


def parts(of: Results) -> list[str]:
    """A row per part of the method, a column per recipe: the paired difference to the recipe."""
    results = [_ladder(of, recipe) for recipe in RECIPES]
    rows = [[title, *(_difference(result, rung) for result in results)] for rung, title in PARTS.items()]
    return markdown_table(("", *RECIPES.values()), rows)


def _ladder(of: Results, recipe: str) -> Mapping[str, Any]:
    """A ladder's results. Raises ConfigError while runs are missing: means over other seeds are not to be compared."""
    result = of(f"ladder_{recipe}")
    if not result["complete"]:
        raise ConfigError(f"docs/results/ladder_{recipe}.json is partial: finish the ladder first")
    return result


def _score(scores: Mapping[str, Any], rung: str) -> tuple[str, str]:
    if rung not in scores:
        return NOT_MEASURED, NOT_MEASURED
    last = scores[rung][LAST]
    return plus_minus(last["mean"], last["std"]), plus_minus(last["gap_closed"]["mean"], None, 0) + " %"


def _difference(result: Mapping[str, Any], rung: str) -> str:
    if rung not in result["scores"]:
        return NOT_MEASURED
    if result["rungs"][rung]["same_as"]:
        return "not in it"
    difference = result["scores"][rung][LAST]["difference_to_configured"]
    seeds = "" if difference["n"] > 2 else f" ({difference['n']} seeds)"
    return plus_minus(difference["mean"], difference["standard_error"], 2, signed=True) + seeds


# ---- speed and memory ----


@dataclass(frozen=True)
class Figure:
    """A case of `python -m benchmarks`: the naive way's name, and of how many things a call is."""

    title: str
    case: str
    plain: str
    calls: int = 1


SPEED = (
    Figure("decode and resize 2048x1024 to 1024x512", "data, Cityscapes, decode and resize, an image", "Pillow"),
    Figure("decode and resize 1914x1052 to 1280x720", "data, GTA5, decode and resize, an image", "Pillow"),
    Figure("the first from the cache (`[run] cache`)", "data, Cityscapes, cached, an image", "Pillow"),
    Figure("the second from the cache", "data, GTA5, cached, an image", "Pillow"),
    Figure(
        "confusion matrix of a 2048x1024 pair of PNGs",
        "confusion of a pair, from PNGs / cityscapesscripts, numpy",
        "`cityscapesscripts` as PyPI ships it (numpy)",
    ),
    Figure(
        "the same in memory",
        "confusion of a pair, in memory / cityscapesscripts, numpy",
        "the same",
    ),
    Figure(
        "pseudo label of a 1024x512 image, from logits to PNG",
        "pseudo labels, 8 images from logits to PNGs / as published",
        "as published",
        calls=8,
    ),
    Figure(
        "its part that looks for the highest class at full size",
        "pseudo labels, upsampling and maximum / one after the other",
        "upsampled, then compared",
    ),
)
TRANSLATION = (
    Figure("`fda`, an image and its target", "data, fda, an image and its target", "whole Fourier transforms"),
    Figure("`lab`, an image and its target", "data, lab, an image and its target", "formulas as written, every pixel"),
    Figure("`histogram`, an image and its target", "data, histogram, an image and its target", "pixels sorted"),
)
BESIDE_THE_PLAIN_WAY = ("", "here", "plain way", "times")
LOOPS = {"pooled once": "each region pooled once", "re-pooled per pair": "pooled again for each pair"}
PARTS_OF_AN_UPDATE = {  # row -> the parts of benchmarks.profile that it sums
    "source: forward": ("source forward",),
    "source: backward": ("source backward",),
    "target: forward": ("target forward",),
    "target: backward": ("target backward",),
    "discriminator, adversary": ("discriminator", "adversary"),
    "upsampling, softmax, cross-entropies": (
        *("source softmax", "source cross-entropy"),
        *("target softmax", "target cross-entropy"),
    ),
    "alignment: banks, matching, AIM, ISIA": ("alignment",),
    "optimisers": ("optimisers",),
}
PROFILES = {"profile_cpu": "share", "profile_checkpointing_cpu": "with checkpointing"}


def speed(of: Results) -> list[str]:
    """What reading, scoring and pseudo labels cost."""
    return _figures(SPEED, of("benchmarks_cpu"))


def translation(of: Results) -> list[str]:
    """What translation on the fly costs."""
    return _figures(TRANSLATION, of("benchmarks_cpu"))


def alignment(of: Results) -> list[str]:
    """An iteration's alignment at the published sizes, beside both loops."""
    rows = []
    for result in of("alignment_cpu")["results"]:
        modes, _, loop = result["name"].removeprefix("alignment, ").partition(" / ")
        rows.append([modes, *_timed(result, LOOPS[loop])])
    return markdown_table(BESIDE_THE_PLAIN_WAY, rows)


def stream(of: Results) -> list[str]:
    """A long stream of images from logits to PNGs."""
    found = of("stream_cpu")
    head = ("images", "an image", "of processor time", "peak memory", "of which before it began")
    milliseconds = (f"{found[name]:.1f} ms" for name in ("wall_ms", "processor_ms"))
    mebibytes = (f"{found[name]:.0f} MiB" for name in ("peak_mb", "before_mb"))
    return markdown_table(head, [[str(found["images"]), *milliseconds, *mebibytes]])


def profile(of: Results) -> list[str]:
    """Shares of an update, operations and memory."""
    found = [of(name) for name in PROFILES]
    rows = [
        [title, *(_share(result["seconds"], names) for result in found)] for title, names in PARTS_OF_AN_UPDATE.items()
    ]
    rows.append(["everything else", *(_share(result["seconds"], _unlisted(result)) for result in found)])
    rows.append(["operations", *(f"{result['use']['operations'] / 1e12:.1f} TFLOP" for result in found)])
    rows.append(["peak memory of the process", *(f"{result['peak_memory_mb']:.0f} MiB" for result in found)])
    return markdown_table(("part", *PROFILES.values()), rows)


def _unlisted(result: Mapping[str, Any]) -> list[str]:
    listed = {name for names in PARTS_OF_AN_UPDATE.values() for name in names}
    return [name for name in result["seconds"] if name not in listed]


def _figures(figures: Sequence[Figure], result: Mapping[str, Any]) -> list[str]:
    by_name = {case["name"]: case for case in result["results"]}
    rows = [[figure.title, *_timed(by_name[figure.case], figure.plain, figure.calls)] for figure in figures]
    return markdown_table(BESIDE_THE_PLAIN_WAY, rows)


def _timed(result: Mapping[str, Any], plain: str, calls: int = 1) -> tuple[str, str, str]:
    fast, naive = (duration(result[way] / calls) for way in ("fast_s", "naive_s"))
    return fast, f"{plain}, {naive}", three_digits(result["ratio"])


def _share(seconds: Mapping[str, float], names: Sequence[str]) -> str:
    return f"{sum(seconds[name] for name in names) / sum(seconds.values()):.1%}"


# ---- reliability ----


def soak(of: Results) -> list[str]:
    """How runs were ended, and what was left. Raises ConfigError where anything was wrong: the page says otherwise."""
    found = of("soak")
    if found["wrong"]:
        raise ConfigError(f"docs/results/soak.json: {len(found['wrong'])} faults were found")
    ways = found["kills"]["outcomes"]
    rows = [[*map(str.strip, name.split(":")), str(times)] for name, times in ways.items()]
    return markdown_table(("way", "outcome", "times"), rows)


TABLES: dict[str, Callable[[Results], list[str]]] = {
    "streets": streets,
    "photographs": photographs,
    "parts": parts,
    "speed": speed,
    "translation": translation,
    "alignment": alignment,
    "stream": stream,
    "profile": profile,
    "soak": soak,
}
