"""A run keeps the teachers with which it started, or is not resumed."""

from pathlib import Path

import pytest

from liser_dist.config.teachers import TeacherIdentity
from liser_dist.errors import CheckpointError
from liser_dist.runs.folder import TEACHERS, teachers_at_start


def of_file(digest: str) -> TeacherIdentity:
    return TeacherIdentity(kind="onnx", model="/models/face.onnx", digest=digest * 64)


def of_hub(commit: str) -> TeacherIdentity:
    return TeacherIdentity(kind="huggingface", model="org/net", commit=commit * 40)


MOCK = TeacherIdentity(kind="mock")


def test_the_teachers_of_a_new_run_are_recorded(tmp_path: Path) -> None:
    planned = {"speech": MOCK, "face": of_file("a")}
    assert teachers_at_start(str(tmp_path), planned) == planned
    assert (tmp_path / TEACHERS).is_file()
    assert teachers_at_start(str(tmp_path), planned) == planned


def test_a_run_whose_teacher_was_replaced_is_refused(tmp_path: Path) -> None:
    teachers_at_start(str(tmp_path), {"speech": MOCK, "face": of_file("a")})
    with pytest.raises(CheckpointError) as caught:
        teachers_at_start(str(tmp_path), {"speech": MOCK, "face": of_file("b")})
    message = str(caught.value)
    for part in ("`teachers.face`", "/models/face.onnx", str(tmp_path), "a" * 12, "b" * 12,
                 "put the files back to resume, or give another `name`"):  # fmt: skip
        assert part in message
    assert "\n" not in message
    back = {"speech": MOCK, "face": of_file("a")}
    assert teachers_at_start(str(tmp_path), back) == back


def test_a_run_keeps_the_commit_of_a_hub_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teachers_at_start(str(tmp_path), {"speech": of_hub("1")})
    assert teachers_at_start(str(tmp_path), {"speech": of_hub("2")}) == {"speech": of_hub("1")}
    assert "keeps using " + "1" * 40 in caplog.text


def test_a_hub_model_is_not_exchanged_for_a_folder(tmp_path: Path) -> None:
    teachers_at_start(str(tmp_path), {"speech": of_hub("1")})
    with pytest.raises(CheckpointError, match=r"`teachers.speech`"):
        teachers_at_start(str(tmp_path), {"speech": of_file("a")})
