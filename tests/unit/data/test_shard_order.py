"""A run visits the shards in groups, whose clips it reads in turn."""

from itertools import pairwise
from pathlib import Path

import pytest
from pyroaring import BitMap

from liser_dist.data.shard_list import Shard, find_shards
from liser_dist.data.shard_order import group_visits, read_in_turn, shard_order
from liser_dist.data.shards import ShardVisit, write_shards


def listed(count: int) -> list[Shard]:
    return [Shard(f"/data/{n:06d}.tar", 1, "v1", 10) for n in range(count)]


def test_the_order_of_shards_follows_from_seed_and_epoch_alone() -> None:
    shards = listed(5)
    order = shard_order(shards, epochs=20, seed=3)
    assert order == shard_order(reversed(shards), epochs=20, seed=3)
    assert order != shard_order(shards, epochs=20, seed=4)
    by_epoch = [[v.shard for v in order if v.epoch == epoch] for epoch in range(20)]
    assert all(sorted(shards) == sorted(by_epoch[0]) for shards in by_epoch)
    assert len({tuple(shards) for shards in by_epoch}) > 1


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (9, [9]), (20, [10, 10]), (24, [8] * 3)])
def test_eight_shards_or_more_are_read_in_turn(count: int, sizes: list[int]) -> None:
    groups = group_visits(shard_order(listed(count), epochs=2, seed=0))
    assert [len(group) for group in groups] == sizes * 2
    assert [group[0].epoch for group in groups] == [0] * len(sizes) + [1] * len(sizes)


def test_a_visit_without_a_group_is_read_alone() -> None:
    visits = [ShardVisit(0, "a"), ShardVisit(0, "b"), ShardVisit(1, "a")]
    assert group_visits(visits) == [[visit] for visit in visits]
    assert group_visits([]) == []


@pytest.fixture
def group(tmp_path: Path) -> list[ShardVisit]:
    """Three shards of 4, 4 and 2 clips."""
    write_shards([(f"{n}", b"video", {}) for n in range(10)], str(tmp_path), clips_per_shard=4)
    return shard_order(find_shards(str(tmp_path), "data.unlabelled"), epochs=1, seed=0)


def test_the_clips_of_a_group_come_in_turn(group: list[ShardVisit]) -> None:
    samples = list(read_in_turn(group))
    assert sorted(sample.key for sample in samples) == [f"{n}" for n in range(10)]
    assert [sample.index for sample in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert all(one.shard != other.shard for one, other in pairwise(samples))
    assert sum(sample.ends_shard for sample in samples) == 3


def test_clips_that_are_skipped_do_not_change_the_order_of_the_others(
    group: list[ShardVisit],
) -> None:
    whole = [(sample.shard, sample.index) for sample in read_in_turn(group)]
    for done in range(len(whole)):
        finished = {
            visit.shard: BitMap(n for shard, n in whole[:done] if shard == visit.shard)
            for visit in group
        }
        left = [
            ShardVisit(0, visit.shard, finished=finished[visit.shard], group=visit.group)
            for visit in group
        ]
        rest = [(sample.shard, sample.index) for sample in read_in_turn(left)]
        assert rest == whole[done:]
