"""Spec classes describe their fields: descriptions, marks and removed fields."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from liser_dist.config.base import (
    FieldMark,
    Spec,
    differences,
    fields_of,
    leaves,
    marked_fields,
    may_change_on_resume,
    removed_from,
    sections_of,
    without_removed,
)
from liser_dist.config.distill import DistillSpec
from liser_dist.config.evaluate import FOLDS, EvaluateSpec
from liser_dist.config.export import ExportSpec
from liser_dist.config.ingest import IngestSpec
from liser_dist.config.student import EmotionStudent
from liser_dist.config.study import StudySpec
from liser_dist.config.train_teacher import TrainTeacherSpec
from liser_dist.data.public_corpora import fold_of_speaker

JOBS: list[type[Spec]] = [
    DistillSpec, StudySpec, IngestSpec, TrainTeacherSpec, EvaluateSpec, ExportSpec,
]  # fmt: skip
SPEC: dict[str, Any] = {
    "name": "a-job",
    "data": {"unlabelled": "shards"},
    "teachers": {"speech": {"kind": "mock"}},
}
RESOURCES = {"resources.cluster", "resources.costs"}
SETS = {"data.unlabelled", "data.labelled", "data.validation", "data.test"}


@pytest.mark.parametrize(
    ("kind", "places", "files"),
    [
        (
            StudySpec,
            {"start_from", "output", "targets.store"} | SETS | RESOURCES,
            {"clip.face_detector", "teachers.speech.model", "teachers.face.model"},
        ),
        (IngestSpec, {"source", "output", "resources.cluster"}, {"face.detector"}),
        (
            TrainTeacherSpec,
            {"output"} | (SETS - {"data.unlabelled"}) | RESOURCES,
            {"clip.face_detector", "backbone"},
        ),
        (
            EvaluateSpec,
            {"output", "data.labelled"} | RESOURCES,
            {"clip.face_detector", "model.model"},
        ),
        (ExportSpec, {"checkpoint", "output", "data.clips", "data.labelled"}, set()),
    ],
)
def test_these_fields_are_made_absolute(
    kind: type[Spec], places: set[str], files: set[str]
) -> None:
    assert marked_fields(kind, FieldMark.ABSOLUTE) == places
    assert marked_fields(kind, FieldMark.ABSOLUTE_IF_FILE) == files


def test_paths_at_any_depth_are_made_absolute_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net").mkdir()
    teacher = {"kind": "huggingface", "model": "net", "labels": {"test": "happy"}}
    other = {"kind": "huggingface", "model": "owner/net"}
    resources = {"cluster": "cluster.yaml", "costs": "s3://bucket/costs.yaml"}
    content = SPEC | {
        "teachers": {"speech": teacher, "face": other},
        "resources": resources,
        "synthetic": {"place": "here"},
        "targets": {"store": "off"},
    }
    before = DistillSpec.model_validate(content)
    after = before.with_absolute_places()
    changed = {
        field: value
        for field, _, value in differences(before.model_dump(), after.model_dump())
        if not field.startswith("data.")
    }
    assert changed == {
        "output": str(tmp_path / "runs"),
        "resources.cluster": str(tmp_path / "cluster.yaml"),
        "teachers.speech.model": str(tmp_path / "net"),
    }
    assert after.with_absolute_places() == after


def test_these_fields_may_be_changed_before_a_run_is_resumed() -> None:
    distil = {
        "output", "resources", "budget", "track", "targets.store", "train.workers",
        "train.resize_every_s", "train.max_failures", "train.checkpoint_every",
        "train.checkpoint_every_s", "train.keep",
    }  # fmt: skip
    study = {"study.cell_cpus", "study.resamples"}
    assert marked_fields(DistillSpec, FieldMark.RESUMABLE) == distil
    assert marked_fields(StudySpec, FieldMark.RESUMABLE) == distil | study
    assert may_change_on_resume(StudySpec, "resources.pools.decoders")
    assert may_change_on_resume(StudySpec, "resources.reader_cpus")
    assert not may_change_on_resume(StudySpec, "train.epochs")
    assert not may_change_on_resume(DistillSpec, "study.resamples")
    assert not may_change_on_resume(StudySpec, "targets.windows")


@pytest.mark.parametrize("kind", JOBS)
def test_every_field_is_described_in_a_sentence(kind: type[Spec]) -> None:
    for name, field in fields_of(kind):
        described = field.description or ""
        if not sections_of(field) or described:
            assert described, name
            assert described[0].isupper() or described[0] == "`", name
            assert described.endswith("."), name
        for section in sections_of(field):
            assert section.__doc__, name


def test_what_was_removed_is_not_among_the_fields_and_their_values() -> None:
    for kind in JOBS:
        fields = dict(fields_of(kind))
        for entry in removed_from(kind):
            name, _, value = entry.partition(": ")
            if value:
                assert value not in get_args(fields[name].annotation)
            else:
                assert name not in fields


def test_a_saved_spec_is_split_into_what_is_known_and_what_was_removed() -> None:
    saved = SPEC | {
        "resources": {"readers": 3, "reader_cpus": 0.5},
        "loss": {"fusion": "product", "balance": "none"},
    }
    known, removed = without_removed(DistillSpec, saved)
    assert removed == {"resources.reader_cpus": 0.5, "loss.fusion": "product"}
    assert known == SPEC | {"resources": {"readers": 3}, "loss": {"balance": "none"}}
    assert DistillSpec.from_saved(json.dumps(saved)).resources.readers == 3


def test_differences_name_the_innermost_fields() -> None:
    first, second = {"a": {"b": 1, "c": 2}, "d": {}}, {"a": {"b": 1, "c": 3}, "e": None}
    assert dict(leaves(first)) == {"a.b": 1, "a.c": 2, "d": {}}
    assert list(differences(first, second)) == [("a.c", 2, 3), ("d", {}, None)]


def test_each_student_says_whether_it_answers_and_how_it_is_quantised() -> None:
    (field,) = (field for name, field in fields_of(DistillSpec) if name == "student")
    emotions = get_args(EmotionStudent)
    for section in sections_of(field):
        assert section.__dict__["answers"] == (section in emotions)
    assert all(student.quantisation in ("static", "dynamic") for student in emotions)


def test_the_number_of_folds_is_that_of_the_corpora() -> None:
    speakers = {
        "ravdess": [f"ravdess-{n:02d}" for n in range(1, 25)],
        "cremad": [f"cremad-{n}" for n in range(1001, 1092)],
    }
    for corpus, count in FOLDS.items():
        assert {fold_of_speaker(name) for name in speakers[corpus]} == {*range(1, count + 1)}
