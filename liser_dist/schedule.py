"""What of a run is still to be taught, and what can be read from the target store instead.

A clip is taught in the first epoch that needs it; the epochs after that read it. Two questions,
both answered from the ledger and a listing of the store: which visits the stream has to make, and,
when the stream has ended, which parts are to be read in which order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pyroaring import BitMap

from liser_dist.ledger import Ledger
from liser_dist.shards import ShardVisit
from liser_dist.targets import Part, Stored, TargetStore

NOTHING = Stored(())


@dataclass(frozen=True, slots=True)
class PartVisit:
    """One pass over a part of the store in one epoch."""

    epoch: int
    part: Part
    clips: BitMap  # that the epoch has not seen yet


def to_teach(
    visits: Sequence[ShardVisit],
    ledger: Ledger,
    store: TargetStore | None,
    stored: Stored,
    deterministic: bool,
) -> list[ShardVisit]:
    """The visits that the stream makes, each with the clips that it passes over.

    Without a store, all that the ledger has not seen. With one, of each shard and view the first
    epoch that is not done, unless the store has all of it. That epoch teaches a stretch anew of
    which the store has nothing and the ledger some, so that the store gets it whole for those to
    come; clips that come twice are trained once. A store that takes nothing is read only.

    A deterministic run takes an epoch either from the stream or from the store, so that the order
    of its clips does not hang on what the store happened to have: one epoch at a time.
    """
    left = [visit for visit in visits if not ledger.complete(visit.epoch, visit.shard)]
    if store is None:
        return [_without_finished(visit, ledger) for visit in left]
    if deterministic:
        epoch = [visit for visit in left if visit.epoch == left[0].epoch]
        all_there = all(stored.whole(v.shard, store.view(v.epoch)) for v in epoch)
        return [] if all_there else [_without_finished(visit, ledger) for visit in epoch]
    later = defaultdict(list)
    for visit in left:
        if not stored.whole(visit.shard, view := store.view(visit.epoch)):
            later[visit.shard, view].append(visit)
    chosen = []
    for (shard, view), epochs in later.items():
        there = stored.clips(shard, view)
        if not store.writable:
            done = [ledger.finished(visit.epoch, shard) for visit in epochs]
            chosen += [replace(v, finished=d | there) for v, d in zip(epochs, done, strict=True)]
            continue
        finished = ledger.finished(epochs[0].epoch, shard) if len(epochs) == 1 else BitMap()
        chosen.append(replace(epochs[0], finished=finished | there))
    order = {(visit.epoch, visit.shard): place for place, visit in enumerate(left)}
    return sorted(chosen, key=lambda visit: order[visit.epoch, visit.shard])


def _without_finished(visit: ShardVisit, ledger: Ledger) -> ShardVisit:
    return replace(visit, finished=ledger.finished(visit.epoch, visit.shard))


def to_read(
    visits: Sequence[ShardVisit],
    ledger: Ledger,
    store: TargetStore,
    stored: Stored,
    deterministic: bool,
) -> Iterator[list[PartVisit]]:
    """For each epoch the parts that it has not seen, in the order of its visits."""
    epochs: dict[int, list[ShardVisit]] = defaultdict(list)
    for visit in visits:
        if not ledger.complete(visit.epoch, visit.shard):
            epochs[visit.epoch].append(visit)
    for epoch, of_epoch in sorted(epochs.items()):
        view = store.view(epoch)
        if deterministic and not all(stored.whole(v.shard, view) for v in of_epoch):
            return
        yield [
            PartVisit(epoch, part, clips)
            for visit in of_epoch
            for part in stored.parts(visit.shard, view)
            if (clips := part.clips - ledger.finished(epoch, visit.shard))
        ]
