"""Targets of a clip are computed in the first epoch that needs them, and read in the others."""

from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import pytest
from pyroaring import BitMap

from liser_dist.data.shards import ShardVisit
from liser_dist.pipeline.schedule import parts_to_read, visits_to_stream
from liser_dist.pipeline.store import Part, StoredParts, TargetStore
from liser_dist.records import Provenance, Reason
from liser_dist.runs.ledger import Ledger

VISITS = [ShardVisit(epoch, shard) for epoch in range(3) for shard in ("a", "b")]


def store(**change: Any) -> TargetStore:
    facts = {"path": "s", "windows": 1, "writable": True, "versions": {"a": "1", "b": "1"}}
    return TargetStore(**facts | change)


def whole(*shards: str, view: str = "window-0") -> list[Part]:
    return [Part(shard, view, 0, 300, True) for shard in shards]


def ledger(epoch: int, shard: str, clips: range, rejected: int = -1) -> Ledger:
    made = Ledger()
    enter(made, epoch, shard, clips, rejected)
    return made


def enter(ledger: Ledger, epoch: int, shard: str, clips: Iterable[int], rejected: int = -1) -> None:
    ledger.enter(
        Provenance(
            key=f"{n}", shard=shard, index=n, epoch=epoch, ends_shard=n == 299,
            reason=Reason.TIMEOUT if n == rejected else "",
        )
        for n in clips
    )  # fmt: skip


def taught(ledger: Ledger, store: TargetStore | None, parts: list[Part], **how: bool) -> Any:
    found = visits_to_stream(
        VISITS, ledger, store, StoredParts(parts), how.get("deterministic", False)
    )
    return [(visit.epoch, visit.shard, visit.finished) for visit in found]


def read(ledger: Ledger, parts: list[Part], **how: bool) -> Any:
    found = parts_to_read(
        VISITS, ledger, store(), StoredParts(parts), how.get("deterministic", False), seed=0
    )
    return [
        sorted(
            ((visit.part.shard, visit.clips) for group in epoch for visit in group.parts),
            key=itemgetter(0),
        )
        for epoch in found
    ]


def test_without_a_store_every_epoch_is_taught() -> None:
    found = taught(ledger(0, "a", range(300)), None, [])
    assert found == [(v.epoch, v.shard, BitMap()) for v in VISITS if (v.epoch, v.shard) != (0, "a")]


def test_with_one_a_clip_is_taught_once() -> None:
    assert taught(Ledger(), store(), []) == [(0, "a", BitMap()), (0, "b", BitMap())]
    assert taught(Ledger(), store(), whole("a")) == [(0, "b", BitMap())]
    assert taught(Ledger(), store(), whole("a", "b")) == []


def test_each_window_is_taught_once() -> None:
    two = store(windows=2)
    assert [found[:2] for found in taught(Ledger(), two, whole("a"))] == [
        (0, "b"), (1, "a"), (1, "b"),
    ]  # fmt: skip


def test_a_stretch_that_the_store_lacks_is_taught_whole_for_those_to_come() -> None:
    half = ledger(0, "a", range(270))
    part = [Part("a", "window-0", 0, 256, False)]
    assert taught(half, store(), part + whole("b")) == [(0, "a", BitMap(range(256)))]


def test_in_the_last_epoch_nobody_comes_after() -> None:
    done = ledger(2, "a", range(270))
    for epoch in range(2):
        enter(done, epoch, "a", range(300))
    assert taught(done, store(), whole("b")) == [(2, "a", BitMap(range(270)))]


def test_what_a_store_does_not_take_is_taught_in_every_epoch() -> None:
    found = taught(Ledger(), store(writable=False), whole("b"))
    assert found == [(0, "a", BitMap()), (1, "a", BitMap()), (2, "a", BitMap())]


def test_epochs_are_read_in_turn() -> None:
    every = BitMap(range(300))
    assert read(ledger(0, "a", range(300)), whole("a", "b")) == [
        [("b", every)], [("a", every), ("b", every)], [("a", every), ("b", every)],
    ]  # fmt: skip
    assert read(ledger(0, "a", range(10)), whole("a"))[0] == [("a", every - BitMap(range(10)))]


@pytest.mark.parametrize("parts", [[], whole("a")])
def test_a_deterministic_epoch_is_taught_or_read_as_a_whole(parts: list[Part]) -> None:
    some = ledger(0, "a", range(10))
    assert taught(some, store(), parts, deterministic=True) == [
        (0, "a", BitMap(range(10))), (0, "b", BitMap()),
    ]  # fmt: skip
    assert read(some, parts, deterministic=True) == []
    assert taught(some, store(), whole("a", "b"), deterministic=True) == []
    assert len(read(some, whole("a", "b"), deterministic=True)) == 3


def passes(store: TargetStore, deterministic: bool) -> int:
    """Train to the end with a store that takes no part; return the number of streams."""
    run, count = Ledger(), 0
    while not all(run.complete(visit.epoch, visit.shard) for visit in VISITS):
        for epoch, shard, finished in taught(run, store, [], deterministic=deterministic):
            enter(run, epoch, shard, ALL - finished - run.finished(epoch, shard))
        assert not any(read(run, [], deterministic=deterministic))
        count += 1
        assert count <= 3
    return count


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_ends_although_its_store_takes_no_part(deterministic: bool) -> None:
    assert passes(store(), deterministic) == 3  # an epoch each
    assert passes(store(writable=False), deterministic) == (3 if deterministic else 1)


# ---------------------------------------------------------------- clips that are tried again

ALL, CLIP = BitMap(range(300)), 7
WITHOUT = ALL - BitMap([CLIP])


def timed_out(*shards: str) -> list[Part]:
    """Shards that the store has, with a clip that timed out."""
    return [Part(shard, "window-0", 0, 300, True, retry_mask=1 << CLIP) for shard in shards]


def test_another_run_tries_a_clip_again_that_timed_out() -> None:
    parts = timed_out("a") + whole("b")
    assert taught(Ledger(), store(), parts) == [(0, "a", WITHOUT)]
    assert taught(Ledger(), store(writable=False), parts) == [(0, "a", WITHOUT)]
    assert read(Ledger(), parts) == [[("a", WITHOUT), ("b", ALL)]] * 3


def test_a_clip_that_times_out_again_is_rejected_in_the_later_epochs_from_the_store() -> None:
    parts = timed_out("a") + whole("b")
    again = ledger(0, "a", range(CLIP, CLIP + 1), rejected=CLIP)
    assert taught(again, store(), parts) == []
    assert read(again, parts) == [
        [("a", WITHOUT), ("b", ALL)], [("a", ALL), ("b", ALL)], [("a", ALL), ("b", ALL)],
    ]  # fmt: skip


def test_a_clip_that_is_accepted_now_is_streamed_in_every_epoch() -> None:
    parts = timed_out("a") + whole("b")
    accepted = ledger(0, "a", range(CLIP, CLIP + 1))
    assert taught(accepted, store(), parts) == [(1, "a", WITHOUT), (2, "a", WITHOUT)]


def test_a_run_in_which_a_clip_timed_out_ends_after_one_stream() -> None:
    """The epoch that filled the store, then the others from it, account for every clip."""
    run = ledger(0, "a", range(300), rejected=CLIP)
    enter(run, 0, "b", range(300))
    parts = timed_out("a") + whole("b")
    assert taught(run, store(), parts) == []
    for epoch, of_epoch in enumerate(read(run, parts), start=1):
        for shard, clips in of_epoch:
            enter(run, epoch, shard, clips, rejected=CLIP if shard == "a" else -1)
    assert all(run.complete(visit.epoch, visit.shard) for visit in VISITS)


def test_a_deterministic_epoch_is_read_only_if_its_rejections_are_those_of_the_run() -> None:
    parts = timed_out("a") + whole("b")
    assert [visit[:2] for visit in taught(Ledger(), store(), parts, deterministic=True)] == [
        (0, "a"), (0, "b"),
    ]  # fmt: skip
    assert read(Ledger(), parts, deterministic=True) == []
    run = ledger(0, "a", range(300), rejected=CLIP)
    enter(run, 0, "b", range(300))
    assert taught(run, store(), parts, deterministic=True) == []
    assert read(run, parts, deterministic=True) == [[("a", ALL), ("b", ALL)]] * 2
