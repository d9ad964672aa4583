"""What a run leaves behind for people and programs: `result.json` and `rejected.parquet`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from liser_dist import storage
from liser_dist.ledger import Rejection
from liser_dist.spec import DistillSpec


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClipCounts(Record):
    """Distinct unlabelled clips; labelled ones and repeats by epoch are counted apart."""

    total: int
    trained: int
    rejected: int
    passes: int  # trained or rejected, once an epoch
    labelled: int
    labelled_rejected: int


class Seconds(Record):
    to_first_step: float  # from the start of the job
    training: float  # from the first step to the last
    total: float


class StudentScores(Record):
    """On `data.test`; scores are absent where there is none."""

    params: int
    learning_rate: float
    uar: float | None = None
    war: float | None = None
    macro_f1: float | None = None


class TeacherScores(Record):
    """On the clips of `data.test` of which the teacher said something."""

    uar: float
    war: float
    macro_f1: float
    clips: int


class DistillResult(Record):
    name: str
    seed: int
    clips: ClipCounts
    steps: int
    seconds: Seconds
    clips_per_s: float
    data_wait_share: float
    student: StudentScores
    label_only: StudentScores | None = None
    comparisons: dict[str, StudentScores] = {}
    speech_teacher: TeacherScores | None = None
    face_teacher: TeacherScores | None = None
    checkpoint: str
    spec_hash: str


def new_run(spec: DistillSpec) -> str:
    """Claim the place of a run that is about to begin: the next number under its name."""
    folder = storage.join(spec.output, spec.name)
    taken = [int(entry) for entry in storage.list_folders(folder) if entry.isdigit()]
    place = storage.join(folder, f"{max(taken, default=0) + 1:03d}")
    if not storage.claim(place):
        return new_run(spec)  # another job was faster
    content = spec.model_dump_json(indent=1).encode()
    storage.write_bytes(storage.join(place, "spec.json"), content)
    return place


def write_result(run: str, result: DistillResult) -> str:
    place = storage.join(run, "result.json")
    storage.write_bytes(place, result.model_dump_json(indent=1).encode())
    return place


def write_rejected(run: str, rejected: Mapping[str, Sequence[Rejection]]) -> None:
    """One line a rejected clip, of each set of shards: unlabelled, labelled, validation, test."""
    lines = [{"set": name, **asdict(why)} for name, found in rejected.items() for why in found]
    schema = pa.schema(
        [(name, pa.string()) for name in ("set", "key", "shard")]
        + [("index", pa.int64())]
        + [(name, pa.string()) for name in ("reason", "detail")]
    )
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), content)
    storage.write_bytes(storage.join(run, "rejected.parquet"), content.getvalue())
