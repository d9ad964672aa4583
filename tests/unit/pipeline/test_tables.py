"""Rows keep the columns that target stores of earlier versions were written with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from liser_dist.pipeline.store import SETTINGS_KEY, Part, TargetStore
from liser_dist.pipeline.tables import EXAMPLES, to_examples, to_table
from liser_dist.records import Example, Targets

STRING, INTEGER, FLOAT, BINARY = pa.string(), pa.int64(), pa.float64(), pa.binary()
COLUMNS = {
    "key": STRING, "shard": STRING, "index": INTEGER, "epoch": INTEGER, "reason": STRING,
    "detail": STRING, "ends_shard": pa.bool_(), "emotion": STRING, "speaker": STRING,
    "intensity": STRING, "waveform": BINARY, "mel": BINARY, "faces": BINARY,
    "speech_logits": BINARY, "speech_kept": FLOAT, "speech_embedding": BINARY,
    "face_logits": BINARY, "face_kept": FLOAT, "face_embedding": BINARY,
}  # fmt: skip
SHARD = "/data/a.tar"


def half(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


def row(index: int, **values: object) -> dict[str, object]:
    empty = {name: b"" if kind == BINARY else "" for name, kind in COLUMNS.items()}
    return empty | {
        "key": f"k{index}", "shard": SHARD, "index": index, "epoch": 0, "ends_shard": index == 1,
        "waveform": np.arange(4, dtype=np.int16).tobytes(), "speech_kept": 0.0, "face_kept": 0.0,
    } | values  # fmt: skip


ROWS = [
    row(0, speech_logits=half(1, 2), speech_kept=0.75, speech_embedding=half(3, 4, 5)),
    row(1, speech_embedding=half(6, 7, 8), face_logits=half(9, 10), face_kept=1.0, emotion="sad"),
]


def test_the_columns_of_examples_are_those_of_earlier_versions_in_their_order() -> None:
    assert EXAMPLES.equals(pa.schema(COLUMNS.items()))


def test_a_part_reads_back_and_is_written_alike(tmp_path: Path) -> None:
    store = TargetStore(str(tmp_path), 1, True, {SHARD: "v1"})
    part = Part(SHARD, "window-0", 0, 2, ends=True)
    place = Path(store.path_of(part))
    place.parent.mkdir()
    written = pa.Table.from_pylist(ROWS, schema=pa.schema(COLUMNS.items()))
    stored = written.replace_schema_metadata({SETTINGS_KEY: store.settings})
    pq.write_table(stored, place, row_group_size=32, write_page_checksum=True)
    first, second = store.read_shard([part])
    assert list(first.targets) == ["speech"]
    assert first.targets["speech"].logits.tolist() == [1, 2]
    assert first.targets["speech"].mass == 0.75
    assert first.targets["speech"].embedding.tolist() == [3, 4, 5]
    assert first.targets_from("face").logits.size == 0
    assert second.targets["speech"].embedding.tolist() == [6, 7, 8]
    assert second.targets["face"].logits.tolist() == [9, 10]
    assert (second.emotion, second.ends_shard) == ("sad", True)
    assert to_table([first, second], Example).equals(written)


def test_columns_of_a_further_teacher_are_read() -> None:
    table = pa.Table.from_pylist(ROWS, schema=pa.schema(COLUMNS.items()))
    for name, values in (
        ("logits", [half(1, 2)] * 2),
        ("kept", [0.5, 1.0]),
        ("embedding", [b""] * 2),
    ):
        table = table.append_column(f"text_{name}", [values])
    kept = [example.targets["text"].mass for example in to_examples(table)]
    assert kept == [0.5, 1.0]


def test_a_teacher_that_gave_nothing_is_absent() -> None:
    example = Example(key="k", shard=SHARD, index=0, epoch=0, targets={"face": Targets()})
    (again,) = to_examples(to_table([example], Example))
    assert again.targets == {}
