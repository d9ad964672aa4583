"""Writes the target store: rows from the teacher actors become Parquet files, called parts.

All rows of a stretch, up to 256 successive clips of a shard, go to the same writer actor, which
writes the stretch as one part when it is complete. If a part cannot be written for a while, the
writer gives it up, and its targets are computed again in a later epoch or run.
"""

from __future__ import annotations

import io
import logging
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyroaring import BitMap
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from liser_dist import storage
from liser_dist.cluster.connect import pool_selector
from liser_dist.config.stream import StreamSpec
from liser_dist.errors import StorageError
from liser_dist.pipeline.store import (
    ROW_GROUP,
    SETTINGS_KEY,
    STRETCH,
    Part,
    TargetStore,
    open_store,
)
from liser_dist.records import LABELS, Reason, stable_hash

logger = logging.getLogger(__name__)

TEACHERS_PER_WRITER = 8
UNFINISHED_PER_READER = 64  # stretches; twice as many as a reader's shards have in the pipeline
_WRITING_AHEAD = 2  # parts
_LONGEST_WAIT_S = 5.0
_REASONS_OF_MACHINE = {str(reason) for reason in Reason if reason.depends_on_machine}

Stretch = tuple[str, str, int]  # shard, view, first clip


def split_by_stretch(
    rows: pa.Table, view_of: Callable[[str, int], str]
) -> Iterator[tuple[Stretch, pa.Table]]:
    """Split the rows of a batch by the stretch of a shard to which they belong.

    Args:
        rows: A table of examples.
        view_of: Returns the view for a shard and an epoch.
    """
    rows_of: dict[Stretch, list[int]] = defaultdict(list)
    columns = (rows[name].to_pylist() for name in ("shard", "epoch", "index"))
    for row, (shard, epoch, index) in enumerate(zip(*columns, strict=True)):
        rows_of[shard, view_of(shard, epoch), index // STRETCH * STRETCH].append(row)
    for stretch, chosen in rows_of.items():
        yield stretch, rows.take(chosen)


@dataclass(slots=True)
class _Unfinished:
    """The rows of a stretch that have arrived so far."""

    tables: list[pa.Table] = field(default_factory=list)
    seen: BitMap = field(default_factory=BitMap)
    stop: int = 0

    def add(self, rows: pa.Table, start: int) -> bool:
        """Add rows and return whether the stretch is complete.

        A row that arrived before, from a task that Ray ran again, is left out.
        """
        self.stop = self.stop or start + STRETCH
        indices, ends = (rows[name].to_pylist() for name in ("index", "ends_shard"))
        new = [row for row, index in enumerate(indices) if index not in self.seen]
        for row in new:
            self.seen.add(indices[row])
            if ends[row]:
                self.stop = indices[row] + 1
        self.tables.append(rows.take(pa.array(new, pa.int64())))
        return len(self.seen) == self.stop - start


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store that takes nothing may hold up the job.

    Attributes:
        part_s: A part is tried again for so long, then given up.
        parts: After so many parts in a row were given up, the store counts as down.
        probe_s: While it is down, one part in this time is tried, once; others are given up.
    """

    part_s: float = 60.0
    parts: int = 3
    probe_s: float = 60.0


class PartFiles:
    """Writes the files of parts to the store, as far as it takes them. Used by one thread."""

    def __init__(
        self,
        patience: Patience,
        write: Callable[[str, bytes, float], None] = storage.write_bytes,
    ) -> None:
        """Create the writer of files.

        Args:
            patience: How long it waits for a store that fails.
            write: Writes a file atomically: its place, its content, how long it is retried.
        """
        self._patience, self._write_bytes = patience, write
        self._failures = 0  # parts given up since the last that was stored
        self._failure: str | None = None
        self._probe_at = 0.0

    @property
    def outage(self) -> str | None:
        """Why the store is down; None while it is not."""
        return self._failure if self._failures >= self._patience.parts else None

    def write(self, path: str, content: Callable[[], bytes]) -> None:
        """Write a file, or give it up.

        Args:
            path: Its place.
            content: Returns its content. Not called while the store is down.
        """
        is_down = self.outage is not None
        if is_down and time.monotonic() < self._probe_at:
            self._failures += 1
            return
        retrying = Retrying(
            retry=retry_if_exception_type(StorageError),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S),
            stop=stop_after_delay(0.0 if is_down else self._patience.part_s),
            reraise=True,
        )
        try:
            retrying(self._write_bytes, path, content(), 0.0)
        except StorageError as error:
            self._note_failure(error)
        else:
            self._note_success()

    def _note_failure(self, error: StorageError) -> None:
        self._failures += 1
        self._failure = str(error)
        self._probe_at = time.monotonic() + self._patience.probe_s
        if self._failures == 1:
            logger.warning(
                "a file of the target store could not be written: %s; the file's targets will be "
                "computed again",
                error,
            )
        if self._failures == self._patience.parts:
            logger.warning(
                "the target store cannot be written to at the moment (next attempts every %g s): "
                "%s; the job continues without storing targets",
                self._patience.probe_s, error,
            )  # fmt: skip

    def _note_success(self) -> None:
        if self.outage is not None:
            logger.warning(
                "the target store works again; the targets of %d files were not stored and will "
                "be computed again",
                self._failures,
            )
        self._failures = 0


class StretchWriter:
    """Collects the rows of stretches and writes each stretch when it is complete.

    A plain class, which `open_store_writers` makes an actor. Memory is bounded by the number of
    unfinished stretches. Some are never finished: another writer's process was lost, or the run
    tries single clips again of which the store has the rest.
    """

    def __init__(
        self,
        store: TargetStore,
        most_unfinished: int = UNFINISHED_PER_READER,
        files: PartFiles | None = None,
    ) -> None:
        """Create a writer.

        Args:
            store: Where it writes.
            most_unfinished: Number of stretches above which the one that has had no rows for
                longest is dropped.
            files: Writes the files.
        """
        self._store, self._most_unfinished = store, most_unfinished
        self._files = files or PartFiles(Patience())
        self._unfinished: OrderedDict[Stretch, _Unfinished] = OrderedDict()
        self._thread = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()

    def add(self, stretch: Stretch, rows: pa.Table) -> None:
        """Take over rows; blocks while the teachers are faster than the store."""
        unfinished = self._unfinished.setdefault(stretch, _Unfinished())
        self._unfinished.move_to_end(stretch)
        if unfinished.add(rows, stretch[2]):
            complete = self._unfinished.pop(stretch)
            self._writing.append(self._thread.submit(self._write, stretch, complete))
            while len(self._writing) > _WRITING_AHEAD:
                self._writing.popleft().result()
        elif len(self._unfinished) > self._most_unfinished:
            self._unfinished.popitem(last=False)

    def finish(self) -> str | None:
        """Wait until the complete stretches are written; return why the store is down, if it is."""
        while self._writing:
            self._writing.popleft().result()
        return self._files.outage

    def _write(self, stretch: Stretch, complete: _Unfinished) -> None:
        shard, view, start = stretch
        rows = pa.concat_tables(complete.tables).sort_by("index")
        rows = rows.set_column(
            rows.schema.get_field_index("epoch"), "epoch", pa.array(np.zeros(len(rows), np.int64))
        )
        ends, retry_mask = bool(rows["ends_shard"][-1].as_py()), _retry_mask(rows)
        part = Part(shard, view, start, complete.stop, ends, retry_mask)
        content = partial(_to_parquet, rows, self._store.settings)
        self._files.write(self._store.path_of(part), content)


def _to_parquet(rows: pa.Table, settings: str) -> bytes:
    content = io.BytesIO()
    rows = rows.replace_schema_metadata({SETTINGS_KEY: settings})
    pq.write_table(
        rows, content, row_group_size=ROW_GROUP, compression="zstd", compression_level=1,
        use_dictionary=["shard", "reason", *LABELS], write_page_checksum=True,
    )  # fmt: skip
    return content.getvalue()


def _retry_mask(rows: pa.Table) -> int:
    """Return the mask of the rows that were rejected for a reason that depends on the machine."""
    reasons = rows["reason"].to_pylist()
    return sum(1 << row for row, reason in enumerate(reasons) if reason in _REASONS_OF_MACHINE)


@dataclass(frozen=True, slots=True)
class StoreWriters:
    """A job's target store with the actors that write to it; none if it is read-only."""

    store: TargetStore
    actors: Sequence[Any]

    def add(self, rows: pa.Table, view_of: Callable[[str, int], str]) -> None:
        """Hand rows to the writers and wait until they have them.

        A row that the caller passes on afterwards is therefore in the store after `finish`.

        Args:
            rows: A table of examples.
            view_of: Returns the view for a shard and an epoch.
        """
        if not self.actors:
            return
        pending = [
            self.actors[stable_hash(str(stretch)) % len(self.actors)].add.remote(stretch, part)
            for stretch, part in split_by_stretch(rows, view_of)
        ]
        for call in pending:
            _wait_for(call)

    def finish(self) -> TargetStore:
        """Wait until all complete stretches are written.

        Returns:
            The store, not writable if it takes nothing at the moment. Parts that were given up
            are not in it; a later epoch computes and writes them again.
        """
        pending = [actor.finish.remote() for actor in self.actors]
        outages = [_wait_for(call) for call in pending]
        return replace(self.store, writable=self.store.writable and not any(outages))


def _wait_for(call: Any) -> Any:
    """Return what a writer's method returns; None if the writer is lost, which Ray restarts."""
    try:
        return ray.get(call)
    except ray.exceptions.RayActorError:
        logger.warning(
            "a target-store writer was lost; the targets that it had not yet written will be "
            "computed again"
        )
        return None


def open_store_writers(stream: StreamSpec, versions: Mapping[str, str]) -> StoreWriters | None:
    """Open the job's target store and start its writers. Raises the errors of `open_store`.

    Args:
        stream: The stream whose targets are read and stored.
        versions: Versions of the job's shards, by path.

    Returns:
        The store with its writers, or None if the job has no store.
    """
    store = open_store(stream, versions)
    if store is None:
        return None
    teachers = stream.resources.teachers[1]
    count = -(-teachers // TEACHERS_PER_WRITER) if store.writable else 0
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": "SPREAD"}
    selector = pool_selector(stream.resources.pools.teachers)
    writer = ray.remote(StretchWriter).options(**options, label_selector=selector)
    unfinished = UNFINISHED_PER_READER * stream.resources.readers
    return StoreWriters(store, [writer.remote(store, unfinished) for _ in range(count)])
