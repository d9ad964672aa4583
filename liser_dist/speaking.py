"""Is it this face that speaks? Whether its mouth moves when the sound is loud.

A hint and no proof: it tells a speaker from a listener, or from a voice that was dubbed, by pauses
and stresses, of which a clip of some seconds has a few.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from liser_dist.faces import Box, centre_of, side_of

Face = NDArray[np.float32]  # [FACE_PX, FACE_PX] grey

FACE_PX = 64
MOUTH = slice(42, 62), slice(14, 50)  # rows and columns of a face
RATE_HZ = 25.0  # at which movement and loudness are compared
SMOOTH_S = 0.08
PHRASE_S = 1.0  # what changes more slowly says nothing: light, or a voice that is turned up
APART_S = 0.2  # lips begin before the sound, and films are not quite in step


def cut_face(frame: NDArray[np.uint8], box: Box) -> Face:
    """A face of a frame [height, width, 3], between its pixels: it does not jump by whole ones."""
    scale = FACE_PX / side_of(box)
    x, y = centre_of(box)
    onto = np.array([[scale, 0, FACE_PX / 2 - x * scale], [0, scale, FACE_PX / 2 - y * scale]])
    face = cv2.warpAffine(frame, onto, (FACE_PX, FACE_PX), borderMode=cv2.BORDER_REPLICATE)
    return cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)


def agreement(
    faces: Sequence[Face], times_s: Sequence[float], sound: NDArray[np.int16], rate_hz: int
) -> float:
    """Correlation of the mouth's movement with the loudness, at the best of some shifts.

    -1..1; 0 where one of both never changes. `times_s`: of each face, since the sound begins.
    """
    every_s = np.arange(0.0, len(sound) / rate_hz, 1 / RATE_HZ)
    if len(faces) < 2:
        return 0.0
    moved = _phrased(np.interp(every_s, times_s[1:], _movement(faces)))
    loud = _phrased(_loudness(sound, round(rate_hz / RATE_HZ), len(every_s)))
    apart = round(APART_S * RATE_HZ)
    return max(_correlation(moved, loud, shift) for shift in range(-apart, apart + 1))


def _movement(faces: Sequence[Face]) -> list[float]:
    """Of the mouth, where the head's own movement is undone."""
    moved = []
    for last, face in itertools.pairwise(faces):
        (x, y), _ = cv2.phaseCorrelate(last, face)
        back = cv2.warpAffine(face, np.array([[1, 0, -x], [0, 1, -y]]), face.shape)
        moved.append(float(np.abs(back - last)[MOUTH].mean()))
    return moved


def _loudness(sound: NDArray[np.int16], hop: int, count: int) -> NDArray[np.float64]:
    padded = np.zeros(hop * count)
    padded[: len(sound)] = sound[: len(padded)]
    level = np.sqrt((padded.reshape(count, hop) ** 2).mean(axis=1))
    return np.asarray(np.log(level + 100.0))


def _phrased(values: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth = gaussian_filter1d(values, SMOOTH_S * RATE_HZ)
    return np.asarray(smooth - gaussian_filter1d(smooth, PHRASE_S * RATE_HZ))


def _correlation(moved: NDArray[np.float64], loud: NDArray[np.float64], shift: int) -> float:
    one = moved[max(0, shift) : len(moved) + min(0, shift)]
    two = loud[max(0, -shift) : len(loud) + min(0, -shift)]
    if len(one) < 2 or min(one.std(), two.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
