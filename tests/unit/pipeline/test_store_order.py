"""Clips from the store are mixed, in an order that follows from seed and epoch."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from liser_dist.config.distill import DistillSpec
from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.data.shard_order import group_visits, read_in_turn, shard_order
from liser_dist.data.shards import ShardVisit, write_shards
from liser_dist.pipeline.schedule import PartGroup, StoreReader, parts_to_read
from liser_dist.pipeline.store import StoredParts, TargetStore, open_store
from liser_dist.pipeline.store_writer import StretchWriter, split_by_stretch
from liser_dist.pipeline.tables import to_table
from liser_dist.records import Example, Provenance
from liser_dist.runs.ledger import Ledger

CLIPS, CLIPS_PER_SHARD = 3000, 300  # ten shards of two parts
ClipId = tuple[str, int]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = str(tmp_path_factory.mktemp("shards"))
    write_shards(((f"{n}", b"video", {}) for n in range(CLIPS)), folder, CLIPS_PER_SHARD)
    return find_shards(folder, "data.unlabelled")


@pytest.fixture(scope="module")
def store(shards: list[Shard], tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """A store that has all clips of the shards."""
    spec = DistillSpec.model_validate(
        {
            "name": "a-job",
            "data": {"unlabelled": "/data"},
            "teachers": {"speech": {"kind": "mock"}},
            "targets": {"store": str(tmp_path_factory.mktemp("store"))},
        }
    )
    store = open_store(spec.stream, {shard.place: shard.version for shard in shards})
    assert store is not None
    writer = StretchWriter(store)
    for shard in shards:
        examples = [
            Example(
                key=f"{n}", shard=shard.place, index=n, epoch=0,
                ends_shard=n == CLIPS_PER_SHARD - 1, waveform=np.full(4, n, np.int16),
            )
            for n in range(CLIPS_PER_SHARD)
        ]  # fmt: skip
        for stretch, rows in split_by_stretch(to_table(examples, Example), lambda *_: "window-0"):
            writer.add(stretch, rows)
    assert writer.finish() is None
    return store


@pytest.fixture(scope="module")
def stored(store: TargetStore) -> StoredParts:
    return store.list_parts()


def epochs(
    store: TargetStore,
    stored: StoredParts,
    shards: list[Shard],
    seed: int = 0,
    deterministic: bool = False,
    ledger: Ledger | None = None,
) -> list[list[PartGroup]]:
    visits = shard_order(shards, epochs=2, seed=seed)
    return list(parts_to_read(visits, ledger or Ledger(), store, stored, deterministic, seed))


def steps(
    store: TargetStore, epoch: list[PartGroup], batch: int, workers: int = 1
) -> Iterator[list[ClipId]]:
    """The clips of each step: those of the first worker, then those of the second, ..."""
    shares = [batch // workers + (rank < batch % workers) for rank in range(workers)]
    readers = [
        StoreReader(store, batch, sum(shares[:rank]), shares[rank], lambda _part: True)
        for rank in range(workers)
    ]
    for tables in zip(*(reader.batches(epoch) for reader in readers), strict=True):
        rows = [row for table in tables for row in table.to_pylist()]
        assert all(np.frombuffer(r["waveform"], np.int16)[0] == r["index"] for r in rows)
        yield [(row["shard"], row["index"]) for row in rows]


def test_a_step_has_clips_of_eight_parts(
    store: TargetStore, stored: StoredParts, shards: list[Shard]
) -> None:
    for epoch in epochs(store, stored, shards):
        for clips in steps(store, epoch, batch=256):
            assert len({(shard, index // 256) for shard, index in clips}) >= 8
            assert clips != sorted(clips)


def test_the_order_differs_between_epochs_and_seeds(
    store: TargetStore, stored: StoredParts, shards: list[Shard]
) -> None:
    def orders(seed: int) -> list[list[ClipId]]:
        read = epochs(store, stored, shards, seed)
        return [[clip for step in steps(store, epoch, 512) for clip in step] for epoch in read]

    first, second = orders(seed=0)
    assert first != second
    assert orders(seed=0) == [first, second]
    assert orders(seed=1)[0] not in (first, second)


@pytest.mark.parametrize(("workers", "batch"), [(1, 256), (2, 64), (3, 100), (3, 2500), (2, 4000)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_each_clip_comes_once_whatever_the_number_of_workers(
    store: TargetStore,
    stored: StoredParts,
    shards: list[Shard],
    workers: int,
    batch: int,
    deterministic: bool,
) -> None:
    epoch, _ = epochs(store, stored, shards, deterministic=deterministic)
    alone = list(steps(store, epoch, batch))
    assert list(steps(store, epoch, batch, workers)) == alone
    clips = [clip for step in alone for clip in step]
    assert sorted(clips) == [(s.place, n) for s in shards for n in range(CLIPS_PER_SHARD)]
    assert {len(step) for step in alone[:-1]} <= {batch}


@pytest.mark.parametrize("done", [0, 1280])
def test_a_deterministic_epoch_has_the_order_of_the_stream_also_when_resumed(
    store: TargetStore, stored: StoredParts, shards: list[Shard], done: int
) -> None:
    visits = [visit for visit in shard_order(shards, 1, seed=0) if visit.epoch == 0]
    stream = [
        (sample.shard, sample.index)
        for group in group_visits(visits)
        for sample in read_in_turn(group)
    ]
    ledger = Ledger()
    ledger.enter(
        Provenance(key=f"{n}", shard=shard, index=n, epoch=0) for shard, n in stream[:done]
    )
    left: list[ShardVisit] = [
        replace(visit, finished=ledger.finished(0, visit.shard)) for visit in visits
    ]
    resumed = [
        (sample.shard, sample.index)
        for group in group_visits(left)
        for sample in read_in_turn(group)
    ]
    epoch, _ = epochs(store, stored, shards, deterministic=True, ledger=ledger)
    read = [clip for step in steps(store, epoch, batch=128) for clip in step]
    assert read == resumed == stream[done:]
    assert len({shard for shard, _ in read[:128]}) == 10
