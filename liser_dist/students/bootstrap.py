"""Computes confidence intervals of scores with a paired bootstrap over speakers.

Clips of one speaker are alike, so speakers are drawn, not clips. Models that are compared are
scored on the same draws, so that a difficult speaker is difficult for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95  # of the confidence intervals
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SpeakerCounts:
    """Number of clips of each speaker and emotion.

    Attributes:
        correct: Correctly predicted clips [speakers, emotions].
        total: All clips [speakers, emotions].
    """

    correct: _Floats
    total: _Floats


def count_by_speaker(
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    speakers: Sequence[str],
    names: Sequence[str],
    emotions: int,
) -> SpeakerCounts:
    """Count clips per speaker and emotion.

    Args:
        labels: Index of the true emotion of each clip [clips].
        predictions: Index of the predicted emotion of each clip [clips].
        speakers: Speaker of each clip.
        names: The speakers, one for each row of the result; the same for all compared models.
        emotions: Number of emotions.
    """
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in speakers], np.int64)
    correct, total = np.zeros((2, len(names), emotions))
    np.add.at(total, (rows, labels), 1)
    np.add.at(correct, (rows, labels), labels == predictions)
    return SpeakerCounts(correct, total)


def draw_speakers(speakers: int, resamples: int, seed: int = 0) -> _Floats:
    """Draw speakers with replacement.

    Returns:
        How often each speaker is drawn in each resample [resamples, speakers].
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(speakers, np.full(speakers, 1 / speakers), resamples).astype(float)


def resample_uar(counts: SpeakerCounts, draws: _Floats) -> _Floats:
    """Return the UAR of each resample [resamples], over the emotions that it contains."""
    correct, total = draws @ counts.correct, draws @ counts.total
    recall = np.where(total > 0, correct / np.maximum(total, 1), np.nan)
    return np.asarray(np.nanmean(recall, axis=1))


def uar_interval(
    labels: NDArray[np.int64],
    predictions: NDArray[np.int64],
    speakers: Sequence[str],
    emotions: int,
    resamples: int,
) -> tuple[float, float]:
    """Return the confidence interval of the UAR of one model.

    Args:
        labels: Index of the true emotion of each clip [clips].
        predictions: Index of the predicted emotion of each clip [clips].
        speakers: Speaker of each clip.
        emotions: Number of emotions.
        resamples: Number of bootstrap resamples.
    """
    names = sorted(set(speakers))
    counts = count_by_speaker(labels, predictions, speakers, names, emotions)
    return percentile_interval(resample_uar(counts, draw_speakers(len(names), resamples)))


def percentile_interval(values: _Floats) -> tuple[float, float]:
    """Return the interval that contains LEVEL of the resampled values."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
