"""The ledger counts each clip once, however often it is entered."""

import json

from liser_dist.records import Provenance, Reason
from liser_dist.runs.ledger import Ledger


def row(
    index: int, epoch: int = 0, reason: str = "", shard: str = "a", ends_shard: bool = False
) -> Provenance:
    return Provenance(
        key=f"k{index}", shard=shard, index=index, epoch=epoch, reason=reason, ends_shard=ends_shard
    )


def filled() -> Ledger:
    ledger = Ledger()
    for epoch in range(3):
        ledger.enter(row(n, epoch) for n in range(5))
        ledger.enter([row(5, epoch, Reason.SILENT), row(0, epoch, shard="b", ends_shard=True)])
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


def test_a_clip_is_new_until_it_entered_and_once_among_rows() -> None:
    ledger = filled()
    rows = [row(0), row(9), row(9), row(9, epoch=1), row(5), row(0, shard="c")]
    assert ledger.are_new(rows) == [False, True, False, True, False, True]


def test_a_shard_is_complete_once_its_end_and_all_before_it_were_seen() -> None:
    ledger = Ledger()
    ledger.enter([row(0), row(2, ends_shard=True)])
    assert not ledger.complete(0, "a")
    ledger.enter([row(1, reason=Reason.SILENT)])
    assert ledger.complete(0, "a")
    assert not ledger.complete(1, "a")
    assert not filled().complete(0, "a")  # nobody has seen its end


def test_a_clip_that_some_epoch_trained_is_not_among_the_rejected() -> None:
    ledger = Ledger()
    ledger.enter([row(0, epoch=0), row(0, epoch=1, reason=Reason.TIMEOUT)])
    assert (ledger.total, ledger.trained, ledger.rejected) == (1, 1, 0)
    assert not ledger.reasons()


def test_why_a_clip_was_rejected_is_handed_out_once() -> None:
    ledger = filled()
    (why,) = ledger.take_rejections()
    assert (why.key, why.shard, why.index, why.reason) == ("k5", "a", 5, "silent")
    ledger.enter([row(5, epoch=3, reason=Reason.SILENT)])
    assert ledger.take_rejections() == []
    assert ledger.reasons() == {"silent": 1}


def test_rejections_in_a_row_are_counted_until_a_clip_is_trained() -> None:
    ledger = Ledger()
    ledger.enter(row(n, reason=Reason.EMPTY) for n in range(4))
    assert ledger.rejected_in_a_row == 4
    ledger.enter([row(4)])
    assert ledger.rejected_in_a_row == 0


def test_it_is_the_same_after_a_checkpoint() -> None:
    ledger = filled()
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again.to_json() == ledger.to_json()
    assert (again.total, again.trained, again.passes) == (7, 6, 21)
    assert again.complete(2, "b")
    assert again.reasons() == {"silent": 1}
