"""Converts records to Arrow tables and back: a column per field, arrays as raw bytes.

The targets of an `Example` lie in three columns for each teacher, `speech_logits`, `speech_kept`
and `speech_embedding`. No other module uses these names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa

from liser_dist.records import TEACHERS, Example, Labelled, Provenance, Row, Targets

_PLAIN = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_LABELLED = tuple(field.name for field in fields(Labelled))
_LOGITS = "_logits"


def schema_of(record: type[Provenance]) -> pa.Schema:
    """Return the columns of a record type, in the order of its fields."""
    return pa.schema(
        column
        for field in fields(record)
        for column in (
            _target_columns()
            if field.name == "targets"
            else [(field.name, _PLAIN.get(str(field.type), pa.binary()))]
        )
    )


def _target_columns() -> Iterator[tuple[str, pa.DataType]]:
    for teacher in TEACHERS:
        yield f"{teacher}{_LOGITS}", pa.binary()
        yield f"{teacher}_kept", pa.float64()
        yield f"{teacher}_embedding", pa.binary()


EXAMPLES = schema_of(Example)


def to_table(records: Sequence[Provenance], kind: type[Provenance]) -> pa.Table:
    """Return a row for each record; all records are of the given kind."""
    return pa.Table.from_pylist([_to_row(record) for record in records], schema=schema_of(kind))


def _to_row(record: Provenance) -> Row:
    row = record.to_row()
    if isinstance(record, Example):
        row |= {
            "waveform": record.waveform.tobytes(),
            "mel": record.mel.tobytes(),
            "faces": record.faces.tobytes(),
        }
        for teacher in TEACHERS:
            targets = record.targets_from(teacher)
            row[f"{teacher}{_LOGITS}"] = targets.logits.tobytes()
            row[f"{teacher}_kept"] = targets.mass
            row[f"{teacher}_embedding"] = targets.embedding.tobytes()
    return row


def to_examples(table: pa.Table) -> list[Example]:
    """Return the examples of a table, with the targets of every teacher that it has columns of."""
    teachers = [name.removesuffix(_LOGITS) for name in table.column_names if name.endswith(_LOGITS)]
    return [_to_example(row, teachers) for row in table.to_pylist()]


def _to_example(row: Row, teachers: Sequence[str]) -> Example:
    targets = {teacher: _to_targets(row, teacher) for teacher in teachers}
    return Example(
        **{name: row[name] for name in _LABELLED},
        waveform=np.frombuffer(row["waveform"], np.int16),
        mel=np.frombuffer(row["mel"], np.float16),
        faces=np.frombuffer(row["faces"], np.uint8),
        targets={teacher: given for teacher, given in targets.items() if given.given},
    )


def _to_targets(row: Row, teacher: str) -> Targets:
    return Targets(
        logits=np.frombuffer(row[f"{teacher}{_LOGITS}"], np.float16),
        mass=row[f"{teacher}_kept"],
        embedding=np.frombuffer(row[f"{teacher}_embedding"], np.float16),
    )
