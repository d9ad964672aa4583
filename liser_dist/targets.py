"""The target store: what the teachers said of a clip, with what the student hears of it.

    STORE/FINGERPRINT/
      settings.json                                    what the targets depend on
      SHARD/window-0-00000256-00000512.parquet         a stretch of a shard's clips
      SHARD/window-0-00000512-00000600-end.parquet     its last one

A part is put in place whole, and its name follows from what is in it, so that those who write the
same do no harm. A rejected clip has its row too: nothing of a shard is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from liser_dist import storage
from liser_dist.errors import MissingError, StorageError, in_a_line
from liser_dist.fields import fingerprint
from liser_dist.fingerprints import target_settings
from liser_dist.records import LABELS, Example
from liser_dist.spec import DistillSpec
from liser_dist.tables import EXAMPLES, to_examples

logger = logging.getLogger(__name__)

STRETCH = 256  # clips of a part: 25 MB of waveforms of 3 s
GROUP = 32  # of them can be read alone
SETTINGS = "settings.json"
_WRITING_AHEAD = 2
_NAME = re.compile(r"(?P<view>.+)-(?P<start>\d{8})-(?P<stop>\d{8})(?P<ends>-end)?\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A stretch of a shard's clips that the store has, in one view: one window of each."""

    shard: str
    view: str
    start: int
    stop: int
    ends: bool  # the shard's last clip is in it

    @property
    def clips(self) -> BitMap:
        return BitMap(range(self.start, self.stop))


def labelled_view(*, taught: bool) -> str:
    """Of labelled clips one window is seen, in the middle; teachers are asked about some alone."""
    return "centre-taught" if taught else "centre"


class BrokenPartError(Exception):
    """A part cannot be read, or holds something else."""


@dataclass(frozen=True, slots=True)
class TargetStore:
    """The folder of a store that has the run's fingerprint."""

    place: str
    windows: int
    writable: bool
    versions: Mapping[str, str]  # of the run's shards, by place

    def view(self, epoch: int) -> str:
        return f"window-{epoch % self.windows}"

    def folder(self, shard: str) -> str:
        name = shard.rpartition("/")[2].removesuffix(".tar")
        digest = hashlib.sha256(f"{shard} {self.versions[shard]}".encode()).hexdigest()[:16]
        return f"{name}-{digest}"

    def place_of(self, part: Part) -> str:
        name = f"{part.view}-{part.start:08d}-{part.stop:08d}{'-end' * part.ends}.parquet"
        return storage.join(self.place, self.folder(part.shard), name)

    def find(self) -> Stored:
        """What there is of the run's shards. Raises StorageError."""
        shards = {self.folder(shard): shard for shard in self.versions}
        parts = []
        for file in _files_under(self.place):
            folder, name = file.place.rsplit("/", 2)[1:]
            match = _NAME.fullmatch(name)
            if match and folder in shards:
                start, stop = int(match["start"]), int(match["stop"])
                parts.append(Part(shards[folder], match["view"], start, stop, bool(match["ends"])))
        return Stored(parts)

    def read(self, part: Part, wanted: Sequence[int]) -> pa.Table:
        """The rows of these clips of a part, in their order; their epoch is 0.

        Raises BrokenPartError, and StorageError where the store cannot be reached.
        """
        groups = sorted({(index - part.start) // GROUP for index in wanted})
        try:
            with storage.open_read(self.place_of(part)) as stream:
                table = _read_groups(stream, groups)
        except MissingError as error:
            raise BrokenPartError("it is not there any more") from error
        rows = np.searchsorted(table["index"].to_numpy(), wanted)
        table = table.take(rows.clip(max=max(0, len(table) - 1)))
        if table["index"].to_pylist() != list(wanted):
            raise BrokenPartError("other clips are in it")
        return table

    def read_shard(self, parts: Sequence[Part]) -> list[Example]:
        """All clips of these parts. Raises as `read`."""
        return [
            example
            for part in parts
            for example in to_examples(self.read(part, range(part.start, part.stop)))
        ]


def _read_groups(stream: IO[bytes], groups: Sequence[int]) -> pa.Table:
    """Raises BrokenPartError; what reading raises of storage passes through."""
    try:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        return file.read_row_groups(groups).cast(EXAMPLES)
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:
        raise BrokenPartError(in_a_line(error)) from error


def _files_under(place: str) -> list[storage.StoredFile]:
    try:
        return storage.list_files(place, ".parquet", storage.PATIENCE_S)
    except MissingError:
        return []


def open_store(spec: DistillSpec, versions: Mapping[str, str]) -> TargetStore | None:
    """The job's store, told once where it is not what one would expect; None when it is off.

    `versions`: of the run's shards, by place. Raises LiserError where nothing can be read.
    """
    if spec.targets.store is None:
        return None
    settings = target_settings(spec)
    place = storage.join(spec.targets.store, fingerprint(settings))
    new = not storage.exists(storage.join(place, SETTINGS))
    if new:
        _tell_others(spec.targets.store, settings)
    writable = True
    try:
        content = json.dumps(settings, indent=1).encode()
        storage.write_bytes(storage.join(place, SETTINGS), content, storage.CHECK_PATIENCE_S)
    except StorageError as error:
        logger.warning("nothing can be added to the target store, the job goes on: %s", error)
        writable = False
    return TargetStore(place, spec.targets.windows, writable, versions)


def _tell_others(store: str, settings: Mapping[str, Any]) -> None:
    """What a store has, and the job cannot use, of another version or other teachers."""
    others = [storage.join(store, name, SETTINGS) for name in storage.list_folders(store)]
    for other in filter(storage.exists, others):
        with_these = json.loads(storage.read_bytes(other))
        differing = [name for name, value in settings.items() if with_these.get(name) != value]
        logger.warning(
            "%s has targets that this job cannot read: its %s differ",
            other.rpartition("/")[0],
            " and ".join(differing),
        )


class Stored:
    """The parts of a store that are there, as they were listed."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts: dict[tuple[str, str], list[Part]] = defaultdict(list)
        for part in sorted(parts):
            self._parts[part.shard, part.view].append(part)

    def parts(self, shard: str, view: str) -> Sequence[Part]:
        return self._parts.get((shard, view), ())

    def clips(self, shard: str, view: str) -> BitMap:
        return BitMap.union(BitMap(), *(part.clips for part in self.parts(shard, view)))

    def whole(self, shard: str, view: str) -> bool:
        """Whether every clip of the shard is there."""
        parts = self.parts(shard, view)
        return bool(parts) and parts[-1].ends and len(self.clips(shard, view)) == parts[-1].stop

    def without(self, broken: Iterable[Part]) -> Stored:
        gone = set(broken)
        return Stored(part for parts in self._parts.values() for part in parts if part not in gone)


# ---------------------------------------------------------------- writing

Stretch = tuple[str, str, int]  # shard, view, first clip


def stretches(
    rows: pa.Table, view_of: Callable[[str, int], str]
) -> Iterator[tuple[Stretch, pa.Table]]:
    """The rows of a batch by the stretch that they belong to; `view_of` a shard and an epoch."""
    places: dict[Stretch, list[int]] = defaultdict(list)
    columns = (rows[name].to_pylist() for name in ("shard", "epoch", "index"))
    for place, (shard, epoch, index) in enumerate(zip(*columns, strict=True)):
        places[shard, view_of(shard, epoch), index // STRETCH * STRETCH].append(place)
    for stretch, chosen in places.items():
        yield stretch, rows.take(chosen)


@dataclass(slots=True)
class _Unfinished:
    """The rows of a stretch that have come so far."""

    tables: list[pa.Table] = field(default_factory=list)
    seen: BitMap = field(default_factory=BitMap)
    stop: int = 0

    def add(self, rows: pa.Table, start: int) -> bool:
        """Whether it is complete by now. A row that came before, from a task run again, is left."""
        self.stop = self.stop or start + STRETCH
        indices, ends = (rows[name].to_pylist() for name in ("index", "ends_shard"))
        new = [place for place, index in enumerate(indices) if index not in self.seen]
        for place in new:
            self.seen.add(indices[place])
            if ends[place]:
                self.stop = indices[place] + 1
        self.tables.append(rows.take(pa.array(new, pa.int64())))
        return len(self.seen) == self.stop - start


class StretchWriter:
    """Collects the rows of stretches, and writes each when it is complete.

    A plain class; `pipeline.open_keeping` makes it an actor. The first failure ends the writing:
    a store that is full or gone is no reason to hold up the job.
    """

    def __init__(self, store: TargetStore) -> None:
        self._store = store
        self._unfinished: dict[Stretch, _Unfinished] = defaultdict(_Unfinished)
        self._thread = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()
        self._failure: str | None = None

    def add(self, stretch: Stretch, rows: pa.Table) -> None:
        """Returns when the rows are taken over; waits where writing is slower than teaching."""
        if self._failure is not None:
            self._unfinished.clear()
        elif self._unfinished[stretch].add(rows, stretch[2]):
            complete = self._unfinished.pop(stretch)
            self._writing.append(self._thread.submit(self._write, stretch, complete))
            while len(self._writing) > _WRITING_AHEAD:
                self._writing.popleft().result()

    def finish(self) -> str | None:
        """Waits until all that is complete is written; returns what went wrong, if anything."""
        while self._writing:
            self._writing.popleft().result()
        return self._failure

    def _write(self, stretch: Stretch, complete: _Unfinished) -> None:
        shard, view, start = stretch
        rows = pa.concat_tables(complete.tables).sort_by("index")
        rows = rows.set_column(
            rows.schema.get_field_index("epoch"), "epoch", pa.array(np.zeros(len(rows), np.int64))
        )
        part = Part(shard, view, start, complete.stop, bool(rows["ends_shard"][-1].as_py()))
        content = io.BytesIO()
        pq.write_table(
            rows, content, row_group_size=GROUP, compression="zstd", compression_level=1,
            use_dictionary=["shard", "reason", *LABELS], write_page_checksum=True,
        )  # fmt: skip
        try:
            place = self._store.place_of(part)
            storage.write_bytes(place, content.getvalue(), storage.CHECK_PATIENCE_S)
        except StorageError as error:
            if self._failure is None:
                logger.warning("nothing is added to the target store any more: %s", error)
            self._failure = str(error)
