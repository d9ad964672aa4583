"""What a run leaves behind for people and programs: `result.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.errors import CheckpointError
from liser_dist.fields import first_mistake
from liser_dist.runs import RESULT

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def read_record(place: str, kind: type[R]) -> R:
    """Raises CheckpointError where it is not what this version writes; StorageError."""
    return _read(place, TypeAdapter(kind))


def read_rows(place: str, kind: type[R]) -> list[R]:
    """What `write_rows` wrote; none where there is no such file. Raises as `read_record`."""
    return _read(place, TypeAdapter(list[kind])) if storage.exists(place) else []  # type: ignore[valid-type]


def _read(place: str, kind: TypeAdapter[T]) -> T:
    try:
        return kind.validate_json(storage.read_bytes(place))
    except ValidationError as error:
        raise CheckpointError(
            f"{place} is of another version of this tool ({first_mistake(error)}): use that one"
        ) from error


def write_rows(file: Path, rows: Iterable[Record]) -> None:
    """Measurements, as a list in a JSON file."""
    file.write_text(json.dumps([row.model_dump() for row in rows], indent=1))


class ClipCounts(Record):
    """Distinct unlabelled clips; labelled ones and repeats by epoch are counted apart."""

    total: int
    trained: int
    rejected: int
    passes: int  # trained or rejected, once an epoch
    taught: int  # of the passes, those for which teachers were asked, and no store
    unsure: int  # of the passes, those that no teacher was sure enough of: `loss.min_confidence`
    differing: int  # of the passes, those of which the teachers said different emotions
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

    @property
    def numbers(self) -> dict[str, float]:
        """Every score there is: `test/WHO_uar`, and war, macro_f1."""
        scored: dict[str, StudentScores | TeacherScores | None] = {
            "student": self.student,
            "label_only": self.label_only,
            **self.comparisons,
            "speech_teacher": self.speech_teacher,
            "face_teacher": self.face_teacher,
        }
        return {
            f"test/{who}_{score}": value
            for who, scores in scored.items()
            for score in ("uar", "war", "macro_f1")
            if (value := getattr(scores, score, None)) is not None
        }


def write_result(run: str, result: DistillResult) -> str:
    place = storage.join(run, RESULT)
    storage.write_bytes(place, result.model_dump_json(indent=1).encode())
    return place
