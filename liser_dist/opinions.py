"""What both teachers said of the same clips: how often what, and where they differed most.

It goes over the clips that are in the weights, and lies in the checkpoint beside their ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from liser_dist.records import Example, Provenance

KEPT = 24
Floats = NDArray[np.float32]
TEACHERS = ("speech", "face")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A clip on which the teachers differ."""

    key: str
    shard: str
    index: int
    epoch: int  # from which its window follows
    differ: float  # 0, they are of one mind, to 1: see `divergence`
    speech: list[float]  # [emotions] probabilities, of the emotions that both know
    face: list[float]


def said_of(rows: Sequence[Example], known: Sequence[Sequence[bool]]) -> Floats:
    """[rows, 2, emotions] what each teacher said of clips: probabilities of what both know.

    They add up to the share that the teacher gave to emotions of the job; NaN where one of the two
    said nothing. `known` [2, emotions].
    """
    both = np.asarray(known).all(axis=0)
    logits = np.full((len(rows), len(TEACHERS), both.size), np.nan, np.float32)
    kept = np.zeros((len(rows), len(TEACHERS), 1), np.float32)
    if not both.any():
        return logits
    for row, example in enumerate(rows):
        if example.speech_logits.size and example.face_logits.size:
            logits[row] = example.speech_logits, example.face_logits
            kept[row, :, 0] = example.speech_kept, example.face_kept
    powers = np.exp(logits - logits[:, :, both].max(axis=2, keepdims=True)) * both
    said: Floats = powers / powers.sum(axis=2, keepdims=True) * kept
    return said


def divergence(said: Floats) -> Floats:
    """[rows, 2, emotions] -> [rows] Jensen-Shannon divergence in bits, 0 to 1.

    Times the shares that are left of both, for a teacher that names none of the job's emotions has
    no opinion to differ with.
    """
    sums = said.sum(axis=2)
    shares = said / np.maximum(sums, 1e-9)[:, :, None]
    middle = shares.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log2(shares / middle), 0)
    found: Floats = terms.sum(axis=2).mean(axis=1) * sums.prod(axis=1)
    return found


class Opinions:
    """Of one run.

    Attributes:
        counts: [emotions, emotions] passes of clips: what the speech teacher held likeliest, and
            the face teacher.
        disputes: distinct clips, the greatest difference first.
    """

    def __init__(self, emotions: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((emotions, emotions), np.int64)
        self.disputes: list[Dispute] = []

    def enter(self, rows: Sequence[Provenance], said: Floats) -> None:
        """Clips of a step, and what was `said_of` them."""
        spoke = np.flatnonzero(np.isfinite(said).all(axis=(1, 2)))
        likeliest = said[spoke].argmax(axis=2)
        np.add.at(self.counts, (likeliest[:, 0], likeliest[:, 1]), 1)
        differ = divergence(said[spoke])
        least = self.disputes[-1].differ if len(self.disputes) == KEPT else 0.0
        new = [
            Dispute(
                **{name: getattr(rows[row], name) for name in ("key", "shard", "index", "epoch")},
                differ=round(float(how_far), 4),
                speech=said[row, 0].astype(float).round(4).tolist(),
                face=said[row, 1].astype(float).round(4).tolist(),
            )
            for row, how_far in zip(spoke.tolist(), differ, strict=True)
            if how_far > least
        ]
        if new:
            self._keep(new)

    def _keep(self, new: Sequence[Dispute]) -> None:
        """Of a clip that was heard in several epochs, the one in which they differ most."""
        ranked = sorted(
            [*self.disputes, *new], key=lambda one: (-one.differ, one.shard, one.index, one.epoch)
        )
        first = {(one.shard, one.index): one for one in reversed(ranked)}
        self.disputes = [one for one in ranked if first[one.shard, one.index] is one][:KEPT]

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "disputes": [asdict(one) for one in self.disputes],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        found = cls(len(content["counts"]))
        found.counts = np.array(content["counts"], np.int64)
        found.disputes = [Dispute(**one) for one in content["disputes"]]
        return found
