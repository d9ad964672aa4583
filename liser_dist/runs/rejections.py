"""Records why clips were rejected, and ends a run that rejects too many.

The record is written in parts, one file with each checkpoint and named after it, such as
`rejections/step-00001200-a003.parquet`, so that rejections do not stay in memory. The checkpoint
lists all parts that belong to it: a resumed run continues that list, and at the end of the run the
parts of the last checkpoint become one file, `rejected.parquet`. Other parts belong to checkpoints
from which the run did not resume.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from liser_dist import storage
from liser_dist.config.distill import BudgetSpec
from liser_dist.errors import RejectionError
from liser_dist.runs.ledger import Ledger, Rejection

_FOLDER = "rejections"
_EARLIER_PART = re.compile(r"step-(\d{8,})\.parquet")
_SHARDS_IN_A_ROW = 3  # one bad shard, such as a film of music, must not end a long run
_PART_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "shard")]
    + [("index", pa.int64())]
    + [(name, pa.string()) for name in ("reason", "detail")]
)
_SCHEMA = pa.schema([("set", pa.string()), *_PART_SCHEMA])


def part_path(run: str, checkpoint: str) -> str:
    """Return the path of the part that comes with a checkpoint, given by its path."""
    return storage.join(run, _FOLDER, f"{checkpoint.rpartition('/')[2]}.parquet")


def write_part(run: str, checkpoint: str, rejections: Sequence[Rejection]) -> list[str]:
    """Write the rejections that come with a checkpoint, before it is committed.

    Returns:
        The name of the part; no name if there are no rejections.

    Raises:
        StorageError: The part cannot be written.
    """
    if not rejections:
        return []
    path = part_path(run, checkpoint)
    rows = [asdict(rejection) for rejection in rejections]
    storage.write_table(path, pa.Table.from_pylist(rows, schema=_PART_SCHEMA))
    return [path.rpartition("/")[2]]


def parts_of_earlier_version(run: str, step: int) -> list[str]:
    """Return the names of the parts up to a step, which an earlier version did not list."""
    folder = storage.join(run, _FOLDER)
    files = storage.list_files(folder, ".parquet") if storage.exists(folder) else []
    names = [file.place.rpartition("/")[2] for file in files]
    found = [match for name in names if (match := _EARLIER_PART.fullmatch(name))]
    return [match.group() for match in found if int(match.group(1)) <= step]


def _read_part(run: str, name: str) -> list[dict[str, Any]]:
    content = storage.read_bytes(storage.join(run, _FOLDER, name))
    return pq.read_table(io.BytesIO(content)).to_pylist()


def write_rejected(
    run: str,
    parts: Sequence[str],
    trained: Callable[[str, int], bool],
    labelled: Mapping[str, Iterable[Rejection]],
) -> None:
    """Write `rejected.parquet`, one row for each rejected clip.

    Args:
        run: The folder of the run.
        parts: Names of the parts of the run's last checkpoint.
        trained: Returns whether any epoch trained the unlabelled clip (shard, index) after all.
        labelled: Rejections of the labelled sets, by the name of the set.
    """
    content = io.BytesIO()
    with pq.ParquetWriter(content, _SCHEMA) as writer:
        for part in parts:
            rows = _read_part(run, part)
            never_trained = [row for row in rows if not trained(row["shard"], row["index"])]
            writer.write_table(_to_table("unlabelled", never_trained))
        for name, rejections in labelled.items():
            writer.write_table(_to_table(name, [asdict(rejection) for rejection in rejections]))
    storage.write_bytes(storage.join(run, "rejected.parquet"), content.getvalue())


def _to_table(set_name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"set": set_name, **row} for row in rows], schema=_SCHEMA)


def require_within(budget: BudgetSpec, ledger: Ledger, final: bool) -> None:
    """Check the rejected clips of a run against its budget.

    Args:
        budget: The limits.
        ledger: The clips trained and rejected so far.
        final: The run has seen all its clips: check the share however few clips there are.

    Raises:
        RejectionError: Too many clips were rejected. The message has a table of the reasons.
    """
    in_a_row, shards, total = ledger.rejected_in_a_row, ledger.shards_in_a_row, ledger.total
    if in_a_row >= budget.max_rejected_in_a_row and len(shards) >= _SHARDS_IN_A_ROW:
        raise RejectionError(
            f"{in_a_row} clips in a row, from {len(shards)} shards, were rejected, and "
            f"`budget.max_rejected_in_a_row` is {budget.max_rejected_in_a_row}. Rejected so far, "
            f"of {total} clips:\n"
            f"{_reason_table(ledger)}\ncheck the shards, or raise the limit"
        )
    share = ledger.rejected / max(1, total)
    if (final or total >= budget.after_clips) and share > budget.max_rejected_share:
        raise RejectionError(
            f"{share:.0%} of {total} clips were rejected, and `budget.max_rejected_share` is "
            f"{budget.max_rejected_share:.0%}:\n{_reason_table(ledger)}\n"
            "check the shards, or raise the limit"
        )


def _reason_table(ledger: Ledger) -> str:
    """Number of clips for each reason, with the detail of one of them."""
    return "\n".join(
        f"  {count:>8}  {reason:<14}  {ledger.examples.get(reason, '')[:120]}".rstrip()
        for reason, count in ledger.reasons().most_common()
    )
