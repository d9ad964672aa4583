"""Records which clips of which epoch a run was trained on, and which were rejected.

Each shard and epoch has two bitmaps, of trained and of rejected clips, saved with the weights in
each checkpoint. Once a shard's last clip has been seen, its length is known and the ledger can say
whether an epoch is complete. Details of rejected clips do not stay in memory: they are handed
out to be written to disk.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from pyroaring import BitMap

from liser_dist.records import Provenance, Reason

_Key = TypeVar("_Key")
Visit = tuple[int, str]  # epoch, shard


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one clip was rejected: a row of `rejected.parquet`."""

    key: str
    shard: str
    index: int
    reason: str
    detail: str


class Ledger:
    """The clips that a run has trained or rejected.

    Attributes:
        passes: Clips trained or rejected, counted once per epoch.
        trained: Distinct clips in the weights.
        total: Distinct clips trained or rejected so far.
        rejected_in_a_row: Clips rejected since a clip was last trained, in order of entry.
        shards_in_a_row: Shards of these clips.
        lengths: Number of clips of each shard whose last clip has been seen.
        unwritten: Rejections that `take_rejections` has not returned yet.
        examples: Key and detail of one rejected clip for each reason.
    """

    def __init__(self) -> None:
        self.passes = self.trained = self.total = self.rejected_in_a_row = 0
        self._trained: dict[Visit, BitMap] = {}
        self._rejected: dict[Visit, BitMap] = {}
        self.shards_in_a_row: set[str] = set()
        self.lengths: dict[str, int] = {}
        self._reasons: dict[tuple[str, str], BitMap] = {}  # by shard and reason, over all epochs
        self.unwritten: list[Rejection] = []
        self.examples: dict[str, str] = {}
        # By shard, over all epochs: clips trained, and clips trained or rejected.
        self._ever_trained: dict[str, BitMap] = {}
        self._ever_seen: dict[str, BitMap] = {}

    def are_new(self, rows: Iterable[Provenance]) -> list[bool]:
        """Return for each row whether it is new: not in the ledger, and not earlier in `rows`."""
        seen: set[tuple[int, str, int]] = set()
        are_new = []
        for row in rows:
            clip = (row.epoch, row.shard, row.index)
            are_new.append(clip not in seen and not self._has(row))
            seen.add(clip)
        return are_new

    def _has(self, row: Provenance) -> bool:
        visit = (row.epoch, row.shard)
        return any(row.index in book.get(visit, ()) for book in (self._trained, self._rejected))

    def enter(self, rows: Iterable[Provenance]) -> None:
        """Enter the clips of a training step, once the step is done."""
        for row in rows:
            self._mark(row.epoch, row.shard, BitMap([row.index]), row.rejected)
            if row.rejected:
                self.rejected_in_a_row += 1
                self.shards_in_a_row.add(row.shard)
                self._keep_reason(row)
            elif self.rejected_in_a_row:
                self.rejected_in_a_row, self.shards_in_a_row = 0, set()
            if row.ends_shard:
                self.lengths[row.shard] = row.index + 1

    def _keep_reason(self, row: Provenance) -> None:
        known = any(row.index in self._reasons.get((row.shard, reason), ()) for reason in Reason)
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
        """Return the clips of a shard that this epoch has trained or rejected."""
        empty = BitMap()
        visit = (epoch, shard)
        return self._trained.get(visit, empty) | self._rejected.get(visit, empty)

    def complete(self, epoch: int, shard: str) -> bool:
        """Return whether the epoch has trained or rejected every clip of the shard."""
        length = self.lengths.get(shard)
        return length is not None and len(self.finished(epoch, shard)) >= length

    def ever_trained(self, shard: str, index: int) -> bool:
        """Return whether any epoch has trained the clip."""
        return index in self._ever_trained.get(shard, ())

    def take_rejections(self) -> list[Rejection]:
        """Return the rejections since the last call. Each clip is returned once per run."""
        taken, self.unwritten = self.unwritten, []
        return taken

    def reasons(self) -> Counter[str]:
        """Return the number of distinct clips that no epoch trained, by rejection reason."""
        counts: Counter[str] = Counter()
        for (shard, reason), clips in self._reasons.items():
            counts[reason] += len(clips - self._ever_trained.get(shard, BitMap()))
        return +counts

    def verdicts(self) -> Sequence[tuple[str, str, BitMap]]:
        """Return each shard and rejection reason with the clips rejected for it."""
        return [(shard, reason, clips) for (shard, reason), clips in self._reasons.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as JSON for a checkpoint, bitmaps in roaring's own format in base64."""
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
            "lengths": self.lengths,
            "examples": self.examples,
            "rejected_in_a_row": self.rejected_in_a_row,
            "shards_in_a_row": sorted(self.shards_in_a_row),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Return the ledger that `to_json` wrote.

        Raises:
            KeyError: The content lacks a field of this version's ledgers.
        """
        ledger = cls()
        for name in ("trained", "rejected"):
            for entry in content[name]:
                clips = _unpacked(entry["clips"])
                ledger._mark(entry["epoch"], entry["shard"], clips, name == "rejected")
        for entry in content["reasons"]:
            ledger._reasons[entry["shard"], entry["reason"]] = _unpacked(entry["clips"])
        ledger.lengths = dict(content["lengths"])
        ledger.examples = dict(content["examples"])
        ledger.rejected_in_a_row = content["rejected_in_a_row"]
        ledger.shards_in_a_row = set(content.get("shards_in_a_row", ()))  # not in early versions
        return ledger


def _packed(marks: BitMap) -> str:
    return base64.b64encode(marks.serialize()).decode()


def _unpacked(text: str) -> BitMap:
    return BitMap.deserialize(base64.b64decode(text))


def _add(book: dict[_Key, BitMap], key: _Key, clips: BitMap) -> int:
    """Add clips to one bitmap of a book and return how many of them were new."""
    marks = book.setdefault(key, BitMap())
    before = len(marks)
    marks |= clips
    return len(marks) - before
