"""Clips that sound alike: a fingerprint that another codec, loudness or edge hardly changes.

As pHash does for pictures (Zauner, 2010): the low frequencies of a picture, here of a spectrogram,
each above or below their median. Of a talking head the sound tells clips apart, not the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import zoom
from scipy.signal import stft

from liser_dist.records import to_floats

Likeness = NDArray[np.uint64]  # [2], 128 bits

BANDS = 32  # evenly over the pitches of speech
LOWEST_HZ, HIGHEST_HZ = 100.0, 4000.0
TIMES = 128
KEPT = (8, 16)  # low frequencies over bands and over time
WINDOW = 512
# Of 128 bits: clips of different words differ in 64, with a spread of 6.
ALIKE_BITS = 24


def likeness_of(sound: NDArray[np.int16], rate_hz: int) -> Likeness:
    """The fingerprint of a clip's sound [samples]."""
    hz, _, spectrum = stft(to_floats(sound), rate_hz, nperseg=WINDOW)
    bands = np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS)
    power = np.abs(spectrum) ** 2
    loud = np.stack([np.interp(bands, hz, column) for column in power.T], axis=1)
    picture = zoom(np.log(loud + 1e-6), (1, TIMES / loud.shape[1]), order=1)
    low = dctn(picture)[: KEPT[0], : KEPT[1]].ravel()
    bits = low > np.median(low)
    return np.packbits(bits).view(np.uint64)


def differing_bits(one: NDArray[np.uint64], other: Likeness) -> NDArray[np.int64]:
    """Of each of [n, 2] fingerprints, in how many of 128 bits it differs."""
    return np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64)
