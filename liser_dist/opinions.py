"""What both teachers said of the same clips: how often what, and where they differed most.

It goes over the clips that are in the weights, and lies in the checkpoint beside their ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from liser_dist.records import Example, Provenance

KEPT = 24
MEANT = 0.5  # of a teacher, on emotions that both know: it means one of them
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A clip on which the teachers differ.

    Attributes:
        start_share: where its window lay, 0 at the clip's start to 1 at its end.
        differ: 0, they are of one mind, to 1: see `divergence`.
        speech, face: [emotions] what each gave to the job's emotions; 1 together at most.
    """

    key: str
    shard: str
    index: int
    epoch: int
    start_share: float
    differ: float
    speech: list[float]
    face: list[float]


def said_of(rows: Sequence[Example], known: Sequence[Sequence[bool]]) -> Floats:
    """[rows, 2, emotions] what each teacher gave to each emotion, 0 to 1; NaN where either is
    silent. `known` [2, emotions].
    """
    logits = np.full((len(rows), *np.shape(known)), np.nan, np.float32)
    for row, example in enumerate(rows):
        if example.speech_logits.size and example.face_logits.size:
            logits[row] = example.speech_logits, example.face_logits
    said: Floats = np.exp(logits) * np.asarray(known)  # logarithms of shares: see teachers.fold
    return said


def divergence(said: Floats) -> Floats:
    """[rows, 2, emotions] -> [rows] Jensen-Shannon divergence in bits, 0 to 1.

    Times what is left of both, where emotions were taken out: who means something else has no
    opinion to differ with.
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
        both: [emotions] those that both teachers know, on which they are compared.
        counts: [emotions, emotions] passes of clips: what the speech teacher held likeliest, and
            the face teacher, where either means some such emotion rather than another.
        disputes: distinct clips, the greatest difference first.
    """

    def __init__(self, both: Sequence[bool]) -> None:
        self.both = np.asarray(both)
        self.counts: NDArray[np.int64] = np.zeros((self.both.size, self.both.size), np.int64)
        self.disputes: list[Dispute] = []

    def enter(
        self,
        rows: Sequence[Provenance],
        said: Floats,
        start_share: Callable[[Provenance], float],
    ) -> None:
        """Clips of a step, what was `said_of` them, and where the window of one lies."""
        spoke = np.flatnonzero(np.isfinite(said).all(axis=(1, 2)))
        compared = said[spoke] * self.both
        meant = compared[(compared.sum(axis=2) >= MEANT).all(axis=1)].argmax(axis=2)
        np.add.at(self.counts, (meant[:, 0], meant[:, 1]), 1)
        differ = divergence(compared)
        least = self.disputes[-1].differ if len(self.disputes) == KEPT else 0.0
        new = [
            Dispute(
                **{name: getattr(rows[row], name) for name in ("key", "shard", "index", "epoch")},
                start_share=start_share(rows[row]),
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
            "both": self.both.tolist(),
            "counts": self.counts.tolist(),
            "disputes": [asdict(one) for one in self.disputes],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        found = cls(content["both"])
        found.counts = np.array(content["counts"], np.int64)
        found.disputes = [Dispute(**one) for one in content["disputes"]]
        return found
