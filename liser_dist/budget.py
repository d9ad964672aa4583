"""When rejected clips mean that the data as a whole is broken."""

from __future__ import annotations

from liser_dist.errors import RejectionError
from liser_dist.ledger import Ledger
from liser_dist.spec import BudgetSpec


def require_within(budget: BudgetSpec, ledger: Ledger, at_the_end: bool) -> None:
    """Raise RejectionError, with a table of reasons, when too many clips were rejected.

    `at_the_end`: look at the share however few clips there were.
    """
    in_a_row, seen = ledger.rejected_in_a_row, ledger.total
    if in_a_row >= budget.max_rejected_in_a_row:
        raise RejectionError(
            f"{in_a_row} clips in a row were rejected, and `budget.max_rejected_in_a_row` is "
            f"{budget.max_rejected_in_a_row}; of {seen} clips so far:\n{_table(ledger)}\n"
            "look at the shards, or raise it"
        )
    share = ledger.rejected / max(1, seen)
    if (at_the_end or seen >= budget.after_clips) and share > budget.max_rejected_share:
        raise RejectionError(
            f"{share:.0%} of {seen} clips were rejected, and `budget.max_rejected_share` is "
            f"{budget.max_rejected_share:.0%}:\n{_table(ledger)}\nlook at the shards, or raise it"
        )


def _table(ledger: Ledger) -> str:
    """How many clips for each reason, and what was said of one."""
    return "\n".join(
        f"  {count:>8}  {reason:<14}  {ledger.examples.get(reason, '')[:120]}".rstrip()
        for reason, count in ledger.reasons().most_common()
    )
