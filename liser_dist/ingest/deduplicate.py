"""Finds clips that the output folder already holds, by their digest or by what they sound like.

All ingest workers ask one `ClipRegistry` before they write clips. `audio_fingerprint` gives similar
fingerprints to copies of one recording that differ in codec or loudness, or slightly in where they
begin and end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import zoom
from scipy.signal import stft

from liser_dist.records import to_floats

AudioFingerprint = NDArray[np.uint64]  # [2], 128 bits
ClipIdentity = tuple[str, str]  # digest, and audio fingerprint in hexadecimal

# Fingerprints of clips with different words differ in 64 of the 128 bits, with a spread of 6.
_ALIKE_BITS = 24
_BANDS = 32  # spaced evenly in pitch over the range of speech
_LOWEST_HZ, _HIGHEST_HZ = 100.0, 4000.0
_TIME_STEPS = 128
_KEPT_COEFFICIENTS = (8, 16)  # the lowest frequencies over bands and over time
_STFT_SAMPLES = 512


class ClipRegistry:
    """The clips of all groups of an ingest job. Runs as one Ray actor for each job.

    Args:
        method: "exact" compares digests, "perceptual" also audio fingerprints; None compares
            nothing.
    """

    def __init__(self, method: Literal["exact", "perceptual"] | None) -> None:
        self._perceptual = method == "perceptual"
        self._groups: dict[str, str] = {}  # group by digest
        self._fingerprints = _parse("")

    def learn(self, known: Iterable[tuple[str, ClipIdentity]]) -> None:
        """Register clips that were committed, as (group, identity)."""
        known = list(known)
        self._groups = {digest: group for group, (digest, _) in known}
        self._fingerprints = _parse("".join(fingerprint for _, (_, fingerprint) in known))

    def claim(self, group: str, clips: Sequence[ClipIdentity]) -> list[bool]:
        """Return for each clip whether it is new, and register it for the group.

        A group that asks again, because its worker was restarted, gets the same answers.
        """
        seen: set[str] = set()
        is_new = []
        for digest, fingerprint in clips:
            if digest not in self._groups and not self._has_alike(fingerprint):
                self._groups[digest] = group
                if self._perceptual:
                    self._fingerprints = np.concatenate([self._fingerprints, _parse(fingerprint)])
            is_new.append(self._groups.get(digest) == group and digest not in seen)
            seen.add(digest)
        return is_new

    def _has_alike(self, fingerprint: str) -> bool:
        if not self._perceptual:
            return False
        (parsed,) = _parse(fingerprint)
        return bool((_differing_bits(self._fingerprints, parsed) <= _ALIKE_BITS).any())


def _parse(fingerprints: str) -> NDArray[np.uint64]:
    """Return [n, 2] of n concatenated hexadecimal fingerprints."""
    return np.frombuffer(bytes.fromhex(fingerprints), np.uint64).reshape(-1, 2)


def _differing_bits(fingerprints: NDArray[np.uint64], other: AudioFingerprint) -> NDArray[np.int64]:
    """Return for each of [n, 2] fingerprints in how many of 128 bits it differs from another."""
    return np.bitwise_count(fingerprints ^ other).sum(axis=1, dtype=np.int64)


def audio_fingerprint(sound: NDArray[np.int16], rate_hz: int) -> AudioFingerprint:
    """Return the fingerprint of a clip's sound [samples].

    The signs, around their median, of the lowest DCT coefficients of the log spectrogram.
    """
    hz, _, spectrum = stft(to_floats(sound), rate_hz, nperseg=_STFT_SAMPLES)
    bands = np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, _BANDS)
    power = np.abs(spectrum) ** 2
    band_power = np.stack([np.interp(bands, hz, column) for column in power.T], axis=1)
    spectrogram = zoom(np.log(band_power + 1e-6), (1, _TIME_STEPS / band_power.shape[1]), order=1)
    low = dctn(spectrogram)[: _KEPT_COEFFICIENTS[0], : _KEPT_COEFFICIENTS[1]].ravel()
    bits = low > np.median(low)
    return np.packbits(bits).view(np.uint64)
