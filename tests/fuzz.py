"""Random input for everything that takes input from outside, or that a naive rule describes.

`CASES`: name -> what to draw, what to check with it, and how many are drawn in the ordinary tests. A check raises what
is wrong; what may be refused must be refused by one of the project's own errors, in one line. The long form is
`make soak`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from benchmarks import naive
from dataset.corpora import Corpus, DataError
from dataset.images import read_image
from dataset.labels import LabelDecoding, train_id_decoding
from model.regions import partition, pool
from model.weights import WeightsError, read_weights, write_weights
from tests.test_metrics import naive_iou
from tests.test_prototypes import bursts, test_a_ring_holds_the_last_inserts_in_their_slots
from tests.test_regions import STUFF, THINGS, label_maps, test_partition_is_the_naive_one
from tests.worlds import own_settings, save_png, save_synthia_label
from utils.checkpoint import CheckpointError, load_state, save_state
from utils.config import ConfigError, build_config, read_config
from utils.metrics import ConfusionMatrix
from utils.pseudo_label import ConfidenceHistogram, apply_thresholds


@dataclass(frozen=True)
class Case:
    """strategy: of one argument, a tuple of which is unpacked; count: of the ordinary tests; weight: share of the cases
    of the soak."""

    strategy: st.SearchStrategy[Any]
    check: Callable[..., None]
    count: int
    weight: float = 1.0

    def run(self, count: int) -> None:
        """Check so many random cases; hypothesis reports a shrunk one that fails."""

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(self.strategy)
        def cases(drawn: Any) -> None:
            self.check(*drawn) if isinstance(drawn, tuple) else self.check(drawn)

        cases()


# ---- numbers, against the naive rule ----


def pooling(batch: int, height: int, width: int, seed: int, limit: int) -> None:
    """Means over the regions' pixels."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, 255], (batch, height, width)))
    features = torch.from_numpy(rng.normal(size=(batch, 3, height, width)).astype(np.float32))
    regions = partition(labels, stuff=STUFF, things=THINGS, limit=limit)
    pooled = pool(features, regions)
    for row in range(len(regions.area)):
        image = int(regions.image[row])
        pixels = [(int(y), int(x)) for y, x in torch.nonzero(regions.index[image] == row)]
        torch.testing.assert_close(pooled[row], naive.gap(features[image], pixels), rtol=1e-5, atol=1e-6)


def scores(classes: int, shape: tuple[int, int], seed: int) -> None:
    """IoU of a prediction."""
    rng = np.random.default_rng(seed)
    ids = [*range(classes), 255]
    prediction, truth = (rng.choice(ids, shape).astype(np.uint8) for _ in range(2))
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, truth)
    np.testing.assert_allclose(matrix.iou(), naive_iou(prediction, truth, classes), equal_nan=True)


def thresholds(seed: int, pixels: int, cap: float, proportion: float) -> None:
    """The sorted rule of the spec, up to the rounding of confidences."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (1, pixels))
    confidence = np.float32(rng.random((1, pixels)) ** rng.choice([0.1, 1, 9]))
    histogram = ConfidenceHistogram(4)
    histogram.update(label, confidence)
    tau = histogram.thresholds(cap=cap, proportion=proportion)
    for category in range(4):
        ordered = np.sort(confidence[label == category])
        index = min(round(len(ordered) * proportion), len(ordered) - 1)
        exact = min(ordered[index], cap) if len(ordered) else 0.0
        assert abs(tau[category] - exact) < 1 / 4096
    kept = apply_thresholds(label, confidence, tau)
    assert (histogram.kept(tau)[:3] == [(kept == category).sum() for category in range(3)]).all()


# ---- text ----

VALID = tomli_w.dumps(own_settings(Path("world")))
SPLICES = st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 30), st.text(max_size=8)), max_size=4)


def toml(splices: list[tuple[int, int, str]]) -> None:
    """A configuration file somebody has slipped in."""
    text = VALID
    for start, length, replacement in splices:
        text = text[:start] + replacement + text[start + length :]
    path = _folder() / "c.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    _one_line(lambda: build_config(read_config(path), where="c.toml"), ConfigError, "c.toml")


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)
SECTIONS = ("source", "target", "classes", "run", "model", "step1", "step2", "pseudo_label", "evaluate", "translation")


def values(section: str, choice: float, value: Any) -> None:
    """A setting, known or not, with any value."""
    data = own_settings(Path("world"))
    keys = [*data.get(section, {"unknown": 0}), "seed", "batch_size", "num_steps", "size", "scales", "keep", "weights"]
    data[section] = {**data.get(section, {}), keys[int(choice * len(keys))]: value}
    _one_line(lambda: build_config(data, where="c.toml"), ConfigError, "c.toml")


NAMES = st.sampled_from(
    ["a.png", "b/c.png", "../a.png", "/etc/passwd", "b/../../x.png", "loop/a.png", "b", ".", "\x00"]
)
LINES = st.lists(st.one_of(NAMES, st.text(max_size=12)), max_size=4).map("\n".join)


def list_file(text: str) -> None:
    """A list of images: what comes of it lies in the folder, is a file, and comes once."""
    root = _world_of_lists()
    (root / "list.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    table = {"root": str(root), "train_list": str(root / "list.txt")}
    found = _one_line(lambda: Corpus.from_mapping(table, 2).samples("train", labelled=False), DataError, "")
    inside = (root / "images").absolute()
    for sample in found or []:
        assert sample.image.is_file()
        assert ".." not in sample.image.parts
        assert inside in sample.image.absolute().parents
    assert len({sample.image for sample in found or []}) == len(found or [])


# ---- bytes ----

DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=5),
    st.one_of(st.none(), st.floats(0, 1)),
)
STATE = {"step": 3, "x": torch.arange(300.0), "y": {"z": [1, 2.0, "s", None]}}


def state_file(flips: list[tuple[float, int]], cut: float | None) -> None:
    """A training state: what it was, or refused."""
    path = _damaged("last.pt", flips, cut)
    found = _one_line(lambda: load_state(path), CheckpointError, str(path))
    if found is not None:
        assert torch.equal(found["x"], STATE["x"])  # type: ignore[arg-type]
        assert {key: found[key] for key in ("step", "y")} == {key: STATE[key] for key in ("step", "y")}


def weights_file(name: str, damage: tuple[list[tuple[float, int]], float | None]) -> None:
    """Plain weights, with and without the hash beside them; safetensors has none of its own."""
    path = _damaged(name, *damage)
    found = _one_line(lambda: read_weights(path), WeightsError, str(path))
    if found is not None and name != "alone.safetensors":
        assert torch.equal(found.state["weight"], torch.arange(300.0))


def png(name: str, damage: tuple[list[tuple[float, int]], float | None]) -> None:
    """An image or a label of ids: what it was, or refused."""
    path = _damaged(name, *damage)
    read = _read_label if name.startswith("label") else _read_pixels
    found = _one_line(lambda: read(path), DataError, str(path))
    if found is not None:
        np.testing.assert_array_equal(found, read(_originals() / name))


def _read_label(path: Path) -> np.ndarray:
    if path.name == "label_16.png":
        return LabelDecoding(kind="channel", num_classes=4).decode(path)
    return train_id_decoding(4).decode(path)


def _read_pixels(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


# ---- means ----


def _one_line(act: Callable[[], Any], error: type[Exception], start: str) -> Any:
    """The result; None where it is refused by `error`, whose one line begins with `start`."""
    try:
        return act()
    except error as refusal:
        message = str(refusal)
        assert start in message, message
        assert "\n" not in message, message
        return None


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@functools.cache
def _world_of_lists() -> Path:
    root = _folder() / "lists"
    for name in ("a.png", "b/c.png", "../a.png"):
        save_png(root / "images" / name, np.zeros((2, 2), dtype=np.uint8))
    (root / "images" / "loop").symlink_to(root / "images")
    return root


@functools.cache
def _originals() -> Path:
    """Whole files of every kind."""
    folder, rng = _folder() / "whole", np.random.default_rng(0)
    folder.mkdir()
    save_state(folder / "last.pt", STATE)
    weight = {"weight": torch.arange(300.0)}
    write_weights(folder / "hashed.pth", weight, {})
    torch.save(weight, folder / "alone.pth")
    save_file(weight, folder / "alone.safetensors")
    save_png(folder / "image.png", rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 255, (24, 32, 4), dtype=np.uint8)).save(folder / "image_alpha.png")
    save_png(folder / "label.png", rng.integers(0, 4, (24, 32), dtype=np.uint8))
    palette = Image.fromarray(rng.integers(0, 4, (24, 32), dtype=np.uint8))
    palette.putpalette(bytes(range(12)))
    palette.save(folder / "label_palette.png")
    save_synthia_label(folder / "label_16.png", rng.integers(0, 4, (24, 32), dtype=np.uint8), rng)
    return folder


def _damaged(name: str, flips: list[tuple[float, int]], cut: float | None) -> Path:
    """A copy of a whole file with bytes changed, and cut short."""
    content = bytearray((_originals() / name).read_bytes())
    for place, change in flips:
        content[int(place * len(content))] ^= change
    path = _folder() / name
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    sidecar = (_originals() / name).with_suffix(".json")
    if sidecar.exists():
        path.with_suffix(".json").write_bytes(sidecar.read_bytes())
    return path


def _check_of(test: Any) -> Callable[..., None]:
    """The function that hypothesis feeds in a test of its own."""
    return test.hypothesis.inner_test


SEEDS = st.integers(0, 2**32 - 1)
CASES = {
    "regions": Case(label_maps, lambda *drawn: _check_of(test_partition_is_the_naive_one)(drawn), 200),
    "pooling": Case(label_maps, pooling, 150),
    "banks": Case(
        st.tuples(bursts, st.integers(1, 4), SEEDS),
        _check_of(test_a_ring_holds_the_last_inserts_in_their_slots),
        150,
    ),
    "metrics": Case(st.tuples(st.integers(1, 6), st.tuples(st.integers(1, 9), st.integers(1, 9)), SEEDS), scores, 250),
    "thresholds": Case(st.tuples(SEEDS, st.integers(1, 300), st.floats(0, 1), st.floats(0, 1)), thresholds, 150),
    "TOML": Case(SPLICES, toml, 250),
    "settings": Case(st.tuples(st.sampled_from(SECTIONS), st.floats(0, 1, exclude_max=True), LEAVES), values, 300),
    "lists": Case(LINES, list_file, 250),
    "states": Case(DAMAGE, state_file, 250),
    "weights": Case(
        st.tuples(st.sampled_from(["hashed.pth", "alone.pth", "alone.safetensors"]), DAMAGE), weights_file, 250
    ),
    "PNGs": Case(
        st.tuples(
            st.sampled_from(["image.png", "image_alpha.png", "label.png", "label_palette.png", "label_16.png"]), DAMAGE
        ),
        png,
        300,
    ),
}
