"""Records <-> Arrow tables: one column a field, arrays and bytes as binary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pyarrow as pa

from liser_dist.records import Example, Provenance

_PLAIN = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def schema_of(record: type[Provenance]) -> pa.Schema:
    return pa.schema(
        (field.name, _PLAIN.get(str(field.type), pa.binary())) for field in fields(record)
    )


EXAMPLES = schema_of(Example)


def to_table(records: Sequence[Provenance], kind: type[Provenance]) -> pa.Table:
    return pa.Table.from_pylist([record.to_row() for record in records], schema=schema_of(kind))


def to_examples(table: pa.Table) -> list[Example]:
    return [Example.from_row(row) for row in table.to_pylist()]
