"""Which clips of which epoch are in the weights, and which were rejected.

Two bitmaps a shard and epoch, saved in the checkpoint of the weights and committed with them.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any, Self, TypeVar

from pyroaring import BitMap

from liser_dist.records import Provenance

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line of `rejected.parquet`."""

    key: str
    shard: str
    index: int
    reason: str
    detail: str


class Ledger:
    """The clips that a run is done with.

    Attributes:
        passes: clips trained or rejected, counted once an epoch.
        trained: distinct clips in the weights.
        total: distinct clips of the run so far.
    """

    def __init__(self) -> None:
        self.passes = self.trained = self.total = 0
        self._trained: dict[tuple[int, str], BitMap] = {}
        self._rejected: dict[tuple[int, str], BitMap] = {}
        self._rejections: dict[tuple[str, int], Rejection] = {}
        # Of all epochs: by shard, what was trained, and what was trained or rejected.
        self._ever_trained: dict[str, BitMap] = {}
        self._ever_seen: dict[str, BitMap] = {}

    def enter(self, rows: Iterable[Provenance]) -> None:
        """Enter the clips of a step, after that step."""
        for row in rows:
            self._mark(row.epoch, row.shard, BitMap([row.index]), row.rejected)
            if row.rejected:
                why = Rejection(row.key, row.shard, row.index, str(row.reason), row.detail)
                self._rejections.setdefault((row.shard, row.index), why)

    def _mark(self, epoch: int, shard: str, clips: BitMap, rejected: bool) -> None:
        book = self._rejected if rejected else self._trained
        self.passes += _add(book, (epoch, shard), clips)
        self.total += _add(self._ever_seen, shard, clips)
        if not rejected:
            self.trained += _add(self._ever_trained, shard, clips)

    @property
    def rejected(self) -> int:
        """Distinct clips that no epoch trained."""
        return self.total - self.trained

    def finished(self, epoch: int, shard: str) -> BitMap:
        """The clips of a shard that this epoch need not see again."""
        empty = BitMap()
        visit = (epoch, shard)
        return self._trained.get(visit, empty) | self._rejected.get(visit, empty)

    def rejections(self) -> list[Rejection]:
        """Why each clip was rejected that no epoch trained, in the order of shards."""
        return [
            why
            for (shard, index), why in sorted(self._rejections.items())
            if index not in self._ever_trained.get(shard, ())
        ]

    def reasons(self) -> Counter[str]:
        return Counter(why.reason for why in self.rejections())

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint: bitmaps in roaring's own form, base64."""
        return {
            name: [
                {"epoch": epoch, "shard": shard, "clips": _packed(marks)}
                for (epoch, shard), marks in sorted(book.items())
            ]
            for name, book in (("trained", self._trained), ("rejected", self._rejected))
        } | {"rejections": [astuple(why) for why in self.rejections()]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        ledger = cls()
        for name in ("trained", "rejected"):
            for entry in content[name]:
                clips = BitMap.deserialize(base64.b64decode(entry["clips"]))
                ledger._mark(entry["epoch"], entry["shard"], clips, name == "rejected")
        for entry in content["rejections"]:
            why = Rejection(*entry)
            ledger._rejections[why.shard, why.index] = why
        return ledger


def _packed(marks: BitMap) -> str:
    return base64.b64encode(marks.serialize()).decode()


def _add(book: dict[K, BitMap], key: K, clips: BitMap) -> int:
    """Add clips to a bitmap of the book; returns how many were new."""
    marks = book.setdefault(key, BitMap())
    before = len(marks)
    marks |= clips
    return len(marks) - before
