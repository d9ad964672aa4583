"""Augments a student's input at random: speed, reverberation, gain, noise, masks, mirrored faces.

Each clip has its own random generator, used in a fixed order, so that the result does not depend
on the other clips of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.config.student import AugmentSpec
from liser_dist.students.features import HOP_S

_Floats = NDArray[np.float32]


def augment_waveform(
    waveform: _Floats, augment: AugmentSpec, rate_hz: int, samples: int, draw: np.random.Generator
) -> _Floats:
    """Return the waveform after the changes that are switched on, at most `samples` long."""
    if augment.speed:
        waveform = change_speed(waveform, 1 + draw.uniform(-1, 1) * augment.speed)
        waveform = waveform[:samples]
    if augment.reverberation_s:
        waveform = reverberate(waveform, draw.uniform() * augment.reverberation_s, rate_hz, draw)
    gain_db = draw.uniform(-1, 1) * augment.gain_db
    waveform = waveform * np.float32(10 ** (gain_db / 20))
    if augment.noise_db:
        ratio_db = augment.noise_db + draw.uniform(0, 20)
        level = float(np.sqrt(np.mean(waveform**2))) * 10 ** (-ratio_db / 20)
        waveform = waveform + draw.standard_normal(len(waveform), np.float32) * level
    return waveform.astype(np.float32, copy=False)


def change_speed(waveform: _Floats, speed: float) -> _Floats:
    """Play a waveform faster, at a higher pitch: [samples] -> [samples / speed]."""
    at = np.arange(int(len(waveform) / speed)) * speed
    return np.interp(at, np.arange(len(waveform)), waveform).astype(np.float32)


def reverberate(
    waveform: _Floats, decay_s: float, rate_hz: int, draw: np.random.Generator
) -> _Floats:
    """Add the reverberation of a room; level and length stay the same.

    The room's response is noise that decays by 60 dB in `decay_s` (Polack's model of the late
    response, 1988) and has half of the energy.
    """
    from scipy.signal import fftconvolve  # slow to import, and rarely needed

    tail = draw.standard_normal(max(1, round(decay_s * rate_hz)))
    tail *= 10 ** (-3 * np.arange(len(tail)) / len(tail))
    response = np.concatenate([[1.0], tail / np.linalg.norm(tail)])
    wet = fftconvolve(waveform, response)[: len(waveform)]
    level = np.sqrt(np.mean(waveform**2) / max(1e-12, np.mean(wet**2)))
    return (wet * level).astype(np.float32)


def mask_mel(
    mel: Tensor, frames: Tensor, augment: AugmentSpec, draws: Sequence[np.random.Generator]
) -> None:
    """Set two bands and two time spans of each clip to its mean, in place.

    SpecAugment (Park et al., 2019). `mel` [batch, frames, mels]; `frames` [batch] that hold audio.
    """
    bands = round(augment.frequency_mask * mel.shape[2])
    span = round(augment.time_mask_s / HOP_S)
    if not bands and not span:
        return
    for row, draw in enumerate(draws):
        length = int(frames[row])
        mean = float(mel[row, :length].mean())
        for _ in range(2):
            width, start = draw.integers(0, bands + 1), draw.uniform()
            first = int(start * (mel.shape[2] - width))
            mel[row, :, first : first + width] = mean
            width, start = draw.integers(0, min(span, length // 2) + 1), draw.uniform()
            first = int(start * (length - width))
            mel[row, first : first + width] = mean


def augment_faces(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    """Mirror a clip's face crops at random and change their brightness: [n, px, px] in 0..1."""
    pixels = pixels.flip(2) if draw.uniform() < 0.5 else pixels
    return (pixels * draw.uniform(0.8, 1.2)).clamp(max=1)
