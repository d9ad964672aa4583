"""Waiting for events, and which processes belong to a job."""

import pytest

from liser_dist.benchmarks.testbed.local_cluster import _belongs_to_job, wait_until


def test_waiting_ends_when_the_condition_holds() -> None:
    answers = iter([False, True])
    wait_until(lambda: next(answers), 10, "the second answer")


def test_an_event_that_does_not_happen_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"after waiting 0\.01 s for a miracle"):
        wait_until(lambda: False, 0.01, "a miracle")


@pytest.mark.parametrize(
    ("title", "belongs"),
    [
        ("ray::IDLE", False),
        ("ray::_StatsActor.run", False),
        ("/usr/lib/raylet --node_id=1", False),
        ("ray::MapWorker(MapBatches(Decode))", True),
        ("python jobs/distill.py spec.yaml", True),
        ("python -c from multiprocessing.forkserver import main; ['liser_dist.data']", True),
    ],
)
def test_a_process_of_a_job_is_told_from_those_of_ray(title: str, belongs: bool) -> None:
    assert _belongs_to_job(title) == belongs
