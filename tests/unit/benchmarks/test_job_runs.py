"""Variants of a benchmark's job, and measurements in processes of their own."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from liser_dist.benchmarks.job_runs import BenchmarkJob, read_measurement_command
from liser_dist.config.distill import DataSpec, DistillSpec
from liser_dist.data.shards import write_shards


@pytest.fixture
def job() -> BenchmarkJob:
    spec = {
        "name": "small",
        "data": {"unlabelled": "clips", "labelled": "labelled"},
        "teachers": {"speech": {"kind": "mock"}, "face": {"kind": "mock"}},
        "student": {"kind": "cnn", "width": 16},
        "train": {"epochs": 2, "batch_size": 8},
    }
    return BenchmarkJob(DistillSpec.model_validate(spec))


def test_a_mapping_updates_a_section_and_any_other_value_replaces_the_field(
    job: BenchmarkJob,
) -> None:
    changed = job.variant(
        train={"epochs": 5}, data=DataSpec(unlabelled="others"), teachers={"face": None}, seed=3
    ).spec
    assert (changed.train.epochs, changed.train.batch_size) == (5, 8)
    assert (changed.data.unlabelled, changed.data.labelled) == ("others", None)
    assert changed.teachers.face is None
    assert changed.teachers.speech == job.spec.teachers.speech
    assert changed.seed == 3
    assert job.spec.train.epochs == 2


def test_a_variant_without_changes_is_the_same_job(job: BenchmarkJob) -> None:
    assert job.variant() == job


def test_a_counting_variant_drops_the_settings_of_the_former_student(job: BenchmarkJob) -> None:
    counting = job.counting(train={"workers": 2})
    assert counting.spec.student.kind == "counting"
    assert counting.spec.train.workers == 2


def test_a_variant_is_validated(job: BenchmarkJob) -> None:
    with pytest.raises(ValidationError, match="epochs"):
        job.variant(train={"epochs": 0})


def test_the_clips_of_the_unlabelled_shards_are_counted(job: BenchmarkJob, tmp_path: Path) -> None:
    write_shards(((f"clip-{n}", b"video", {}) for n in range(5)), str(tmp_path), 2)
    assert job.variant(data={"unlabelled": str(tmp_path)}).count_clips() == 5


def test_a_measurement_reads_the_job_that_was_written_for_it(
    job: BenchmarkJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, measured = tmp_path / "spec.json", tmp_path / "measured.json"
    spec.write_text(job.spec.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["module", str(spec), "L4", "8", str(measured)])
    assert read_measurement_command() == (job, ["L4", "8"], measured)
