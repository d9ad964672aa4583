"""The ledger counts each clip once, however often it was seen."""

import json

from liser_dist.ledger import Ledger
from liser_dist.records import Provenance, Reason


def row(index: int, epoch: int = 0, reason: str = "", shard: str = "a") -> Provenance:
    return Provenance(key=f"k{index}", shard=shard, index=index, epoch=epoch, reason=reason)


def filled() -> Ledger:
    ledger = Ledger()
    for epoch in range(3):
        ledger.enter(row(n, epoch) for n in range(5))
        ledger.enter([row(5, epoch, Reason.SILENT), row(0, epoch, shard="b")])
    return ledger


def test_distinct_clips_and_passes_are_counted_apart() -> None:
    ledger = filled()
    assert (ledger.total, ledger.trained, ledger.rejected, ledger.passes) == (7, 6, 1, 21)
    assert ledger.total == ledger.trained + ledger.rejected


def test_a_clip_is_finished_in_its_own_epoch_alone() -> None:
    ledger = Ledger()
    ledger.enter([row(3, epoch=1), row(4, epoch=1, reason=Reason.CRASHED)])
    assert set(ledger.finished(1, "a")) == {3, 4}
    assert set(ledger.finished(0, "a")) == set(ledger.finished(1, "b")) == set()


def test_a_clip_that_some_epoch_trained_is_not_among_the_rejected() -> None:
    ledger = Ledger()
    ledger.enter([row(0, epoch=0), row(0, epoch=1, reason=Reason.TIMEOUT)])
    assert (ledger.total, ledger.trained, ledger.rejected) == (1, 1, 0)
    assert ledger.rejections() == []


def test_it_is_the_same_after_a_checkpoint() -> None:
    ledger = filled()
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again.to_json() == ledger.to_json()
    assert again.rejections() == ledger.rejections()
    assert again.rejections()[0].reason == "silent"
