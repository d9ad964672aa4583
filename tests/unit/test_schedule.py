"""Each clip is taught in the first epoch that needs it, and read in the others."""

from typing import Any

import pytest
from pyroaring import BitMap

from liser_dist.ledger import Ledger
from liser_dist.records import Provenance
from liser_dist.schedule import to_read, to_teach
from liser_dist.shards import ShardVisit
from liser_dist.targets import Part, Stored, TargetStore

VISITS = [ShardVisit(epoch, shard) for epoch in range(3) for shard in ("a", "b")]


def store(**change: Any) -> TargetStore:
    facts = {"place": "s", "windows": 1, "writable": True, "versions": {"a": "1", "b": "1"}}
    return TargetStore(**facts | change)


def whole(*shards: str, view: str = "window-0") -> list[Part]:
    return [Part(shard, view, 0, 300, True) for shard in shards]


def ledger(epoch: int, shard: str, clips: range, length: int = 300) -> Ledger:
    made = Ledger()
    made.enter(
        Provenance(key=f"{n}", shard=shard, index=n, epoch=epoch, ends_shard=n == length - 1)
        for n in clips
    )
    return made


def taught(ledger: Ledger, store: TargetStore | None, parts: list[Part], **how: bool) -> Any:
    found = to_teach(VISITS, ledger, store, Stored(parts), how.get("deterministic", False))
    return [(visit.epoch, visit.shard, visit.finished) for visit in found]


def read(ledger: Ledger, parts: list[Part], **how: bool) -> Any:
    found = to_read(VISITS, ledger, store(), Stored(parts), how.get("deterministic", False))
    return [[(visit.part.shard, visit.clips) for visit in epoch] for epoch in found]


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
        done.enter(
            Provenance(key=f"{n}", shard="a", index=n, epoch=epoch, ends_shard=n == 299)
            for n in range(300)
        )
    assert taught(done, store(), whole("b")) == [(2, "a", BitMap(range(270)))]


def test_what_a_store_does_not_take_is_taught_in_every_epoch() -> None:
    found = taught(Ledger(), store(writable=False), whole("b"))
    assert found == [(0, "a", BitMap()), (1, "a", BitMap()), (2, "a", BitMap())]


def test_epochs_are_read_in_the_order_of_their_visits() -> None:
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
