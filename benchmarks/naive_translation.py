"""The translations of dataset/translation.py, step by step: whole Fourier transforms and float64 as their papers have
them, histograms by sorting pixels.

Tests hold the fast code against it, benchmarks time it. Images are (H,W,3) uint8 RGB; results are float64, neither
rounded nor clipped.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
TO_LAB = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]) / np.sqrt([[3.0], [6.0], [2.0]])


def fda(source: np.ndarray, target: np.ndarray, band: int) -> np.ndarray:
    """The source with the target's amplitudes, per pixel, at all frequencies of at most `band` cycles per image in
    both directions, which are fewer than half the source's pixels. What a smaller target does not have becomes 0. A
    frequency that is absent from the source has no phase and stays absent."""
    spectrum = np.fft.fft2(source, axes=(0, 1))
    wanted = np.abs(np.fft.fft2(target, axes=(0, 1))) * source[..., 0].size / target[..., 0].size
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    present = amplitude > 1e-4 * source[..., 0].size
    height, width, _ = target.shape
    for vertical in range(-band, band + 1):
        for horizontal in range(-band, band + 1):
            here = vertical, horizontal  # negative indices count from the end, as numpy's frequencies do
            known = 2 * abs(vertical) <= height and 2 * abs(horizontal) <= width
            amplitude[here] = present[here] * wanted[here] if known else 0.0
    return np.fft.ifft2(amplitude * np.exp(1j * phase), axes=(0, 1)).real


def lab(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The source with the means and standard deviations of the target's l, alpha, beta, taken over all pixels."""
    own, other = to_lab(source), to_lab(target)
    flat = own.std(axis=(0, 1)) < 1e-4
    factor = np.where(flat, 1.0, other.std(axis=(0, 1)) / np.where(flat, 1.0, own.std(axis=(0, 1))))
    moved = (own - own.mean(axis=(0, 1))) * factor + other.mean(axis=(0, 1))
    return 10.0 ** (moved @ np.linalg.inv(TO_LAB).T) @ np.linalg.inv(TO_LMS).T - 1


def histogram(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The source with the target's red, green and blue, pixel by pixel in the order of brightness: what lies in the
    middle of the pixels of one level becomes what the target has at that share of its own. On a boundary between two
    pixels of the target, the darker."""
    translated = np.empty(source.shape)
    for channel in range(3):
        own, other = (np.sort(image[..., channel], axis=None) for image in (source, target))
        for level in np.unique(own):
            first, after = np.searchsorted(own, level), np.searchsorted(own, level, side="right")
            place = Fraction(int(first + after), 2 * own.size) * other.size
            translated[..., channel][source[..., channel] == level] = other[math.ceil(place) - 1]
    return translated


def to_lab(image: np.ndarray) -> np.ndarray:
    """(H,W,3): l, alpha, beta of an image one grey level brighter."""
    return np.log10((image.astype(np.float64) + 1) @ TO_LMS.T) @ TO_LAB.T
