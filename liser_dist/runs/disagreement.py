"""Counts what the teachers predict, and records the clips on which they disagree most.

The record covers the clips that the weights have learned from, and is saved in the checkpoint
beside the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from liser_dist.records import TEACHERS, Example, Provenance

MAX_CLIPS = 24  # clips with the largest disagreement that are recorded
MIN_MASS = 0.5  # probability on shared emotions with which a teacher counts as choosing one
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A clip on which the teachers disagree.

    Attributes:
        start_share: Where its window starts, from 0 (the clip's start) to 1.
        differ: How much they disagree, 0 to 1: see `jensen_shannon`.
        speech: [emotions] probabilities of the speech teacher; their sum is at most 1.
        face: [emotions] probabilities of the face teacher, likewise.
    """

    key: str
    shard: str
    index: int
    epoch: int
    start_share: float
    differ: float
    speech: list[float]
    face: list[float]


def teacher_probabilities(rows: Sequence[Example], known: Sequence[Sequence[bool]]) -> _Floats:
    """Return [rows, teachers, emotions] the probability that each teacher gives each emotion.

    They are NaN for a clip without targets of the teacher.

    Args:
        rows: Clips with targets.
        known: [teachers, emotions] the emotions that each teacher knows.
    """
    logits = np.full((len(rows), *np.shape(known)), np.nan, np.float32)
    for row, example in enumerate(rows):
        for teacher, name in enumerate(TEACHERS):
            if (given := example.targets_from(name).logits).size:
                logits[row, teacher] = given
    # The logits are logarithms of probabilities: see `teachers.fold`.
    probabilities: _Floats = np.exp(logits) * np.asarray(known)
    return probabilities


def jensen_shannon(probabilities: _Floats) -> _Floats:
    """Return [rows] the Jensen-Shannon divergence of the teachers in bits, 0 to 1.

    It is multiplied by the sums of both, which are below 1 where emotions were taken out: a teacher
    that gives another emotion has no opinion to disagree with. The loss has a divergence of its
    own, on tensors and over distributions that are normalised first: `losses.agreement`.

    Args:
        probabilities: [rows, teachers, emotions].
    """
    sums = probabilities.sum(axis=2)
    shares = probabilities / np.maximum(sums, 1e-9)[:, :, None]
    middle = shares.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log2(shares / middle), 0)
    divergence: _Floats = terms.sum(axis=2).mean(axis=1) * sums.prod(axis=1)
    return divergence


class DisagreementRecord:
    """How often, and on which clips, the teachers of a run disagree.

    Attributes:
        shared: [emotions] bool, the emotions that all teachers know; they are compared on these.
        counts: [emotions, emotions] passes of clips: rows are the likeliest emotion of the speech
            teacher, columns that of the face teacher. Clips count if both give `MIN_MASS` to the
            shared emotions.
        predicted: [teachers, emotions] passes of clips for which the teacher gave targets, by its
            likeliest emotion among those of the job that it knows.
        largest: The clips with the largest disagreement, in that order, each once.
    """

    def __init__(self, shared: Sequence[bool]) -> None:
        """Create an empty record; `shared` [emotions]: all teachers know the emotion."""
        self.shared = np.asarray(shared)
        self.counts: NDArray[np.int64] = np.zeros((self.shared.size, self.shared.size), np.int64)
        self.predicted: NDArray[np.int64] = np.zeros((len(TEACHERS), self.shared.size), np.int64)
        self.largest: list[Disagreement] = []

    def enter(
        self,
        rows: Sequence[Provenance],
        probabilities: _Floats,
        start_share: Callable[[Provenance], float],
    ) -> None:
        """Enter the clips of a training step.

        Args:
            rows: The clips.
            probabilities: [rows, teachers, emotions], as `teacher_probabilities` returns them.
            start_share: Returns where the window of a clip starts.
        """
        self._count_predicted(probabilities)
        given = np.flatnonzero(np.isfinite(probabilities).all(axis=(1, 2)))
        compared = probabilities[given] * self.shared
        likeliest = compared[(compared.sum(axis=2) >= MIN_MASS).all(axis=1)].argmax(axis=2)
        np.add.at(self.counts, (likeliest[:, 0], likeliest[:, 1]), 1)
        least = self.largest[-1].differ if len(self.largest) == MAX_CLIPS else 0.0
        new = [
            Disagreement(
                key=rows[row].key,
                shard=rows[row].shard,
                index=rows[row].index,
                epoch=rows[row].epoch,
                start_share=start_share(rows[row]),
                differ=round(float(differ), 4),
                speech=probabilities[row, 0].astype(float).round(4).tolist(),
                face=probabilities[row, 1].astype(float).round(4).tolist(),
            )
            for row, differ in zip(given.tolist(), jensen_shannon(compared), strict=True)
            if differ > least
        ]
        if new:
            self._keep_largest(new)

    def _count_predicted(self, probabilities: _Floats) -> None:
        for teacher in range(len(TEACHERS)):
            rows = probabilities[:, teacher]
            # A sum of 0: the teacher knows no emotion of the job.
            given = rows[np.isfinite(rows).all(axis=1) & (rows.sum(axis=1) > 0)]
            self.predicted[teacher] += np.bincount(given.argmax(axis=1), minlength=rows.shape[1])

    @property
    def compared(self) -> int:
        """Passes of clips for which both teachers predicted an emotion that both know."""
        return int(self.counts.sum())

    @property
    def differing(self) -> int:
        """Those of `compared` for which they predicted different emotions."""
        return self.compared - int(self.counts.trace())

    def shares(self, emotions: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the share of each emotion in what each teacher predicted, likeliest first.

        Args:
            emotions: Names of the emotions.

        Returns:
            By teacher; without teachers that predicted nothing, and without emotions that a teacher
            never predicted.
        """
        shares = {}
        for teacher, counts in zip(TEACHERS, self.predicted, strict=True):
            order = [n for n in np.argsort(-counts, kind="stable").tolist() if counts[n]]
            if order:
                shares[teacher] = {emotions[n]: float(counts[n] / counts.sum()) for n in order}
        return shares

    def _keep_largest(self, new: Sequence[Disagreement]) -> None:
        """Add clips; one that came in several epochs stays once, with its largest disagreement."""
        ranked = sorted(
            [*self.largest, *new],
            key=lambda clip: (-clip.differ, clip.shard, clip.index, clip.epoch),
        )
        first = {(clip.shard, clip.index): clip for clip in reversed(ranked)}
        self.largest = [clip for clip in ranked if first[clip.shard, clip.index] is clip]
        del self.largest[MAX_CLIPS:]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON, for a checkpoint."""
        return {
            "both": self.shared.tolist(),
            "counts": self.counts.tolist(),
            "predicted": self.predicted.tolist(),
            "disputes": [asdict(clip) for clip in self.largest],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that `to_json` wrote, of this or an earlier version."""
        record = cls(content["both"])
        record.counts = np.array(content["counts"], np.int64)
        if predicted := content.get("predicted"):  # an earlier version did not count these
            record.predicted = np.array(predicted, np.int64)
        record.largest = [Disagreement(**clip) for clip in content["disputes"]]
        return record
