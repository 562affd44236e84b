"""The cache of resized images: never another result, never a file that is not whole, never without bound."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.cache import ImageCache, Resized, _decoded
from dataset.corpora import DataError, Sample
from dataset.images import read_image, read_resized
from dataset.labels import train_id_decoding
from dataset.loading import train_loader
from dataset.segmentation import SegmentationDataset
from dataset.transforms import Augment
from tests.worlds import own_settings, write_own
from utils import datasets
from utils.config import ConfigError, build_config

SIZE = (24, 16)
# Python 3.12 and newer warn when a process with threads forks, which is how loaders start workers on Linux.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ENTRY_BYTES = 24 * 16 * 3 + 60  # pixels and header


def noise(seed: int, size: tuple[int, int] = (30, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for index in range(5):
        image, label = tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"
        Image.fromarray(noise(index)).save(image)
        Image.fromarray(noise(index)[..., 0] % 5).save(label)
        made.append(Sample(image.name, image, label))
    return made


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", limit=10**6)


def entries(cache: ImageCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def store(cache: ImageCache, seed: int) -> bytes:
    """Keep noise of `SIZE`; returns its key."""
    key = cache.key(bytes([seed]), SIZE)
    cache.store(key, Resized(noise(seed, SIZE), (30, 20)))
    return key


# ---- the same result, sooner ----


def test_the_second_read_gives_the_same_image_without_decoding(samples: list[Sample], cache: ImageCache) -> None:
    plain = read_image(samples[0].image).resize(SIZE, Image.Resampling.BICUBIC)
    for _ in range(2):
        image, native = read_resized(samples[0].image, SIZE, cache)
        assert native == (30, 20)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
    assert [path.stat().st_size for path in entries(cache)] == [ENTRY_BYTES]
    key = cache.key(samples[0].image.read_bytes(), SIZE)
    cache.store(key, Resized(np.full((16, 24, 3), 7, dtype=np.uint8), (9, 6)))
    image, native = read_resized(samples[0].image, SIZE, cache)
    assert native == (9, 6)
    assert (np.asarray(image) == 7).all()  # no file says so but the entry


def test_an_entry_belongs_to_content_and_size_not_to_a_name(samples: list[Sample], cache: ImageCache) -> None:
    twin = samples[0].image.with_name("twin.png")
    shutil.copy(samples[0].image, twin)
    for path, size, expected in (
        (samples[0].image, SIZE, 1),
        (twin, SIZE, 1),
        (samples[0].image, (16, 24), 2),
        (samples[1].image, SIZE, 3),
    ):
        read_resized(path, size, cache)
        assert len(entries(cache)) == expected
    shutil.copy(samples[2].image, twin)
    image, _ = read_resized(twin, SIZE, cache)
    plain, _ = read_resized(samples[2].image, SIZE)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))


@pytest.mark.parametrize(
    "options",
    [{}, {"augment": Augment(mirror=True)}, {"augment": Augment(mirror=True, scale=True)}, {"native_labels": True}],
)
@pytest.mark.parametrize("size", [SIZE, (30, 20), None])
def test_examples_are_the_same_with_and_without(
    samples: list[Sample], cache: ImageCache, options: dict, size: tuple[int, int] | None
) -> None:
    def dataset(**more: object) -> SegmentationDataset:
        settings: dict = {"decoding": train_id_decoding(5), "size": size, "seed": 3, **options, **more}
        return SegmentationDataset(samples, **settings)

    cached = dataset(cache=cache)
    for position in (*range(5), *range(5)):
        expected, found = dataset()[position], cached[position]
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.label, expected.label)
    kept = size is not None and not options.get("augment", Augment()).scale
    assert len(entries(cache)) == (5 if kept else 0)


def test_sizes_of_image_and_label_are_compared_all_the_same(samples: list[Sample], cache: ImageCache) -> None:
    Image.fromarray(noise(0)[:10, :, 0] % 5).save(samples[0].label or "")
    dataset = SegmentationDataset(samples, decoding=train_id_decoding(5), size=SIZE, native_labels=True, cache=cache)
    for _ in range(2):
        with pytest.raises(DataError, match=r"0_label\.png is 30x10, its image .*0\.png is 30x20"):
            dataset[0]


def test_a_bad_image_is_refused_and_not_kept(samples: list[Sample], cache: ImageCache) -> None:
    samples[0].image.write_bytes(samples[0].image.read_bytes()[:100])
    for _ in range(2):
        with pytest.raises(DataError, match=r"0\.png: not a readable image"):
            read_resized(samples[0].image, SIZE, cache)
    assert entries(cache) == []


# ---- what lies in the folder is not trusted ----


@given(st.integers(1, 9), st.integers(1, 9), st.binary(min_size=32, max_size=32), st.data())
def test_only_the_whole_entry_of_the_key_is_believed(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, key: bytes, data: st.DataObject
) -> None:
    cache = ImageCache(tmp_path_factory.mktemp("cache"), limit=10**6)
    pixels = noise(0, (width, height))
    cache.store(key, Resized(pixels, (5 * width, height)))
    (path,) = entries(cache)
    whole = path.read_bytes()
    entry = cache.load(key)
    assert entry is not None
    assert entry.native == (5 * width, height)
    np.testing.assert_array_equal(entry.pixels, pixels)
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[position] ^= data.draw(st.integers(1, 255))
    assert _decoded(bytes(changed), key) is None
    assert _decoded(whole[:position], key) is None
    assert _decoded(whole + b"x", key) is None
    assert _decoded(whole, bytes(32)) is None or key == bytes(32)


@pytest.mark.parametrize(
    "content", [b"", b"foreign", struct.pack("<8s32s5I", b"resized\x01", bytes(32), 1, 1, 1, 1, 0)]
)
def test_a_damaged_entry_is_made_again(samples: list[Sample], cache: ImageCache, content: bytes) -> None:
    plain, _ = read_resized(samples[0].image, SIZE, cache)
    (path,) = entries(cache)
    path.write_bytes(content)
    image, _ = read_resized(samples[0].image, SIZE, cache)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
    assert path.stat().st_size == ENTRY_BYTES


# ---- bounded ----


def test_what_was_unused_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", limit=3 * ENTRY_BYTES)
    keys = [store(cache, seed) for seed in range(3)]
    for age, key in enumerate(keys):
        os.utime(cache.folder / f"{key.hex()}.resized", (age, age))
    assert cache.load(keys[0]) is not None  # now it is the youngest
    keys.append(store(cache, 3))
    assert [cache.load(key) is not None for key in keys] == [True, False, True, True]
    keys.append(store(cache, 4))
    assert sum(cache.load(key) is not None for key in keys) == 3


def test_only_the_caches_own_files_are_deleted(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", limit=1)
    kept = [cache.folder / name for name in ("weights.pth", "a.png", "under.way.part")]
    abandoned = cache.folder / "dead.beef.part"
    for path in (*kept, abandoned):
        path.write_bytes(bytes(100))
    os.utime(abandoned, (0, time.time() - 7200))
    key = store(cache, 0)
    assert cache.load(key) is None  # larger than all that is allowed
    assert entries(cache) == sorted(kept)


def test_the_folder_is_looked_at_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ImageCache(tmp_path / "cache", limit=1000 * ENTRY_BYTES)
    looks = []
    monkeypatch.setattr(cache, "_evict", lambda: looks.append(len(entries(cache))))
    for seed in range(25):
        store(cache, seed)
    assert looks == [1, 11, 21]


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: the cache of resized images cannot be used \(File exists\); name"):
        ImageCache(tmp_path / "file", limit=1)
    cache = ImageCache(tmp_path / "gone", limit=1)
    cache.folder.rmdir()
    with pytest.raises(DataError, match=r"gone: the cache of resized images cannot be used \(No such file"):
        store(cache, 0)


# ---- shared ----


def _use(folder: Path, images: list[Path], seed: int, rounds: int) -> None:
    """What one of several runs does: read images in its own order, and compare each with the uncached one."""
    cache = ImageCache(folder, limit=3 * ENTRY_BYTES)
    for index in np.random.default_rng(seed).integers(0, len(images), rounds):
        image, _ = read_resized(images[index], SIZE, cache)
        plain, _ = read_resized(images[index], SIZE)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))


@FORKS
def test_processes_that_write_and_evict_at_once(samples: list[Sample], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    images = [sample.image for sample in samples]
    processes = [context.Process(target=_use, args=(tmp_path / "cache", images, seed, 300)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    left = list((tmp_path / "cache").iterdir())
    assert 1 <= len(left) <= 3
    assert all(path.suffix == ".resized" for path in left)


@FORKS
def test_loading_processes_share_it(samples: list[Sample], cache: ImageCache) -> None:
    def batches(**more: object) -> list[torch.Tensor]:
        settings: dict = {"decoding": train_id_decoding(5), "size": SIZE, "augment": Augment(mirror=True), **more}
        loader = train_loader(SegmentationDataset(samples, **settings), batch_size=1, seed=0, stop=20, num_workers=2)
        return [batch.images for batch in loader]

    for cached, plain in zip(batches(cache=cache), batches(), strict=True):
        assert torch.equal(cached, plain)
    assert len(entries(cache)) == 5


# ---- from the configuration ----


def test_the_configuration_sets_folder_and_limit_of_every_data_set(tmp_path: Path) -> None:
    write_own(tmp_path, images=2, validation=1)
    settings = own_settings(tmp_path, run={"cache": str(tmp_path / "cache"), "cache_gb": 0.5})
    config = build_config(settings, where="own.toml")
    classes = datasets.class_table(config)
    sets = [
        datasets.source_dataset(config, config.step1, classes),
        datasets.target_dataset(config, config.step1, classes),
        datasets.prediction_loader(config, "val", classes, labelled=True).images,
    ]
    for dataset in sets:
        assert dataset.cache is not None
        assert (dataset.cache.folder, dataset.cache.limit) == (tmp_path / "cache", 500_000_000)
        assert len(list(map(dataset.__getitem__, range(len(dataset))))) == len(dataset)
    assert len(list((tmp_path / "cache").iterdir())) == sum(map(len, sets))
    without = build_config(own_settings(tmp_path), where="own.toml")
    assert datasets.source_dataset(without, without.step1, classes).cache is None


@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("inf")])
def test_a_limit_that_cannot_be_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match=r"own\.toml: \[run\] cache_gb must be above 0"):
        build_config(own_settings(tmp_path, run={"cache_gb": value}), where="own.toml")
