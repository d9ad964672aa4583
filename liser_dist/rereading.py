"""Parts of the target store -> one train worker's share of each step.

An epoch's clips, in the order of its parts, are one sequence; a step is the next so many of it, and
a worker reads its share of them and no other. What comes next is read while a step is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from liser_dist.schedule import PartVisit
from liser_dist.tables import EXAMPLES
from liser_dist.targets import BrokenPartError, Part, TargetStore

logger = logging.getLogger(__name__)

AHEAD = 2  # parts
Rows = NDArray[np.int64]


class Rereader:
    """A worker's batches of what the store has.

    `first`, `share`: this worker has so many of a step's `batch` clips, from that one on.
    `tell_broken` is told of each part that cannot be read, and says whether that is new; its clips
    are passed over.
    """

    def __init__(
        self,
        store: TargetStore,
        batch: int,
        first: int,
        share: int,
        tell_broken: Callable[[Part], bool],
    ) -> None:
        self._store, self._batch, self._first, self._share = store, batch, first, share
        self._tell_broken = tell_broken

    def batches(self, epoch: Sequence[PartVisit]) -> Iterator[pa.Table]:
        """A table for each step of an epoch; of no rows where others alone have some."""
        clips = sum(len(visit.clips) for visit in epoch)
        done, waiting = 0, EXAMPLES.empty_table()
        steps: Rows = np.empty(0, np.int64)
        for until, of_part, table in self._read(epoch):
            waiting, steps = pa.concat_tables([waiting, table]), np.append(steps, of_part)
            ready = clips if until == clips else until - until % self._batch
            while done * self._batch < ready:
                yield waiting.slice(0, count := int((steps == done).sum()))
                waiting, steps, done = waiting.slice(count), steps[count:], done + 1

    def _read(self, epoch: Sequence[PartVisit]) -> Iterator[tuple[int, Rows, pa.Table]]:
        """Of each part: where it ends in the sequence, the step of each row, the rows."""
        with ThreadPoolExecutor(AHEAD) as threads:
            waiting: list[tuple[int, Rows, Future[pa.Table]]] = []
            until = 0
            for visit in epoch:
                places = np.arange(until, until + len(visit.clips))
                until += len(visit.clips)
                mine = (places % self._batch >= self._first) & (
                    places % self._batch < self._first + self._share
                )
                wanted = np.array(visit.clips.to_array(), np.int64)[mine]
                rows = threads.submit(self._rows, visit, wanted)
                waiting.append((until, places[mine] // self._batch, rows))
                if len(waiting) > AHEAD:
                    yield self._whole(waiting.pop(0))
            while waiting:
                yield self._whole(waiting.pop(0))

    def _whole(self, one: tuple[int, Rows, Future[pa.Table]]) -> tuple[int, Rows, pa.Table]:
        until, steps, rows = one
        table = rows.result()
        return until, steps[: len(table)], table

    def _rows(self, visit: PartVisit, wanted: Rows) -> pa.Table:
        if not len(wanted):
            return EXAMPLES.empty_table()
        try:
            table = self._store.read(visit.part, wanted.tolist())
        except BrokenPartError as error:
            if self._tell_broken(visit.part):
                logger.warning(
                    "a part of the target store is broken, its clips are taught again: %s: %s",
                    self._store.place_of(visit.part), error,
                )  # fmt: skip
            return EXAMPLES.empty_table()
        column = table.schema.get_field_index("epoch")
        return table.set_column(column, "epoch", pa.array(np.full(len(table), visit.epoch)))
