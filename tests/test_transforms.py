"""Paired transforms, normalisation and the dataset that uses them."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import normalize

from dataset import png
from dataset.corpora import DataError, Sample
from dataset.images import read_image, read_resized, resize
from dataset.labels import IGNORE, open_image, train_id_decoding
from dataset.png import FAST_PNG, plain_png
from dataset.segmentation import SegmentationDataset
from dataset.transforms import MEAN_COLOUR, Augment, Normalize

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def coded(width: int, height: int, *, block: int = 1) -> tuple[Image.Image, np.ndarray]:
    """An image whose red channel is ten times its label: whatever is done to both, they must still agree."""
    rows, columns = np.mgrid[:height, :width] // block
    label = ((rows * 7 + columns * 3) % 12).astype(np.uint8)
    pixels = np.stack([label * 10, label * 0 + 50, label * 0 + 200], axis=2)
    return Image.fromarray(pixels), label


class FixedDraws(np.random.Generator):
    """A generator whose draws (scale, x, y, flip; turn) are chosen by the test."""

    def __init__(self, *draws: float, turn: float = 0.0) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = (*draws, turn)

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        assert size == len(self.draws)
        return np.array(self.draws)


def augmented(augment: Augment, image: Image.Image, label: np.ndarray, size: tuple[int, int], seed: int = 0):
    result, result_label = augment(image, label, size, np.random.default_rng(seed))
    assert result.size == size
    assert result_label.shape == (size[1], size[0])
    assert result_label.dtype == np.uint8
    return np.asarray(result), result_label


# ---- resize ----


@given(SIZES, SIZES)
def test_resize_gives_the_size_and_keeps_the_set_of_labels(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image, label = coded(*size)
    resized, resized_label = resize(image, label, wanted)
    assert resized.size == wanted
    assert resized_label.shape == (wanted[1], wanted[0])
    assert set(np.unique(resized_label)) <= set(np.unique(label))


def test_resize_takes_the_label_at_pixel_centres() -> None:
    rows = np.arange(9, dtype=np.uint8)[:, None].repeat(4, axis=1)
    _, label = resize(Image.new("RGB", (4, 9)), rows, (2, 3))
    assert label.tolist() == [[1, 1], [4, 4], [7, 7]]


def test_resize_of_the_image_is_pillows_antialiased_bicubic() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    resized, none = resize(image, None, (20, 15))
    assert none is None
    np.testing.assert_array_equal(np.asarray(resized), np.asarray(image.resize((20, 15), Image.Resampling.BICUBIC)))
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    small = np.asarray(resize(stripes.convert("RGB"), None, (16, 16))[0]).astype(int)
    assert np.abs(small - 127).max() < 40  # without antialiasing this would be 0 or 255


@given(*[st.tuples(st.integers(1, 150), st.integers(1, 150))] * 2)
def test_resize_of_the_label_is_pillows_nearest(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    label = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    _, resized = resize(Image.new("RGB", wanted), label, wanted)
    expected = Image.fromarray(label).resize(wanted, Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_label_of_another_size_than_the_image() -> None:
    image, _ = coded(40, 20)
    resized, label = resize(image, np.full((5, 10), 3, dtype=np.uint8), (20, 10))
    assert resized.size == (20, 10)
    assert (label == 3).all()
    assert label.shape == (10, 20)


# ---- mirror and scale ----


@given(SIZES, st.integers(0, 2**32))
def test_without_augmentation_only_the_size_changes(size: tuple[int, int], seed: int) -> None:
    image, label = coded(*size)
    pixels, same = augmented(Augment(), image, label, size, seed)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(same, label)


@given(SIZES)
def test_mirror_reverses_both_and_twice_is_the_identity(size: tuple[int, int]) -> None:
    image, label = coded(*size)
    mirror, flip = Augment(mirror=True), FixedDraws(0.5, 0.5, 0.5, 0.1)
    once, once_label = mirror(image, label, size, flip)
    np.testing.assert_array_equal(np.asarray(once), np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(once_label, label[:, ::-1])
    twice, twice_label = mirror(once, once_label, size, flip)
    np.testing.assert_array_equal(np.asarray(twice), np.asarray(image))
    np.testing.assert_array_equal(twice_label, label)


def test_about_half_of_the_positions_are_mirrored() -> None:
    image, label = coded(3, 1)
    mirrored = [
        bool((augmented(Augment(mirror=True), image, label, (3, 1), position)[1] != label).any())
        for position in range(1000)
    ]
    assert 440 < sum(mirrored) < 560


@given(SIZES, SIZES, st.integers(0, 2**32), st.booleans())
def test_scale_gives_the_size_and_only_known_labels(
    size: tuple[int, int], wanted: tuple[int, int], seed: int, mirror: bool
) -> None:
    image, label = coded(*size)
    _, scaled = augmented(Augment(mirror=mirror, scale=True), image, label, wanted, seed)
    assert set(np.unique(scaled)) <= {*np.unique(label).tolist(), IGNORE}


@pytest.mark.parametrize("seed", range(30))
def test_scaled_image_and_label_still_agree(seed: int) -> None:
    image, label = coded(96, 64, block=16)
    pixels, scaled = augmented(Augment(mirror=True, scale=True), image, label, (96, 64), seed)
    padding = scaled == IGNORE
    assert (pixels[padding] == MEAN_COLOUR).all()
    # Block borders are blurred in the image; inside the blocks red is ten times the label.
    difference = np.abs(pixels[..., 0].astype(int) - 10 * scaled.astype(int))[~padding]
    assert np.median(difference) == 0
    assert (difference <= 5).mean() > 0.6


def test_range_of_scales() -> None:
    image, label = coded(100, 100)
    shares = []
    for seed in range(300):
        _, scaled = augmented(Augment(scale=True), image, np.zeros_like(label), (100, 100), seed)
        shares.append(float(np.sqrt((scaled == 0).mean())))
    padded = [share for share in shares if share < 1]
    assert 0.5 <= min(padded) < 0.55
    assert 0.4 < len(padded) / len(shares) < 0.6  # half of the factors are below 1


def test_window_reaches_both_ends() -> None:
    image, label = coded(10, 10)
    for place, first, last in [(0.0, True, False), (0.999, False, True)]:
        small = Augment(scale=True)(image, label, (10, 10), FixedDraws(0.0, place, place, 0.9))[1]
        assert (small[0, 0] != IGNORE, small[-1, -1] != IGNORE) == (first, last)
    columns = np.tile(np.arange(10, dtype=np.uint8), (10, 1))
    large = Augment(scale=True)
    left = large(image, columns, (10, 10), FixedDraws(0.999, 0.0, 0.0, 0.9))[1]
    right = large(image, columns, (10, 10), FixedDraws(0.999, 0.999, 0.0, 0.9))[1]
    assert (left[0, 0], right[0, -1]) == (0, 9)
    assert left[0, -1] < 9
    assert right[0, 0] > 0


# ---- turn ----


@given(st.integers(1, 40), st.sampled_from(range(4)))
def test_a_square_turns_by_every_quarter(side: int, quarters: int) -> None:
    image, label = coded(side, side)
    turned, turned_label = Augment(turn=True)(
        image, label, (side, side), FixedDraws(0.5, 0.5, 0.5, 0.9, turn=(quarters + 0.5) / 4)
    )
    np.testing.assert_array_equal(turned_label, np.rot90(label, quarters))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), quarters))


@given(SIZES, st.integers(0, 2**32))
def test_what_is_not_square_keeps_its_shape_and_may_stand_on_its_head(size: tuple[int, int], seed: int) -> None:
    image, label = coded(*size)
    pixels, turned = augmented(Augment(turn=True), image, label, size, seed)
    np.testing.assert_array_equal(pixels[..., 0], 10 * turned)
    if size[0] != size[1]:
        assert any(np.array_equal(turned, expected) for expected in (label, np.rot90(label, 2)))


@pytest.mark.parametrize(("size", "orientations"), [((12, 12), 8), ((12, 8), 4)])
def test_mirror_and_turn_reach_every_orientation_alike(size: tuple[int, int], orientations: int) -> None:
    image, _ = coded(*size)
    label = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1])
    seen = Counter(
        augmented(Augment(mirror=True, turn=True), image, label, size, seed)[1].tobytes() for seed in range(400)
    )
    assert len(seen) == orientations
    assert min(seen.values()) > 400 / orientations / 2


def test_a_turn_changes_neither_scale_nor_mirror() -> None:
    image, label = coded(30, 30)
    for seed in range(20):
        _, plain = augmented(Augment(mirror=True, scale=True), image, label, (30, 30), seed)
        _, turned = augmented(Augment(mirror=True, scale=True, turn=True), image, label, (30, 30), seed)
        assert any(np.array_equal(turned, np.rot90(plain, quarters)) for quarters in range(4))


def test_scale_and_mirror_draw_independently() -> None:
    image, label = coded(30, 20)
    for seed in range(20):
        _, both = augmented(Augment(mirror=True, scale=True), image, label, (30, 20), seed)
        _, scaled = augmented(Augment(scale=True), image, label, (30, 20), seed)
        flipped = (augmented(Augment(mirror=True), image, label, (30, 20), seed)[1] != label).any()
        np.testing.assert_array_equal(both, scaled[:, ::-1] if flipped else scaled)


# ---- normalisation ----


def test_normalize_default_is_bgr_minus_the_mean() -> None:
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    images[:, 0], images[:, 1], images[:, 2] = 10, 20, 30
    normalised = Normalize()(images)
    assert normalised.dtype == torch.float32
    assert normalised.shape == images.shape
    expected = torch.tensor([30 - 104.00698793, 20 - 116.66876762, 10 - 122.67891434])
    torch.testing.assert_close(normalised[1, :, 2, 3], expected)
    assert (images[:, 0] == 10).all()


def test_normalize_rgb_with_std_agrees_with_torchvision() -> None:
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    images = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = normalize(images / 255, [m / 255 for m in mean], [s / 255 for s in std])
    torch.testing.assert_close(Normalize(order="RGB", mean=mean, std=std)(images), expected)


@pytest.mark.parametrize("change", [{"order": "GBR"}, {"mean": (1.0, 2.0)}, {"std": (1.0, 0.0, 1.0)}])
def test_bad_normalisation_is_refused(change: dict) -> None:
    with pytest.raises(DataError):
        Normalize(**change)


# ---- reading images ----

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "palette.png", "clear.png", "rgba.png", "rgba.tif", "la.png"])
def test_any_mode_becomes_rgb(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(RAMP)
    if name.startswith("rgba"):
        image = Image.merge("RGBA", [image, image, image, Image.fromarray(RAMP[::-1].copy())])
    elif name.startswith("la"):
        image = Image.merge("LA", [image, Image.fromarray(RAMP[::-1].copy())])
    elif name.startswith(("palette", "clear")):
        image.putpalette(np.repeat(np.arange(256), 3).tolist())
    if name == "clear.png":
        image.save(tmp_path / name, transparency=bytes(range(256)))
    else:
        image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), RAMP[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 256 + 77).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"x{suffix}"))[..., 1], RAMP)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = np.asarray(read_image(tmp_path / "red.jpg"))[4, 4].astype(int)
    assert red > 200
    assert max(green, blue) < 50


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 4)


def test_unreadable_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"absent\.png: cannot read the file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="cannot read the file"):
        read_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: not an image file"):
        read_image(tmp_path / "empty.png")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: 32-bit pixels"):
        read_image(tmp_path / "float.tif")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.png: not a readable image"):
        read_image(tmp_path / "cut.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"whole\.png: not a readable image .*exceeds limit"):
        read_image(tmp_path / "whole.png")


# ---- plain PNGs, which are not decoded by Pillow ----


def png_of(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.skipif(not FAST_PNG, reason="kornia-rs is not installed")
@given(SIZES, st.integers(0, 2**32), st.integers(0, 9))
def test_plain_pngs_are_pillows_to_the_last_bit(size: tuple[int, int], seed: int, level: int) -> None:
    steps = np.random.default_rng(seed).integers(-3, 4, (size[1], size[0], 3))
    image = Image.fromarray((128 + steps.cumsum(axis=0).cumsum(axis=1)).astype(np.uint8))  # every filter is used
    pixels = plain_png(png_of(image, compress_level=level), "rgb")
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.asarray(image))


def real_images() -> list[Path]:
    """Two photographs of each real corpus that lies beside the project."""
    folders = sorted((Path(__file__).resolve().parents[2] / "shared" / "data").glob("*/images*"))
    return [path for folder in folders for path in sorted(folder.rglob("*.png"))[:2]]


@pytest.mark.skipif(not real_images(), reason="no real images beside the project")
@pytest.mark.parametrize("size", [(480, 360), (333, 251), (1280, 720)])
def test_real_photographs_are_pillows_to_the_last_bit(size: tuple[int, int]) -> None:
    for path in real_images():
        with Image.open(path) as stored:
            expected = stored.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(read_resized(path, size)[0]), np.asarray(expected))


@pytest.mark.parametrize("fast", [False, True])
def test_unusual_pngs_are_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    image, _ = coded(20, 12)
    transparent = png_of(image, transparency=(0, 50, 200))
    deep = cv2.imencode(".png", np.asarray(image).astype(np.uint16)[..., ::-1] * 256 + 5)[1].tobytes()
    if not fast:
        monkeypatch.setattr(png, "decode_image_png_u8", None)
    for index, data in enumerate((png_of(image), transparent, deep, png_of(image.convert("RGBA")))):
        (tmp_path / f"{index}.png").write_bytes(data)
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / f"{index}.png")), np.asarray(image))


@given(st.data())
def test_a_damaged_png_is_what_pillow_makes_of_it(data: st.DataObject) -> None:
    whole = png_of(coded(20, 12)[0])
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for position in data.draw(st.lists(st.integers(0, max(0, len(changed) - 1)), max_size=2)) if changed else ():
        changed[position] ^= data.draw(st.integers(1, 255))
    pixels = plain_png(bytes(changed), "rgb")
    if pixels is not None:
        np.testing.assert_array_equal(pixels, np.asarray(open_image(Path("x.png"), bytes(changed))))


# ---- the dataset ----


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for index, size in enumerate([(40, 24), (36, 30), (40, 24)]):
        image, label = coded(*size)
        image.save(tmp_path / f"{index}.png")
        Image.fromarray(label).save(tmp_path / f"{index}_label.png")
        made.append(Sample(f"{index}.png", tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"))
    return made


def test_example_at_the_wanted_size(samples: list[Sample]) -> None:
    dataset = SegmentationDataset(samples, decoding=train_id_decoding(12), size=(20, 12))
    example = dataset[1]
    assert (example.image.dtype, example.label.dtype) == (torch.uint8, torch.uint8)
    assert (example.image.shape, example.label.shape) == ((3, 12, 20), (12, 20))
    assert example.name == "1.png"
    pixels = np.asarray(Image.open(samples[1].image).resize((20, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(example.image.permute(1, 2, 0).numpy(), pixels)


def test_native_size_and_native_labels(samples: list[Sample]) -> None:
    decoding = train_id_decoding(12)
    native = SegmentationDataset(samples, decoding=decoding, size=None)[1]
    assert (native.image.shape, native.label.shape) == ((3, 30, 36), (30, 36))
    np.testing.assert_array_equal(native.image[0].numpy(), native.label.numpy() * 10)
    mixed = SegmentationDataset(samples, decoding=decoding, size=(20, 12), native_labels=True)[1]
    assert (mixed.image.shape, mixed.label.shape) == ((3, 12, 20), (30, 36))
    np.testing.assert_array_equal(mixed.label, native.label)


def test_unlabelled_images_have_ignored_labels(samples: list[Sample]) -> None:
    unlabelled = [Sample(sample.name, sample.image) for sample in samples]
    for native, shape in [(False, (12, 20)), (True, (30, 36))]:
        dataset = SegmentationDataset(unlabelled, decoding=None, size=(20, 12), native_labels=native)
        assert dataset[1].label.shape == shape
        assert (dataset[1].label == IGNORE).all()


def test_augmentation_depends_on_position_alone(samples: list[Sample]) -> None:
    def dataset(seed: int = 1, stream: int = 0) -> SegmentationDataset:
        augment = Augment(mirror=True, scale=True)
        return SegmentationDataset(
            samples, decoding=train_id_decoding(12), size=(40, 24), augment=augment, seed=seed, stream=stream
        )

    first = dataset()[7, 0]
    dataset()[8, 0]
    assert torch.equal(dataset()[7, 0].image, first.image)
    assert torch.equal(dataset()[7, 0].label, first.label)
    assert torch.equal(dataset()[7, 2].label, first.label)  # sample 2 has the same picture as sample 0
    assert first.image.permute(1, 2, 0).is_contiguous()  # channels last
    for other in (dataset()[8, 0], dataset(seed=2)[7, 0], dataset(stream=1)[7, 0]):
        assert not torch.equal(other.image, first.image)


def test_wrong_use_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="need a decoding"):
        SegmentationDataset(samples, decoding=None, size=None)
    with pytest.raises(ValueError, match="augment must be None"):
        SegmentationDataset(samples, decoding=train_id_decoding(12), size=None, augment=Augment(), native_labels=True)
