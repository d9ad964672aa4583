"""A LiserError is unwrapped from the errors of Ray around it."""

import ray.exceptions

from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.errors import ShardError

OURS = ShardError("the shard a.tar was replaced")


class WorkerGroupError(Exception):
    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


def chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_of_ours_stays_itself() -> None:
    assert unwrap_ray_error(OURS) is OURS


def test_the_error_of_a_task_is_found_in_both_forms_that_ray_raises() -> None:
    task_error = ray.exceptions.RayTaskError("read", "a traceback", OURS)
    assert unwrap_ray_error(task_error) is OURS
    assert unwrap_ray_error(task_error.as_instanceof_cause()) is OURS


def test_the_error_of_a_train_worker_is_found_below_other_errors() -> None:
    failures = {0: RuntimeError("the process group is gone"), 1: chained(RuntimeError("x"), OURS)}
    assert unwrap_ray_error(chained(RuntimeError("y"), WorkerGroupError(failures))) is OURS


def test_other_errors_are_returned_as_they_are_even_in_a_circle() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert unwrap_ray_error(first) is first
