"""Why clips were rejected, as Parquet: a part with each checkpoint, and one file at the end.

Parts keep a run's memory free of them, and a run that goes on from a checkpoint has the parts up to
it: `rejections/step-00001200.parquet`, then `rejected.parquet`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from liser_dist import storage
from liser_dist.ledger import Rejection

_LINE = pa.schema(
    [(name, pa.string()) for name in ("key", "shard")]
    + [("index", pa.int64())]
    + [(name, pa.string()) for name in ("reason", "detail")]
)
_SCHEMA = pa.schema([("set", pa.string()), *_LINE])


def part_place(run: str, step: int) -> str:
    return storage.join(run, "rejections", f"step-{step:08d}.parquet")


def write_part(run: str, step: int, rejections: Sequence[Rejection]) -> None:
    """Those that came with a checkpoint, before it is committed. Raises StorageError."""
    if rejections:
        table = pa.Table.from_pylist([asdict(why) for why in rejections], schema=_LINE)
        storage.write_table(part_place(run, step), table)


def _parts(run: str) -> list[str]:
    folder = storage.join(run, "rejections")
    if not storage.exists(folder):
        return []
    return [file.place for file in storage.list_files(folder, ".parquet")]


def forget_after(run: str, step: int) -> None:
    """Remove the parts of later steps than the one from which a run goes on."""
    for part in _parts(run):
        if part.rpartition("/")[2] > part_place(run, step).rpartition("/")[2]:
            storage.remove(part)


def _lines(run: str) -> Iterator[list[dict[str, Any]]]:
    for part in _parts(run):
        yield pq.read_table(io.BytesIO(storage.read_bytes(part))).to_pylist()


def write_rejected(
    run: str,
    trained: Callable[[str, int], bool],
    labelled: Mapping[str, Iterable[Rejection]],
) -> None:
    """`rejected.parquet`: a line a rejected clip, of each set of shards.

    `trained`: whether some epoch trained the unlabelled clip (shard, index) after all.
    """
    content = io.BytesIO()
    with pq.ParquetWriter(content, _SCHEMA) as writer:
        for lines in _lines(run):
            kept = [line for line in lines if not trained(line["shard"], line["index"])]
            writer.write_table(_table("unlabelled", kept))
        for name, rejections in labelled.items():
            writer.write_table(_table(name, [asdict(why) for why in rejections]))
    storage.write_bytes(storage.join(run, "rejected.parquet"), content.getvalue())


def _table(name: str, lines: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"set": name, **line} for line in lines], schema=_SCHEMA)
