"""Decides which clips of a run are streamed and which are read from the target store.

A clip is streamed, that is, decoded from its shard and sent through the teachers, in the first
epoch that needs it. The store keeps what the student needs of it, inputs and targets, in files of
up to 256 clips each, called parts; later epochs read these. The ledger, which records the clips
that are trained or rejected, and a listing of the store determine which shards are streamed and,
after that, which parts are read and in which order. `StoreReader` reads one train worker's share of
each step.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap

from liser_dist.data.shard_order import group_visits
from liser_dist.data.shards import ShardVisit
from liser_dist.pipeline.store import NO_CLIPS, BrokenPartError, Part, StoredParts, TargetStore
from liser_dist.pipeline.tables import EXAMPLES
from liser_dist.runs.ledger import Ledger

logger = logging.getLogger(__name__)

MIXED_PARTS = 8  # at least, if there are as many: 200 MB of waveforms of 3 s over all workers
_READ_THREADS = 4
_Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PartVisit:
    """One pass over a part of the store in one epoch."""

    epoch: int
    part: Part
    clips: BitMap  # clips of the part that the epoch still lacks


@dataclass(frozen=True, slots=True)
class PartGroup:
    """Parts whose clips are mixed with each other.

    Attributes:
        parts: The parts.
        seed: Of the order of their clips. None: by number, the first clip of each part, then the
            second of each, as the stream reads a group of shards.
    """

    parts: Sequence[PartVisit]
    seed: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return sum(len(visit.clips) for visit in self.parts)

    def order(self) -> tuple[_Rows, _Rows]:
        """Return of each clip, in their order, the position of its part and its number."""
        clips = [np.array(visit.clips.to_array(), np.int64) for visit in self.parts]
        parts = np.repeat(np.arange(len(clips)), [len(of_part) for of_part in clips])
        indices = np.concatenate(clips)
        if self.seed is None:
            order = np.lexsort((parts, indices))
        else:
            order = np.random.default_rng(self.seed).permutation(len(parts))
        return parts[order], indices[order]


def visits_to_stream(
    visits: Sequence[ShardVisit],
    ledger: Ledger,
    store: TargetStore | None,
    stored: StoredParts,
    deterministic: bool,
) -> list[ShardVisit]:
    """Return the visits that the stream makes, each with the clips that it skips.

    Without a store these are all clips that are not in the ledger. With a store they are the clips
    that the run cannot read there, once for each shard and view: in the first epoch that is not
    complete, which stores their targets for the others. If the store lacks a stretch of which the
    ledger already has some clips, that epoch computes the whole stretch again; clips that arrive
    twice are trained once. A store that is not writable is only read.

    A deterministic run takes an epoch either from the stream or from the store, one epoch at a
    time, so that the order of its clips does not depend on what the store happened to have.

    Args:
        visits: All visits of the run: every shard in every epoch, in order.
        ledger: What is trained or rejected.
        store: The run's target store.
        stored: What the store has.
        deterministic: Whether the run is deterministic.
    """
    left = [visit for visit in visits if not ledger.complete(visit.epoch, visit.shard)]
    if store is None:
        return [_without_finished(visit, ledger) for visit in left]
    rejected = _rejected_clips(ledger)
    incomplete = defaultdict(list)
    for visit in left:
        view = store.view(visit.epoch)
        if not stored.is_complete(visit.shard, view, rejected[visit.shard]):
            incomplete[visit.shard, view].append(visit)
    if deterministic:
        epoch = [visit for visit in left if visit.epoch == left[0].epoch]
        complete = all((visit.shard, store.view(visit.epoch)) not in incomplete for visit in epoch)
        return [] if complete else [_without_finished(visit, ledger) for visit in epoch]
    chosen = []
    for (shard, view), of_view in incomplete.items():
        readable = stored.clips(shard, view, rejected[shard])
        if stored.is_filled(shard, view):
            retry = stored.retry(shard, view) - readable
            chosen += _visits_to_retry(of_view, readable, retry, ledger)
        elif store.writable:
            # An epoch that no other follows needs no complete stretch.
            finished = ledger.finished(of_view[0].epoch, shard) if len(of_view) == 1 else BitMap()
            chosen.append(replace(of_view[0], finished=finished | readable))
        else:
            chosen += [_without_finished(visit, ledger, readable) for visit in of_view]
    order = {(visit.epoch, visit.shard): position for position, visit in enumerate(left)}
    return sorted(chosen, key=lambda visit: order[visit.epoch, visit.shard])


def _visits_to_retry(
    visits: Sequence[ShardVisit], readable: BitMap, retry: BitMap, ledger: Ledger
) -> list[ShardVisit]:
    """Return the visits of a stored shard that try clips again which another run has rejected.

    They are tried in one epoch first. If they are rejected again, the other epochs read that from
    the store; if they are accepted, the other epochs have to stream them, too.
    """
    shard, last = visits[0].shard, visits[-1].epoch
    tried = BitMap.union(*(ledger.finished(epoch, shard) for epoch in range(last + 1)))
    lacking = [visit for visit in visits if retry - ledger.finished(visit.epoch, shard)]
    chosen = lacking[:1] if retry - tried else lacking
    return [_without_finished(visit, ledger, readable) for visit in chosen]


def _rejected_clips(ledger: Ledger) -> defaultdict[str, BitMap]:
    """Return the clips of each shard that the run has rejected."""
    rejected: defaultdict[str, BitMap] = defaultdict(BitMap)
    for shard, _, clips in ledger.verdicts():
        rejected[shard] |= clips
    return rejected


def _without_finished(visit: ShardVisit, ledger: Ledger, readable: BitMap = NO_CLIPS) -> ShardVisit:
    return replace(visit, finished=ledger.finished(visit.epoch, visit.shard) | readable)


def parts_to_read(
    visits: Sequence[ShardVisit],
    ledger: Ledger,
    store: TargetStore,
    stored: StoredParts,
    deterministic: bool,
    seed: int,
) -> Iterator[list[PartGroup]]:
    """Yield for each epoch the parts that it still lacks, in groups whose clips are mixed.

    Parts and clips are in an order drawn from seed and epoch; a group has MIXED_PARTS parts or
    more, of any shards. In a deterministic run the order is that of the stream, so that it makes no
    difference from where an epoch is read.

    Args:
        visits: All visits of the run: every shard in every epoch, in order.
        ledger: What is trained or rejected.
        store: The run's target store.
        stored: What the store has.
        deterministic: Whether the run is deterministic.
        seed: The run's seed.
    """
    visits_of: dict[int, list[ShardVisit]] = defaultdict(list)
    for visit in visits:
        if not ledger.complete(visit.epoch, visit.shard):
            visits_of[visit.epoch].append(visit)
    rejected = _rejected_clips(ledger)
    for epoch, of_epoch in sorted(visits_of.items()):
        view = store.view(epoch)
        if deterministic and not all(
            stored.is_complete(visit.shard, view, rejected[visit.shard]) for visit in of_epoch
        ):
            return
        groups = [
            [
                PartVisit(epoch, part, clips)
                for visit in group
                for part in stored.parts(visit.shard, view)
                if (
                    clips := part.readable(rejected[visit.shard])
                    - ledger.finished(epoch, visit.shard)
                )
            ]
            for group in group_visits(of_epoch)
        ]
        if deterministic:
            yield [in_turn for group in groups for in_turn in _in_turn(group)]
        else:
            yield _mixed(list(chain.from_iterable(groups)), (seed, epoch))


def _in_turn(parts: Sequence[PartVisit]) -> Iterator[PartGroup]:
    """Yield the parts of a group of shards in the order in which the stream has their clips."""
    of_stretch: dict[int, list[PartVisit]] = defaultdict(list)
    for visit in parts:
        of_stretch[visit.part.start].append(visit)
    for _, at_once in sorted(of_stretch.items()):
        yield PartGroup(at_once)


def _mixed(parts: Sequence[PartVisit], seed: tuple[int, int]) -> list[PartGroup]:
    """Return the parts in random order, in groups of MIXED_PARTS to twice as many."""
    order = np.random.default_rng(seed).permutation(len(parts))
    groups = np.array_split(order, max(1, len(parts) // MIXED_PARTS))
    return [
        PartGroup([parts[n] for n in group], (*seed, number))
        for number, group in enumerate(groups)
        if len(group)
    ]


def stopped_within_epoch(visits: Sequence[ShardVisit], ledger: Ledger) -> bool:
    """Return whether an epoch was begun and is not complete. Args: see `parts_to_read`."""
    begun = {visit.epoch for visit in visits if ledger.finished(visit.epoch, visit.shard)}
    return any(
        not ledger.complete(visit.epoch, visit.shard) for visit in visits if visit.epoch in begun
    )


class StoreReader:
    """Reads one worker's batches from the target store.

    Memory: the worker's clips of two groups of parts, one of which is read ahead.
    """

    def __init__(
        self,
        store: TargetStore,
        batch: int,
        first: int,
        share: int,
        report_broken: Callable[[Part], bool],
    ) -> None:
        """Create a reader.

        Args:
            store: The run's target store.
            batch: Clips of a step, over all workers.
            first: Position in each step of the worker's first clip.
            share: The worker's clips of each step.
            report_broken: Called with each part that cannot be read, whose clips are skipped;
                returns whether nobody has reported it before.
        """
        self._store, self._batch, self._first, self._share = store, batch, first, share
        self._report_broken = report_broken

    def batches(self, epoch: Sequence[PartGroup]) -> Iterator[pa.Table]:
        """Yield a table for each step of an epoch; empty where only other workers have clips."""
        step_tables: list[pa.Table] = []  # of one step, from one or more groups
        end = 0
        for rows in self._read(epoch):
            start, end = end, end + len(rows.parts)
            for step in range(start // self._batch, -(-end // self._batch)):
                first = step * self._batch + self._first - start
                step_tables.append(rows.take(max(0, first), max(0, first + self._share)))
                if (step + 1) * self._batch <= end:
                    yield pa.concat_tables(step_tables)
                    step_tables = []
        if step_tables:
            yield pa.concat_tables(step_tables)

    def _read(self, epoch: Sequence[PartGroup]) -> Iterator[_GroupRows]:
        """Yield the groups with the worker's rows; the next is read meanwhile."""
        threads = ThreadPoolExecutor(_READ_THREADS)
        try:
            ahead: deque[_GroupRows] = deque()
            start = 0
            for group in epoch:
                ahead.append(self._start_reading(group, start, threads))
                start += len(group)
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead
        finally:
            # Not waited for: where one part cannot be reached, the others may take as long.
            threads.shutdown(wait=False, cancel_futures=True)

    def _start_reading(
        self, group: PartGroup, start: int, threads: ThreadPoolExecutor
    ) -> _GroupRows:
        parts, indices = group.order()
        positions = np.arange(start, start + len(parts)) % self._batch - self._first
        own = (positions >= 0) & (positions < self._share)
        of_part = [np.sort(indices[own & (parts == n)]) for n in range(len(group.parts))]
        tables = [
            threads.submit(self._rows, visit, clips)
            for visit, clips in zip(group.parts, of_part, strict=True)
        ]
        return _GroupRows(parts, indices, of_part, tables)

    def _rows(self, visit: PartVisit, indices: _Rows) -> pa.Table | None:
        """Return some rows of a part; None if it cannot be read."""
        if not len(indices):
            return EXAMPLES.empty_table()
        try:
            table = self._store.read(visit.part, indices.tolist())
        except BrokenPartError as error:
            if self._report_broken(visit.part):
                logger.warning("%s", error)
            return None
        column = table.schema.get_field_index("epoch")
        return table.set_column(column, "epoch", pa.array(np.full(len(table), visit.epoch)))


@dataclass(frozen=True, slots=True)
class _GroupRows:
    """A group of parts, with one worker's rows of them.

    Attributes:
        parts: The position of each clip's part, in the order of the clips, of all workers.
        indices: The number of each clip in its shard.
        own: For each part, the numbers of this worker's clips, ascending.
        tables: For each part, these rows; None if it cannot be read.
    """

    parts: _Rows
    indices: _Rows
    own: Sequence[_Rows]
    tables: Sequence[Future[pa.Table | None]]

    def take(self, start: int, stop: int) -> pa.Table:
        """Return the rows from one position to another, which must be this worker's."""
        parts, indices = self.parts[start:stop], self.indices[start:stop]
        tables, places = [EXAMPLES.empty_table()], []
        for part in np.unique(parts):
            if (table := self.tables[part].result()) is not None:
                of_part = np.flatnonzero(parts == part)
                places.append(of_part)
                tables.append(table.take(np.searchsorted(self.own[part], indices[of_part])))
        order = np.argsort(np.concatenate([np.empty(0, np.int64), *places]))
        return pa.concat_tables(tables).take(order)
