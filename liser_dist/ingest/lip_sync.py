"""Scores whether the face in a clip is the one that speaks: mouth movement against loudness.

Experimental, and off by default (`face.speaking`). The score is a hint, not proof: pauses and
stressed syllables tell a speaker from a listener or a dubbed voice, and a clip of a few seconds has
few of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from liser_dist.data.faces import Box, centre_of, side_of

GreyFace = NDArray[np.float32]  # [_FACE_PX, _FACE_PX]

_FACE_PX = 64
_MOUTH = slice(42, 62), slice(14, 50)  # rows and columns of a face
_CURVE_HZ = 25.0  # rate at which movement and loudness are compared
_SMOOTH_S = 0.08
_TREND_S = 1.0  # slower changes are removed: light, or a voice that is turned up
_MAX_SHIFT_S = 0.2  # lips move before the sound, and films are not quite in step


def cut_face(frame: NDArray[np.uint8], box: Box) -> GreyFace:
    """Cut a face out of a frame [height, width, 3], interpolated so that it moves smoothly."""
    scale = _FACE_PX / side_of(box)
    x, y = centre_of(box)
    onto = np.array([[scale, 0, _FACE_PX / 2 - x * scale], [0, scale, _FACE_PX / 2 - y * scale]])
    face = cv2.warpAffine(frame, onto, (_FACE_PX, _FACE_PX), borderMode=cv2.BORDER_REPLICATE)
    return cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)


def lip_sync_score(
    faces: Sequence[GreyFace], times_s: Sequence[float], sound: NDArray[np.int16], rate_hz: int
) -> float:
    """Return the correlation of mouth movement and loudness, at the best of some time shifts.

    Args:
        faces: the face in each frame.
        times_s: time of each frame, counted from where the sound begins.
        sound: [samples].
        rate_hz: sample rate of the sound.

    Returns:
        -1 to 1; 0 if the mouth or the loudness never changes.
    """
    curve_s = np.arange(0.0, len(sound) / rate_hz, 1 / _CURVE_HZ)
    if len(faces) < 2:
        return 0.0
    movement = _without_trend(np.interp(curve_s, times_s[1:], _mouth_movement(faces)))
    loudness = _without_trend(_loudness(sound, round(rate_hz / _CURVE_HZ), len(curve_s)))
    shifts = round(_MAX_SHIFT_S * _CURVE_HZ)
    return max(_correlation(movement, loudness, shift) for shift in range(-shifts, shifts + 1))


def _mouth_movement(faces: Sequence[GreyFace]) -> list[float]:
    """Return how much the mouth changes between faces, after undoing the head's movement."""
    movement = []
    for last, face in itertools.pairwise(faces):
        (x, y), _ = cv2.phaseCorrelate(last, face)
        back = cv2.warpAffine(face, np.array([[1, 0, -x], [0, 1, -y]]), face.shape)
        movement.append(float(np.abs(back - last)[_MOUTH].mean()))
    return movement


def _loudness(sound: NDArray[np.int16], hop: int, count: int) -> NDArray[np.float64]:
    padded = np.zeros(hop * count)
    padded[: len(sound)] = sound[: len(padded)]
    level = np.sqrt((padded.reshape(count, hop) ** 2).mean(axis=1))
    return np.asarray(np.log(level + 100.0))


def _without_trend(values: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth = gaussian_filter1d(values, _SMOOTH_S * _CURVE_HZ)
    return np.asarray(smooth - gaussian_filter1d(smooth, _TREND_S * _CURVE_HZ))


def _correlation(movement: NDArray[np.float64], loudness: NDArray[np.float64], shift: int) -> float:
    moved = movement[max(0, shift) : len(movement) + min(0, shift)]
    loud = loudness[max(0, -shift) : len(loudness) + min(0, -shift)]
    if len(moved) < 2 or min(moved.std(), loud.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(moved, loud)[0, 1])
