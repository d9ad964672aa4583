"""Determines the order of the clips of a run: in which groups shards are read, and how mixed.

The clips of a shard often come from one film. Each epoch therefore puts the shards into groups, in
an order drawn from seed and epoch. The shards of a group are read in turn, one clip from each at a
time, so that a step has clips from many films. The order of two clips does not depend on which
others are skipped: a run that resumes continues in the order of a run that never stopped.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from liser_dist.data.shard_list import Shard
from liser_dist.data.shards import ShardVisit, read_samples
from liser_dist.records import Sample

SHARDS_PER_GROUP = 8  # at least, if there are as many; fewer than twice as many


def shard_order(shards: Iterable[Shard], epochs: int, seed: int) -> list[ShardVisit]:
    """Return a run's visits: every shard in each epoch, in an order drawn from seed and epoch."""
    known = sorted(shards, key=lambda shard: shard.place)
    groups = max(1, len(known) // SHARDS_PER_GROUP)
    visits = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(known))
        visits += [
            ShardVisit(
                epoch, known[n].place, known[n].version, group=position * groups // len(known)
            )
            for position, n in enumerate(order)
        ]
    return visits


def group_visits(visits: Iterable[ShardVisit]) -> list[list[ShardVisit]]:
    """Return the visits in lists of those that are read in turn."""
    groups: list[list[ShardVisit]] = []
    for visit in visits:
        last = groups[-1][-1] if groups and visit.group is not None else None
        if last is not None and (last.epoch, last.group) == (visit.epoch, visit.group):
            groups[-1].append(visit)
        else:
            groups.append([visit])
    return groups


def read_in_turn(visits: Sequence[ShardVisit], labelled: bool = True) -> Iterator[Sample]:
    """Yield the samples of some shards by number: the first of each shard, then the second of each.

    Memory is bounded by one sample of each shard.

    Args:
        visits: The shards, each with its clips that are skipped.
        labelled: False ignores emotion and speaker in the metadata.

    Raises:
        StorageError: A shard cannot be read, which is not damage.
        ShardError: A shard was replaced since the run began.
    """
    shards = [read_samples(visit, labelled) for visit in visits]
    yield from heapq.merge(*shards, key=lambda sample: sample.index)
