"""Which clips of which epoch are in the weights, and which were rejected.

Two bitmaps a shard and epoch, saved in the checkpoint of the weights and committed with them.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any, Self

from pyroaring import BitMap

from liser_dist.records import Provenance


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line of `rejected.parquet`."""

    key: str
    shard: str
    index: int
    reason: str
    detail: str


class Ledger:
    """The clips that a run is done with."""

    def __init__(self) -> None:
        self._rejections: dict[tuple[str, int], Rejection] = {}
        self._trained: dict[tuple[int, str], BitMap] = {}
        self._rejected: dict[tuple[int, str], BitMap] = {}

    def enter(self, rows: Iterable[Provenance]) -> None:
        """Enter the clips of a step, after that step."""
        for row in rows:
            book = self._rejected if row.rejected else self._trained
            book.setdefault((row.epoch, row.shard), BitMap()).add(row.index)
            if row.rejected:
                why = Rejection(row.key, row.shard, row.index, str(row.reason), row.detail)
                self._rejections.setdefault((row.shard, row.index), why)

    def finished(self, epoch: int, shard: str) -> BitMap:
        """The clips of a shard that this epoch need not see again."""
        empty = BitMap()
        visit = (epoch, shard)
        return self._trained.get(visit, empty) | self._rejected.get(visit, empty)

    @property
    def passes(self) -> int:
        """Clips trained or rejected, counted once an epoch."""
        return sum(
            len(marks) for book in (self._trained, self._rejected) for marks in book.values()
        )

    @property
    def trained(self) -> int:
        """Distinct clips in the weights."""
        return _distinct(self._trained)

    @property
    def rejected(self) -> int:
        """Distinct clips rejected in every epoch that reached them."""
        return self.total - self.trained

    @property
    def total(self) -> int:
        """Distinct clips of the run so far."""
        return _distinct(self._trained, self._rejected)

    def rejections(self) -> list[Rejection]:
        """Why each distinct clip was rejected, in the order of shards."""
        return [why for _, why in sorted(self._rejections.items())]

    def reasons(self) -> Counter[str]:
        return Counter(why.reason for why in self._rejections.values())

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
        for name, book in (("trained", ledger._trained), ("rejected", ledger._rejected)):
            for entry in content[name]:
                marks = BitMap.deserialize(base64.b64decode(entry["clips"]))
                book[entry["epoch"], entry["shard"]] = marks
        for entry in content["rejections"]:
            why = Rejection(*entry)
            ledger._rejections[why.shard, why.index] = why
        return ledger


def _packed(marks: BitMap) -> str:
    return base64.b64encode(marks.serialize()).decode()


def _distinct(*books: dict[tuple[int, str], BitMap]) -> int:
    shards: dict[str, BitMap] = {}
    for book in books:
        for (_, shard), marks in book.items():
            shards[shard] = shards.get(shard, BitMap()) | marks
    return sum(len(marks) for marks in shards.values())
