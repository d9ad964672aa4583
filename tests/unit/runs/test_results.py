"""Results and measurements are read as they were written, or refused with the field named."""

import json
from pathlib import Path

import pytest

from liser_dist.config.teachers import TeacherIdentity
from liser_dist.errors import CheckpointError
from liser_dist.runs.results import (
    DistillResult,
    RunClipCounts,
    Seconds,
    StudentScores,
    TeacherScores,
    read_record,
    read_rows,
    write_result,
    write_rows,
)

RESULT = DistillResult(
    name="a", seed=0, steps=4, clips_per_s=1.0, data_wait_share=0.5, checkpoint="c", spec_hash="h",
    clips=RunClipCounts(
        total=2, trained=1, rejected=1, passes=2, taught=2, unsure=0, differing=0, labelled=0,
        labelled_rejected=0,
    ),
    seconds=Seconds(to_first_step=1.0, training=2.0, total=3.0),
    student=StudentScores(params=10, learning_rate=0.1, uar=0.5, war=0.25),
    comparisons={"speech_only": StudentScores(params=10, learning_rate=0.1, macro_f1=0.75)},
    face_teacher=TeacherScores(uar=0.1, war=0.2, macro_f1=0.3, clips=1),
)  # fmt: skip


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_result(str(tmp_path), RESULT)
    assert path == str(tmp_path / "result.json")
    assert read_record(path, DistillResult) == RESULT


def test_a_result_names_its_teachers_and_one_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    speech = TeacherIdentity(kind="huggingface", model="org/net", revision="v1", commit="1" * 40)
    path = Path(write_result(str(tmp_path), RESULT.model_copy(update={"teachers": {"a": speech}})))
    assert read_record(str(path), DistillResult).teachers == {"a": speech}
    content = json.loads(path.read_text())
    del content["teachers"]
    path.write_text(json.dumps(content))
    assert read_record(str(path), DistillResult).teachers == {}


def test_only_known_scores_are_logged() -> None:
    assert RESULT.numbers == {
        "test/student_uar": 0.5,
        "test/student_war": 0.25,
        "test/speech_only_macro_f1": 0.75,
        "test/face_teacher_uar": 0.1,
        "test/face_teacher_war": 0.2,
        "test/face_teacher_macro_f1": 0.3,
    }


def test_a_result_of_another_version_is_refused_with_the_field(tmp_path: Path) -> None:
    path = Path(write_result(str(tmp_path), RESULT))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loudness": 3}))
    with pytest.raises(CheckpointError, match=r"another version of liser_dist \(`loudness`"):
        read_record(str(path), DistillResult)


def test_rows_are_read_as_they_were_written_and_none_without_a_file(tmp_path: Path) -> None:
    rows = [Seconds(to_first_step=n, training=n, total=n) for n in (1.0, 2.0)]
    write_rows(tmp_path / "rows.json", rows)
    assert read_rows(str(tmp_path / "rows.json"), Seconds) == rows
    assert read_rows(str(tmp_path / "other.json"), Seconds) == []
