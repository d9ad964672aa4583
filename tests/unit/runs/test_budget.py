"""Data that is broken as a whole fails the job, with a table of reasons."""

import pytest

from liser_dist.config.distill import BudgetSpec
from liser_dist.errors import RejectionError
from liser_dist.records import Provenance, Reason
from liser_dist.runs.ledger import Ledger
from liser_dist.runs.rejections import require_within


def ledger_of(*reasons: str, shards: str = "a") -> Ledger:
    """A ledger of clips that come from these shards in turn."""
    ledger = Ledger()
    ledger.enter(
        Provenance(
            key=f"k{n}",
            shard=shards[n % len(shards)],
            index=n,
            epoch=0,
            reason=reason,
            detail="no moov",
        )
        for n, reason in enumerate(reasons)
    )
    return ledger


def test_a_share_within_the_budget_passes() -> None:
    require_within(BudgetSpec(), ledger_of("", "", Reason.EMPTY), final=True)


def test_the_share_is_looked_at_once_enough_clips_were_seen_or_in_the_end() -> None:
    budget = BudgetSpec(max_rejected_share=0.5, after_clips=4)
    bad = ledger_of(Reason.EMPTY, Reason.UNREADABLE, "")
    require_within(budget, bad, final=False)
    with pytest.raises(RejectionError, match="67% of 3 clips") as told:
        require_within(budget, bad, final=True)
    lines = str(told.value).splitlines()
    assert "budget.max_rejected_share" in lines[0]
    assert lines[1].split() == ["1", "empty", "k0:", "no", "moov"]
    assert lines[2].split()[:2] == ["1", "unreadable"]


def test_so_many_rejections_in_a_row_end_the_job_at_once() -> None:
    budget = BudgetSpec(max_rejected_share=1.0, max_rejected_in_a_row=3)
    require_within(budget, ledger_of(*[Reason.EMPTY] * 3, ""), final=False)
    with pytest.raises(RejectionError, match="3 clips in a row, from 3 shards"):
        require_within(budget, ledger_of("", *[Reason.EMPTY] * 3, shards="abc"), final=False)


def test_one_bad_shard_does_not_end_a_long_run() -> None:
    film_of_music = ledger_of("", *[Reason.NO_SPEECH] * 200)
    budget = BudgetSpec(max_rejected_share=1.0)
    require_within(budget, film_of_music, final=False)
    resumed = Ledger.from_json(film_of_music.to_json())
    require_within(budget, resumed, final=False)
    assert resumed.shards_in_a_row == {"a"}
