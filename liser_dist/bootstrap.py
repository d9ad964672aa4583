"""How sure is a score? Speakers drawn again and again, with replacement.

Clips of one speaker are alike, so that speakers are drawn and not clips; the same draws for all
that is compared, so that a hard speaker is hard for everybody (a paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class SpeakerCounts:
    """Answers of each speaker and emotion."""

    right: Floats  # [speakers, emotions]
    total: Floats  # [speakers, emotions]


def count_answers(
    labels: NDArray[np.int64],
    found: NDArray[np.int64],
    speakers: Sequence[str],
    names: Sequence[str],
    emotions: int,
) -> SpeakerCounts:
    """Of labels and answers [clips]; `names` are the rows, those of all that is compared."""
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in speakers], np.int64)
    right, total = np.zeros((2, len(names), emotions))
    np.add.at(total, (rows, labels), 1)
    np.add.at(right, (rows, labels), labels == found)
    return SpeakerCounts(right, total)


def draw_speakers(speakers: int, resamples: int, seed: int = 0) -> Floats:
    """[resamples, speakers] how often each is in each draw of as many."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(speakers, np.full(speakers, 1 / speakers), resamples).astype(float)


def resampled_uar(counts: SpeakerCounts, draws: Floats) -> Floats:
    """[resamples] UAR of each draw, over the emotions that it has."""
    right, total = draws @ counts.right, draws @ counts.total
    return np.asarray(np.nanmean(np.where(total > 0, right / np.maximum(total, 1), np.nan), axis=1))


def interval_of(values: Floats) -> tuple[float, float]:
    """In which 95 % of them lie."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
