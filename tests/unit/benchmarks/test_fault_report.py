"""A part of the faults benchmark that fails is listed, and the job is checked first."""

import random
from pathlib import Path

import pytest

from liser_dist.benchmarks.fault_report import (
    _listing_failures,
    fault_table,
    measure_fault_tolerance,
)
from liser_dist.benchmarks.fault_runs import FaultRow, _draw_moments
from liser_dist.benchmarks.job_runs import BenchmarkJob
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import SpecError


def test_what_fails_is_listed_and_the_rest_still_runs(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[str] = []
    for name, error in (("first", TimeoutError("late")), ("second", None)):
        with _listing_failures(name, failed):
            if error is not None:
                raise error
    assert failed == ["first"]
    assert "the measurement `first` failed: late" in caplog.text


def test_a_job_whose_student_does_not_count_is_refused(tmp_path: Path) -> None:
    spec = {"name": "x", "data": {"unlabelled": "c"}, "teachers": {"speech": {"kind": "mock"}}}
    with pytest.raises(SpecError, match=r"student\.kind: counting"):
        measure_fault_tolerance(BenchmarkJob(DistillSpec.model_validate(spec)), tmp_path)


def test_the_table_shows_what_was_left_behind() -> None:
    row = FaultRow(
        fault="node lost", injected_at=8, recovered_s=1.25, total=10, trained_once=10, lost=0,
        twice=0, rejected=0, left_behind=["ray::Decode"],
    )  # fmt: skip
    table = fault_table([row])
    assert [next(iter(column.cells)) for column in table.columns] == [
        "node lost", "8", "1.2 s", "10", "10", "0", "0", "ray::Decode",
    ]  # fmt: skip


def test_faults_are_injected_in_the_first_half_in_order() -> None:
    moments = _draw_moments(40, 5, random.Random(0))
    assert moments == sorted(moments)
    assert all(1 <= moment <= 20 for moment in moments)
