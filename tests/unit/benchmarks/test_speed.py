"""Ratios are medians over rounds, and each is compared with its bound."""

import pytest

from liser_dist.benchmarks.speed import (
    BOUNDS,
    Ratios,
    Round,
    is_within_bound,
    limit_clips_per_s,
    median_ratios,
    ratio_table,
)
from liser_dist.benchmarks.stage_costs import StageCosts
from liser_dist.config.resources import ResourcesSpec

COSTS = StageCosts(decode_s=0.04, speech_s=0.02, face_s=0.03, student_s=0.01)


def result(job: float, normalised: float | None = None) -> Round:
    return Round(
        plain=10, plain_first_s=5, job=job, job_first_s=10, stored=100, three_epochs_s=20,
        plain_normalised=normalised and 20, job_normalised=normalised, cpu_s={},
    )  # fmt: skip


def test_the_limit_is_that_of_the_cpus_or_of_the_slower_devices() -> None:
    on_cpus = limit_clips_per_s(COSTS, ResourcesSpec(teacher_gpus=0))
    assert on_cpus * COSTS.total_s == pytest.approx(round(on_cpus * COSTS.total_s))
    one_gpu = ResourcesSpec(teacher_gpus=1, teachers=(1, 1))
    assert limit_clips_per_s(COSTS, one_gpu) == pytest.approx(min(1 / 0.05, on_cpus * 2))


def test_ratios_are_medians_over_the_rounds() -> None:
    rounds = [result(8, 18), result(9, 22), result(20, 10)]
    ratios = median_ratios(rounds, clips=100, limit=12, cold_first_s=15, growth=0.05)
    assert ratios.model_dump() == pytest.approx(
        {
            "steady_over_limit": 0.75,
            "steady_over_plain": 0.9,
            "steady_over_plain_normalised": 0.9,
            "first_step_over_plain": 2.0,
            "cold_first_step_over_plain": 3.0,
            "three_epochs_speedup": 1.5,
            "store_epoch_speedup": 100 / 9,
            "object_store_growth": 0.05,
        }
    )


def test_what_was_not_measured_is_shown_as_such_and_breaks_no_bound() -> None:
    ratios = median_ratios([result(9)], clips=100, limit=12, cold_first_s=15, growth=None)
    assert ratios.steady_over_plain_normalised is None
    assert is_within_bound("object_store_growth", None)
    table = ratio_table(ratios)
    assert list(table.columns[1].cells).count("-") == 2
    assert list(table.columns[3].cells).count("no") == 3


def test_every_bound_is_of_a_ratio() -> None:
    assert set(BOUNDS) < set(Ratios.model_fields)
    assert is_within_bound("first_step_over_plain", 3.0)
    assert not is_within_bound("first_step_over_plain", 3.1)
    assert is_within_bound("store_epoch_speedup", 10.0)
    assert not is_within_bound("store_epoch_speedup", 9.9)
