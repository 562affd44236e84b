"""Source images in the style of target images: three ways, of which none learns or looks at a label.

`Fourier` (Yang & Soatto, "FDA", CVPR 2020) gives an image the amplitudes of a target image's low frequencies and
keeps its phases. `Colours` (Reinhard et al., "Color Transfer between Images", 2001) gives it the mean and the standard
deviation of a target image's colours, `Histogram` (histogram specification: Gonzalez & Woods, "Digital Image
Processing", section 3.3) the whole distribution of each channel. What a method needs of a target image is its style: a
few numbers, described once and applied to any number of images of any size. Images are (H,W,3) uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

_STRIP = 2**14  # pixels at a time: they stay in the processor's cache
_DRAW_IMAGES, _DRAW_STYLE = (1,), (2,)  # spawn keys: apart from each other and from every draw without one


class Method(Protocol):
    """A way to translate. Picklable, without state; the same numbers to the bit wherever it runs on one machine."""

    def describe(self, target: np.ndarray) -> np.ndarray:
        """The style of an image: float32, of one shape for all images."""

    def apply(self, source: np.ndarray, style: np.ndarray) -> np.ndarray:
        """An image in a style: a new one of the same size."""


def method_named(name: str, *, beta: float, size: tuple[int, int]) -> Method:
    """The method of this name. size: (W,H) in which images are learnt from, which `beta` refers to."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}")
    return Fourier(band(size, beta)) if name == "fda" else _WITHOUT_SETTINGS[name]()


def fda(source: np.ndarray, target: np.ndarray, *, beta: float) -> np.ndarray:
    """The source with the target's amplitudes at frequencies of at most floor(beta * shorter side of the source)
    cycles per image in both directions. The two may have different sizes."""
    return _in_style_of(target, source, Fourier(band((source.shape[1], source.shape[0]), beta)))


def lab_transfer(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The source with the means and standard deviations of the target's l, alpha, beta. Any two sizes."""
    return _in_style_of(target, source, Colours())


def histogram_match(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The source with the distribution of the target's red, green and blue, each by itself. Any two sizes."""
    return _in_style_of(target, source, Histogram())


def _in_style_of(target: np.ndarray, source: np.ndarray, method: Method) -> np.ndarray:
    return method.apply(source, method.describe(target))


def band(size: tuple[int, int], beta: float) -> int:
    """The highest frequency that FDA exchanges in an image of `size` (W,H), in cycles per image."""
    return math.floor(min(size) * beta)


# ---- low frequencies ----


@dataclass(frozen=True)
class Fourier:
    """FDA: amplitudes of the frequencies up to `band` cycles per image in both directions, the mean among them.

    Frequencies count cycles per image and amplitudes are divided by the number of pixels, so a style fits images of
    every size as if its own had been resized. Of the Fourier transform the low frequencies alone are computed, by two
    thin matrix products, and what changes in them is added to the image: exact, at a tenth of the transform's cost.
    style: (band+1, 2*band+1, 3), vertical frequencies 0..band (an image is real, so the others follow), horizontal
    ones -band..band; 0 for those that an image is too small to have.
    """

    band: int

    def describe(self, target: np.ndarray) -> np.ndarray:
        """The amplitudes, in grey levels."""
        with _one_thread():
            spectrum = _low_frequencies(target, self.band)
        style = np.zeros((self.band + 1, 2 * self.band + 1, 3), np.float32)
        style[self._known(target)] = np.abs(spectrum)
        middle, half = self.band, target.shape[1] // 2
        if 2 * half == target.shape[1] and half <= middle:  # half the pixels: the same wave in either direction
            style[:, middle + half] = style[:, middle - half]
        return style

    def apply(self, source: np.ndarray, style: np.ndarray) -> np.ndarray:
        """The image with these amplitudes, rounded and clipped to 0..255."""
        translated = np.empty(source.shape, np.uint8)
        with _one_thread():
            spectrum = _low_frequencies(source, self.band)
            for rows, part in _picture(self._change(source, spectrum, style), source.shape, self.band):
                flat = source[rows].reshape(part.shape)
                cv2.add(flat, part, translated[rows].reshape(part.shape), dtype=cv2.CV_8U)  # rounds and clips
        return translated

    def _change(self, source: np.ndarray, spectrum: np.ndarray, style: np.ndarray) -> np.ndarray:
        """What is added to the source's spectrum."""
        amplitude = np.abs(spectrum)
        # Below this there is rounding and no phase that could be kept: such a frequency stays absent.
        present = amplitude > 1e-4
        phase = np.divide(spectrum, amplitude, out=np.zeros_like(spectrum), where=present)
        return phase * (style[self._known(source)] - amplitude)

    def _known(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Which entries of a style an image has."""
        height, width, _ = image.shape
        return np.ix_(_half(height, self.band), _whole(width, self.band) + self.band)


def _low_frequencies(image: np.ndarray, band: int) -> np.ndarray:
    """(vertical, horizontal, 3) complex128: the image's Fourier coefficients at the frequencies `_half`, `_whole`."""
    height, width, _ = image.shape
    flat, waves = np.ascontiguousarray(image).reshape(height, -1), _vertical_waves(height, band)
    parts = np.zeros((len(waves), 3 * width), np.float32)
    for rows in _strips(image.shape):
        parts += waves[:, rows] @ flat[rows].astype(np.float32)
    real, imaginary = np.split(parts.astype(np.float64), 2)
    lines = (real + 1j * imaginary).reshape(-1, width, 3).transpose(0, 2, 1)
    coefficients = lines.reshape(-1, width) @ _horizontal_waves(width, band).T
    return coefficients.reshape(len(lines), 3, -1).transpose(0, 2, 1) / (height * width)


def _picture(spectrum: np.ndarray, shape: tuple[int, ...], band: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the image of `shape` with such coefficients and no other frequencies, and (rows, 3W) float32 for them."""
    height, width, _ = shape
    frequencies, waves = _half(height, band), _vertical_waves(height, band)
    # Frequency 0 and the highest of an even height are their own mirror images; all others stand for two.
    weights = np.where((frequencies == 0) | (2 * frequencies == height), 1.0, 2.0)
    weighted = (spectrum * weights[:, None, None]).transpose(0, 2, 1)
    lines = weighted.reshape(3 * len(frequencies), -1) @ _horizontal_waves(width, band).conj()
    lines = lines.reshape(-1, 3, width).transpose(0, 2, 1).reshape(len(frequencies), -1)
    parts = np.concatenate([lines.real, lines.imag], dtype=np.float32)
    for rows in _strips(shape):
        yield rows, waves[:, rows].T @ parts


def _half(length: int, band: int) -> np.ndarray:
    """The frequencies 0..band, as far as `length` pixels tell them apart."""
    return np.arange(min(band, length // 2) + 1)


def _whole(length: int, band: int) -> np.ndarray:
    """The frequencies -band..band, as far as `length` pixels tell them apart."""
    return np.arange(max(-band, -(length // 2)), min(band, (length - 1) // 2) + 1)


@lru_cache(maxsize=64)
def _vertical_waves(length: int, band: int) -> np.ndarray:
    """(2 * frequencies, length) float32: of exp(-i angle) the real parts, then the imaginary ones; `_half`."""
    waves = np.exp(-1j * _angles(_half(length, band), length))
    return np.concatenate([waves.real, waves.imag], dtype=np.float32)


@lru_cache(maxsize=64)
def _horizontal_waves(length: int, band: int) -> np.ndarray:
    """(frequencies, length) complex128: exp(-i angle); `_whole`."""
    return np.exp(-1j * _angles(_whole(length, band), length))


def _angles(frequencies: np.ndarray, length: int) -> np.ndarray:
    # Whole turns are taken off as integers: the angles stay exact in large images.
    return 2 * np.pi / length * (np.outer(frequencies, np.arange(length)) % length)


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of an image in strips of about `_STRIP` pixels."""
    rows = max(1, _STRIP // shape[1])
    return (slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows))


def _one_thread() -> AbstractContextManager[Any]:
    """A scope in which matrix products take one thread: loading processes share the machine by their number, and the
    sums come out alike whatever number of threads this process would have."""
    return _controller().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


# ---- colours ----

# As Reinhard et al. give them: RGB to LMS, and the logarithms of LMS to l, alpha, beta.
_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
_FROM_LMS, _FROM_LAB = np.linalg.inv(_TO_LMS), np.linalg.inv(_TO_LAB)
_COUNTED = 2**15  # pixels on a grid from which the statistics are taken, at the most about
_FLAT = 1e-4  # a standard deviation below is rounding
_BRIGHTEST = math.log(1e6)  # what lies above is white anyway, and would not fit in an integer


@dataclass(frozen=True)
class Colours:
    """Reinhard's transfer: mean and standard deviation of l, alpha and beta, the decorrelated axes of colour on which
    the paper works.

    One grey level is added before the logarithm and taken off in the end, since black has none. The base of the
    logarithm cancels. A channel of the source without contrast only gets the mean. Statistics are those of pixels on
    a regular grid, of all pixels up to about 350x350. style: (2,3), means and standard deviations.
    """

    def describe(self, target: np.ndarray) -> np.ndarray:
        """The statistics, of natural logarithms."""
        step = max(1, math.isqrt(target.shape[0] * target.shape[1] // _COUNTED))
        mean, deviation = cv2.meanStdDev(_affine(_logarithms(target[::step, ::step]), _TO_LAB, np.zeros(3)))
        return np.hstack([mean, deviation]).T.astype(np.float32)

    def apply(self, source: np.ndarray, style: np.ndarray) -> np.ndarray:
        """The image with these statistics, rounded and clipped to 0..255."""
        (own_mean, own_deviation), (mean, deviation) = self.describe(source).astype(np.float64), style
        factor = np.divide(deviation, own_deviation, out=np.ones(3), where=own_deviation > _FLAT)
        between = _FROM_LAB @ np.diag(factor) @ _TO_LAB  # of logarithms: there, scaled, and back
        offset = _FROM_LAB @ (mean - factor * own_mean)
        translated = np.empty(source.shape, np.uint8)
        for rows in _strips(source.shape):
            values = _affine(_logarithms(source[rows]), between, offset)
            np.minimum(values, _BRIGHTEST, out=values)
            rgb = _affine(cv2.exp(values, values), _FROM_LMS, np.full(3, -1.0))
            # Rounds and clips. The package's types know no numbers here, OpenCV does.
            cv2.add(rgb, 0, translated[rows], dtype=cv2.CV_8U)  # type: ignore[call-overload]
        return translated


def _logarithms(image: np.ndarray) -> np.ndarray:
    """(H,W,3) float32: the natural logarithms of LMS, of an image one grey level brighter."""
    lms = _affine(np.ascontiguousarray(image, np.float32), _TO_LMS, _TO_LMS.sum(axis=1))
    return cv2.log(lms, lms)


def _affine(pixels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """matrix @ p + offset for every pixel p of (H,W,3) float32."""
    return cv2.transform(pixels, np.column_stack([matrix, offset]).astype(np.float32))


# ---- distributions ----


@dataclass(frozen=True)
class Histogram:
    """Histogram specification: with all pixels of a channel in order, a level becomes what the target has at its place.

    The pixels of one level have one place, that of their middle: a white sky over half of the source becomes the median
    of the target's brighter half, not its one brightest pixel. No level appears that the target does not have.
    style: (256,3), how many pixels have each level 0..255.
    """

    def describe(self, target: np.ndarray) -> np.ndarray:
        """The numbers of pixels, as float32, which holds them exactly up to 2**24."""
        counts = [cv2.calcHist([target], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
        return np.stack(counts, axis=1)

    def apply(self, source: np.ndarray, style: np.ndarray) -> np.ndarray:
        """The image with this distribution, as nearly as moving whole levels allows."""
        tables = [_levels_in_place(own, other) for own, other in zip(self.describe(source).T, style.T, strict=True)]
        return cv2.LUT(source, np.stack(tables, axis=1)[None])


def _levels_in_place(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(256,) uint8: for each level of the one histogram the level that the other has at its place."""
    pixels, wanted = own.astype(np.int64), other.astype(np.int64)
    # Places are shares of all pixels; times twice the pixels of both images they are whole numbers, and ties are exact.
    places = (2 * pixels.cumsum() - pixels) * wanted.sum()
    return np.searchsorted(2 * wanted.cumsum() * pixels.sum(), places).astype(np.uint8)


_WITHOUT_SETTINGS: dict[str, type[Method]] = {"lab": Colours, "histogram": Histogram}
METHODS = ("fda", *_WITHOUT_SETTINGS)
COPIES = (*METHODS, "cyclegan")
"""How a translated copy of the source can be made: a network as well, which is too slow to translate while training."""


# ---- which style ----


def drawn_images(number: int, count: int, *, seed: int) -> list[int]:
    """Which of `number` target images the styles are taken from, ascending: `count` at random, 0 or too many: all."""
    if count == 0 or count >= number:
        return list(range(number))
    rng = np.random.default_rng(np.random.SeedSequence([seed], spawn_key=_DRAW_IMAGES))
    return sorted(rng.choice(number, count, replace=False).tolist())


@dataclass(frozen=True, eq=False)
class Translator:
    """A method with styles to draw from. Immutable and picklable: any number of processes may hold one.

    styles: (n, ...) float32, as `describe` gives them. probability: that an image is translated at all.
    """

    method: Method
    styles: np.ndarray
    probability: float = 1.0

    def __post_init__(self) -> None:
        self.styles.setflags(write=False)

    def draw(self, words: Sequence[int]) -> int | None:
        """The number of the style that these whole numbers mean, None for the image as it is."""
        rng = np.random.default_rng(np.random.SeedSequence(list(words), spawn_key=_DRAW_STYLE))
        chance, place = rng.random(2)
        return int(place * len(self.styles)) if chance < self.probability else None

    def __call__(self, image: np.ndarray, words: Sequence[int]) -> np.ndarray:
        """The image in the style drawn by `words`; the same one where it is left alone."""
        drawn = self.draw(words)
        return image if drawn is None else self.method.apply(image, self.styles[drawn])
