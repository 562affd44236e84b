"""Atomic writing under failure, the training state's round trip and refusals, and the random generators."""

from __future__ import annotations

import os
import random
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.checkpoint import (
    STATE_FORMAT,
    CheckpointError,
    load_state,
    require_keys,
    restore_rng,
    rng_state,
    save_state,
)
from utils.files import atomic_write


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "best": None,
        "history": [("a", 1.5), ("b", float("inf"))],
        "rng": rng_state(),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def test_atomic_write_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for text in ("one", "two"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == path.suffix
            temporary.write_text(text)
        assert path.read_text() == text
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.touch()
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert len(modes) == 1


def test_state_round_trip(tmp_path: Path) -> None:
    state = state_of(*trained())
    save_state(tmp_path / "last.pt", state)
    loaded = load_state(tmp_path / "last.pt")
    assert_same({**state, "format": STATE_FORMAT}, loaded)
    model, optimizer = trained()
    model.load_state_dict(loaded["model"], strict=True)
    optimizer.load_state_dict(loaded["optimizer"])
    assert_same(optimizer.state_dict(), state["optimizer"])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float64(1.0), r"state\['best'\]\['miou'\] is a numpy.float64"),
        (Path("x"), r"state\['best'\]\['miou'\] is a pathlib"),
        ([1, {2: np.int64(3)}], r"state\['best'\]\['miou'\]\[1\]\[2\] is a numpy.int64"),
        ({np.int64(3): 1}, r"a key of state\['best'\]\['miou'\] is a numpy.int64"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, value: Any, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        save_state(tmp_path / "last.pt", {"best": {"miou": value}})
    assert list(tmp_path.iterdir()) == []


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_state(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such file"):
        load_state(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_state(path, {"x": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"last.pt: truncated"):
        load_state(path)


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    tensor = torch.arange(1000.0)
    save_state(path, {"x": tensor})
    content = bytearray(path.read_bytes())
    start = content.find(tensor.numpy().tobytes())
    assert start > 0
    content[start + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged, the checksum of .*data"):
        load_state(path)


def test_any_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    path, state = tmp_path / "last.pt", {"x": torch.arange(20.0), "y": {"z": [1, 2.0, "s", None]}}
    save_state(path, state)
    content = path.read_bytes()
    found = 0
    for position in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[position] ^= 0x81
        path.write_bytes(damaged)
        try:
            assert_same(load_state(path), {**state, "format": STATE_FORMAT})
        except CheckpointError:
            found += 1
    assert found > len(content) // 13 / 3


class Harmful:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_foreign_files(tmp_path: Path) -> None:
    weights, archive, newer, harmful = (tmp_path / name for name in ("w.pth", "a.zip", "n.pt", "h.pt"))
    torch.save({"weight": torch.zeros(2)}, weights)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme", "text")
    torch.save({"format": "bafft-train-state-2"}, newer)
    torch.save({"format": STATE_FORMAT, "x": Harmful(tmp_path / "proof")}, harmful)
    for path, message in (
        (weights, "no format mark.*--restore-from"),
        (archive, "not a training state"),
        (newer, f"'bafft-train-state-2'.*'{STATE_FORMAT}'"),
        (harmful, "not a training state"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_state(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [torch.zeros(2), {"format": torch.zeros(2)}, [1, 2]])
def test_archives_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x.pt: "):
        load_state(tmp_path / "x.pt")


def test_require_keys() -> None:
    require_keys({"a": 1, "b": 2}, ["b", "a"])
    with pytest.raises(CheckpointError, match=r"^last.pt: missing b, c; unexpected d "):
        require_keys({"a": 1, "d": 2}, ["a", "b", "c"], where="last.pt")
    with pytest.raises(CheckpointError, match=r"^training state: unexpected d \("):
        require_keys({"a": 1, "d": 2}, ["a"])


def draw() -> list[float]:
    numbers = [random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal()]
    return [*numbers, *torch.randn(3).tolist()]


@pytest.fixture
def keep_generators():
    before = rng_state()
    yield
    restore_rng(before)


@pytest.mark.usefixtures("keep_generators")
def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draw()  # leaves half a pair of normal numbers in Python's and numpy's generators
    save_state(tmp_path / "rng.pt", {"rng": rng_state()})
    expected = [draw() for _ in range(3)]
    assert draw() not in expected
    restore_rng(load_state(tmp_path / "rng.pt")["rng"])
    assert [draw() for _ in range(3)] == expected


@pytest.mark.usefixtures("keep_generators")
def test_a_random_state_with_a_missing_part_is_refused() -> None:
    state = rng_state()
    del state["numpy"]
    with pytest.raises(CheckpointError, match="random state: missing numpy"):
        restore_rng(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("keep_generators")
def test_cuda_generators_go_on_where_they_were() -> None:
    torch.randn(5, device="cuda")
    state = rng_state()
    assert len(state["cuda"]) == torch.cuda.device_count()
    expected = torch.randn(5, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.randn(5, device="cuda"), expected)


@pytest.mark.usefixtures("keep_generators")
def test_a_state_from_another_number_of_devices_is_taken() -> None:
    state = rng_state()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 3 if torch.cuda.device_count() == 0 else []
    expected = draw()
    restore_rng(state)
    assert draw() == expected
