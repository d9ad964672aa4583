"""Which clips of which epoch are in the weights, and which were rejected.

Two bitmaps a shard and epoch, saved in the checkpoint of the weights and committed with them. A
shard's length is known once its last clip was seen; then an epoch can be told to be complete. What
is said of a rejected clip does not stay in memory: it is handed out to be written.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pyroaring import BitMap

from liser_dist.records import Provenance, Reason

K = TypeVar("K")
Visit = tuple[int, str]  # epoch, shard


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
        rejected_in_a_row: clips since one was last trained, in the order in which they entered.
        unwritten: why clips were rejected, of those that nobody has taken yet.
        examples: what was said of one clip, by reason.
    """

    def __init__(self) -> None:
        self.passes = self.trained = self.total = self.rejected_in_a_row = 0
        self._trained: dict[Visit, BitMap] = {}
        self._rejected: dict[Visit, BitMap] = {}
        self._lengths: dict[str, int] = {}
        self._reasons: dict[tuple[str, str], BitMap] = {}  # by shard and reason, of all epochs
        self.unwritten: list[Rejection] = []
        self.examples: dict[str, str] = {}
        # Of all epochs: by shard, what was trained, and what was trained or rejected.
        self._ever_trained: dict[str, BitMap] = {}
        self._ever_seen: dict[str, BitMap] = {}

    def new(self, rows: Iterable[Provenance]) -> list[bool]:
        """For each row whether the ledger has yet to see it: not the second of two alike."""
        seen: set[tuple[int, str, int]] = set()
        found = []
        for row in rows:
            clip = (row.epoch, row.shard, row.index)
            found.append(clip not in seen and not self._has(row))
            seen.add(clip)
        return found

    def _has(self, row: Provenance) -> bool:
        visit = (row.epoch, row.shard)
        return any(row.index in book.get(visit, ()) for book in (self._trained, self._rejected))

    def enter(self, rows: Iterable[Provenance]) -> None:
        """Enter the clips of a step, after that step."""
        for row in rows:
            self._mark(row.epoch, row.shard, BitMap([row.index]), row.rejected)
            self.rejected_in_a_row = self.rejected_in_a_row + 1 if row.rejected else 0
            if row.rejected:
                self._keep_reason(row)
            if row.ends_shard:
                self._lengths[row.shard] = row.index + 1

    def _keep_reason(self, row: Provenance) -> None:
        known = any(row.index in self._reasons.get((row.shard, why), ()) for why in Reason)
        if not known:
            _add(self._reasons, (row.shard, row.reason), BitMap([row.index]))
            self.examples.setdefault(str(row.reason), f"{row.key}: {row.detail}")
            self.unwritten.append(
                Rejection(row.key, row.shard, row.index, str(row.reason), row.detail)
            )

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

    def complete(self, epoch: int, shard: str) -> bool:
        """Whether the epoch has seen every clip of the shard."""
        length = self._lengths.get(shard)
        return length is not None and len(self.finished(epoch, shard)) >= length

    def ever_trained(self, shard: str, index: int) -> bool:
        return index in self._ever_trained.get(shard, ())

    def take_rejections(self) -> list[Rejection]:
        """Of the clips rejected since this was last asked, why; each clip is told once a run."""
        taken, self.unwritten = self.unwritten, []
        return taken

    def reasons(self) -> Counter[str]:
        """How many distinct clips no epoch trained, by reason."""
        found: Counter[str] = Counter()
        for (shard, reason), clips in self._reasons.items():
            found[reason] += len(clips - self._ever_trained.get(shard, BitMap()))
        return +found

    def verdicts(self) -> Sequence[tuple[str, str, BitMap]]:
        """Shard, reason, and the clips that were rejected for it."""
        return [(shard, reason, clips) for (shard, reason), clips in self._reasons.items()]

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint: bitmaps in roaring's own form, base64."""
        books = {"trained": self._trained, "rejected": self._rejected}
        return {
            name: [
                {"epoch": epoch, "shard": shard, "clips": _packed(marks)}
                for (epoch, shard), marks in sorted(book.items())
            ]
            for name, book in books.items()
        } | {
            "reasons": [
                {"shard": shard, "reason": reason, "clips": _packed(marks)}
                for (shard, reason), marks in sorted(self._reasons.items())
            ],
            "lengths": self._lengths,
            "examples": self.examples,
            "rejected_in_a_row": self.rejected_in_a_row,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        ledger = cls()
        for name in ("trained", "rejected"):
            for entry in content[name]:
                clips = _unpacked(entry["clips"])
                ledger._mark(entry["epoch"], entry["shard"], clips, name == "rejected")
        for entry in content["reasons"]:
            ledger._reasons[entry["shard"], entry["reason"]] = _unpacked(entry["clips"])
        ledger._lengths = dict(content["lengths"])
        ledger.examples = dict(content["examples"])
        ledger.rejected_in_a_row = content["rejected_in_a_row"]
        return ledger


def _packed(marks: BitMap) -> str:
    return base64.b64encode(marks.serialize()).decode()


def _unpacked(text: str) -> BitMap:
    return BitMap.deserialize(base64.b64decode(text))


def _add(book: dict[K, BitMap], key: K, clips: BitMap) -> int:
    """Add clips to a bitmap of the book; returns how many were new."""
    marks = book.setdefault(key, BitMap())
    before = len(marks)
    marks |= clips
    return len(marks) - before
