"""Writes and reads the result of a run, `result.json`, and other records in JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.config.base import Record, first_mistake
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.errors import CheckpointError
from liser_dist.runs.folder import RESULT

AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
_T = TypeVar("_T")


def read_record(path: str, kind: type[AnyRecord]) -> AnyRecord:
    """Read a JSON file that holds one record.

    Raises:
        CheckpointError: The file does not hold what this version writes.
        StorageError: The file cannot be read.
    """
    return _read(path, TypeAdapter(kind))


def read_rows(path: str, kind: type[AnyRecord]) -> list[AnyRecord]:
    """Read the file that `write_rows` wrote; empty if there is no such file.

    Raises:
        CheckpointError: The file does not hold what this version writes.
        StorageError: The file cannot be read.
    """
    return _read(path, TypeAdapter(list[kind])) if storage.exists(path) else []  # type: ignore[valid-type]


def _read(path: str, kind: TypeAdapter[_T]) -> _T:
    try:
        return kind.validate_json(storage.read_bytes(path))
    except ValidationError as error:
        raise CheckpointError(
            f"{path} was written by another version of liser_dist ({first_mistake(error)}) and "
            "cannot be read by this one: install the version that wrote it, or run the job again"
        ) from error


def write_rows(file: Path, rows: Iterable[Record]) -> None:
    """Write measurements as a list in a JSON file."""
    file.write_text(json.dumps([row.model_dump() for row in rows], indent=1))


class RunClipCounts(Record):
    """Number of clips in a run: distinct unlabelled ones, passes over them, and labelled ones."""

    total: int
    trained: int
    rejected: int
    passes: int  # trained or rejected, counted once per epoch
    taught: int  # passes whose targets were computed, not read from the target store
    unsure: int  # passes for which no teacher reached `loss.min_confidence`
    # Passes for which both teachers predicted an emotion that both know; None: not counted.
    compared: int | None = None
    differing: int  # those of them for which the teachers predicted different emotions
    labelled: int  # of all labelled sets, those that were used
    labelled_by_set: dict[str, int] = Field(default_factory=dict)  # the same, by set
    labelled_rejected: int
    labelled_left_out: dict[str, int] = Field(default_factory=dict)  # not in `emotions`, by emotion


class Seconds(Record):
    """Wall-clock times of a run."""

    to_first_step: float  # from the start of the job
    training: float  # from the first step to the last
    total: float


class StudentScores(Record):
    """Scores of one student on `data.test`; None if there is no test set."""

    params: int
    learning_rate: float
    uar: float | None = None
    war: float | None = None
    macro_f1: float | None = None


class TeacherScores(Record):
    """Scores of one teacher, on the clips of `data.test` for which it has targets."""

    uar: float
    war: float
    macro_f1: float
    clips: int


class DistillResult(Record):
    """The result of a distillation, `result.json`."""

    name: str
    seed: int
    clips: RunClipCounts
    steps: int
    seconds: Seconds
    clips_per_s: float
    data_wait_share: float
    student: StudentScores
    label_only: StudentScores | None = None
    comparisons: dict[str, StudentScores] = Field(default_factory=dict)
    speech_teacher: TeacherScores | None = None
    face_teacher: TeacherScores | None = None
    teachers: dict[str, TeacherIdentity] = Field(default_factory=dict)  # by name, the weights used
    # By teacher and emotion: share of the passes with its targets that it gave this emotion.
    teacher_shares: dict[str, dict[str, float]] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)  # why the scores say less than it seems
    checkpoint: str
    spec_hash: str

    @property
    def numbers(self) -> dict[str, float]:
        """All known scores, as `test/MODEL_uar`, `test/MODEL_war` and `test/MODEL_macro_f1`."""
        scored: dict[str, StudentScores | TeacherScores | None] = {
            "student": self.student,
            "label_only": self.label_only,
            **self.comparisons,
            "speech_teacher": self.speech_teacher,
            "face_teacher": self.face_teacher,
        }
        return {
            f"test/{model}_{name}": value
            for model, scores in scored.items()
            if scores is not None
            for name, value in _known_scores(scores).items()
        }


def _known_scores(scores: StudentScores | TeacherScores) -> dict[str, float]:
    named = {"uar": scores.uar, "war": scores.war, "macro_f1": scores.macro_f1}
    return {name: value for name, value in named.items() if value is not None}


def write_result(run: str, result: DistillResult) -> str:
    """Write the result of a run, which marks the run as finished; returns the file's path.

    Raises:
        StorageError: The file cannot be written.
    """
    path = storage.join(run, RESULT)
    storage.write_bytes(path, result.model_dump_json(indent=1).encode())
    return path
