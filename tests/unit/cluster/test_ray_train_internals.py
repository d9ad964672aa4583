"""A group of workers is resized once it has saved; only failures without progress count."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.controller import controller
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from liser_dist.cluster.ray_train_internals import (
    FollowRoomPolicy,
    ProgressFailurePolicy,
    hide_user_errors,
)
from liser_dist.errors import StorageError


class Checkpoints:
    """The checkpoints of a run whose workers save when they are told to."""

    def __init__(self) -> None:
        self.committed, self.requests, self.pending = 0, 0, False
        self.done = 0

    def passes(self) -> int:
        return self.committed

    def trained(self) -> int:
        return self.done

    def request(self) -> None:
        self.requests, self.pending = self.requests + 1, True

    def awaited(self) -> bool:
        return self.pending

    def commit(self, passes: int) -> None:
        self.committed, self.pending = passes, False


class OnPaper(FollowRoomPolicy):
    """The policy on a cluster that exists on paper."""

    room = 2

    def _maybe_send_resource_request(self) -> None:
        pass

    def _get_reserved_resources(self) -> Any:
        return {"node": {"CPU": float(self.room)}}


@pytest.fixture
def policy() -> OnPaper:
    scaling = ScalingConfig(
        num_workers=(1, 8), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0.0
    )
    return OnPaper(scaling, lambda: 2, Checkpoints())


def decide(policy: OnPaper, start_time: float, workers: int) -> Any:
    group = SimpleNamespace(start_time=start_time, num_workers=workers)
    return policy.make_decision_for_running_worker_group(group, None)


def test_a_group_is_replaced_only_once_it_has_saved(policy: OnPaper) -> None:
    checkpoints = policy._checkpoints
    assert isinstance(checkpoints, Checkpoints)
    assert isinstance(decide(policy, 0.0, 2), NoopDecision)
    assert checkpoints.requests == 0
    policy.room = 4
    assert isinstance(decide(policy, 0.0, 2), NoopDecision)
    assert checkpoints.requests == 1
    policy.room = 5  # a node more while the workers save
    checkpoints.commit(8)
    resize = decide(policy, 0.0, 2)
    assert isinstance(resize, ResizeDecision)
    assert resize.num_workers == 5
    policy.room = 6
    assert isinstance(decide(policy, 1.0, 5), NoopDecision)  # the next group has not saved yet
    assert checkpoints.requests == 2


def test_a_node_that_left_while_the_group_saved_changes_nothing(policy: OnPaper) -> None:
    checkpoints = policy._checkpoints
    assert isinstance(checkpoints, Checkpoints)
    policy.room = 4
    decide(policy, 0.0, 2)
    policy.room = 2
    checkpoints.commit(8)
    assert isinstance(decide(policy, 0.0, 2), NoopDecision)


def test_a_request_is_not_repeated(policy: OnPaper) -> None:
    checkpoints = policy._checkpoints
    assert isinstance(checkpoints, Checkpoints)
    policy.room = 4
    for _ in range(3):  # a checkpoint that takes longer to write than the time between two looks
        assert isinstance(decide(policy, 0.0, 2), NoopDecision)
    assert checkpoints.requests == 1
    checkpoints.commit(8)
    assert isinstance(decide(policy, 0.0, 2), ResizeDecision)


def test_a_group_that_trains_nothing_gives_its_room_to_lost_decoders(policy: OnPaper) -> None:
    checkpoints = policy._checkpoints
    assert isinstance(checkpoints, Checkpoints)
    policy.room = 2  # the node of the decoders is lost, which now need the CPUs of two workers
    assert isinstance(decide(policy, 0.0, 4), NoopDecision)
    checkpoints.done = 8  # a step with what was decoded before
    assert isinstance(decide(policy, 0.0, 4), NoopDecision)
    resize = decide(policy, 0.0, 4)
    assert isinstance(resize, ResizeDecision)
    assert resize.num_workers == 2


def test_failures_count_since_the_last_progress() -> None:
    checkpoints = Checkpoints()
    policy = ProgressFailurePolicy(FailureConfig(max_failures=2), checkpoints)
    lost = WorkerGroupError("a worker was lost", {0: ray.exceptions.ActorDiedError()})
    for passes in range(12):
        checkpoints.commit(passes)
        assert policy.make_decision(lost) is FailureDecision.RETRY
    assert policy.make_decision(lost) is FailureDecision.RETRY
    assert policy.make_decision(lost) is FailureDecision.RAISE


def test_the_controller_logs_no_error_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    hide_user_errors()
    for error in (StorageError("no answer"), KeyError("a fault")):
        try:
            raise error
        except (StorageError, KeyError):
            controller.logger.exception("Error in control loop iteration")
    (record,) = caplog.records
    assert isinstance(record.exc_info[1], KeyError)  # type: ignore[index]
