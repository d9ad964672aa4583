"""Wraps the private API of Ray Train that this package uses.

Written for Ray 2.60, which `pyproject.toml` pins; each item says what to check when the pin
changes. Nothing here may import torch: Ray Train's controller loads this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import ray.train
from ray._common.network_utils import build_address
from ray.train._internal.utils import get_address_and_port
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from liser_dist.cluster.ray_errors import is_no_user_error

CONTROLLER_LOGGER = "ray.train.v2._internal.execution.controller.controller"


def hide_user_errors() -> None:
    """Keep LiserErrors out of the log of Ray Train's controller, where they have a traceback.

    The job prints such an error once, as its last line. Call it in the controller's process. Read
    in Ray 2.60. At an upgrade, check the name of the logger
    (tests/unit/cluster/test_ray_train_internals.py).
    """
    logging.getLogger(CONTROLLER_LOGGER).addFilter(is_no_user_error)


def free_address() -> str:
    """Return `host:port` of a free port on this node, where the other workers can reach it.

    Read in Ray 2.60, where `TorchConfig` takes the same address; `TorchConfig` itself makes the
    controller load torch. At an upgrade, check how Ray's `torch/config.py` finds its `init_method`.
    """
    address: str = build_address(*get_address_and_port())
    return address


class RunCheckpoints(Protocol):
    """What the policies need to know of the checkpoints of a run."""

    def passes(self) -> int:
        """Return the number of passes in the newest checkpoint."""
        ...

    def trained(self) -> int:
        """Return the number of passes that the train workers have trained until now."""
        ...

    def request(self) -> None:
        """Ask the train workers for a checkpoint of all that they have trained until now."""
        ...

    def awaited(self) -> bool:
        """Return whether the requested checkpoint is not committed yet."""
        ...


class FollowRoomPolicy(ElasticScalingPolicy):
    """Asks for as many train workers as there is room for beside every other stage.

    Ray's own policy asks for the upper bound, and its workers would take the CPUs of the stages
    that feed them. It also shuts a group of workers down without asking for a checkpoint, so that
    a group that is replaced more often than it saves would never get anywhere. This one asks for
    a checkpoint first, and resizes once it is committed. A group that trains nothing meanwhile is
    made smaller without one: its workers may hold the CPUs that a lost decoder or teacher needs.

    Read in Ray 2.60. At an upgrade, check that the overridden methods are still called by
    `ElasticScalingPolicy` or the controller, and that `_latest_monitor_time` still delays the next
    decision (tests/integration/test_pools.py runs an elastic job).
    """

    def __init__(
        self, scaling_config: Any, find_room: Callable[[], int], checkpoints: RunCheckpoints
    ) -> None:
        """Create the policy.

        Args:
            scaling_config: Ray Train's.
            find_room: Returns the number of workers that fit now.
            checkpoints: The checkpoints of the run.
        """
        super().__init__(scaling_config)
        self._find_room = find_room
        self._checkpoints = checkpoints
        self._requested = 0
        self._saving_group: float | None = None  # start time of the group that is to save first
        self._trained = 0  # passes when it was last looked at

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Decide on a resize; only return it once the group has committed a checkpoint."""
        saving = self._saving_group == worker_group_state.start_time
        saved = saving and not self._checkpoints.awaited()
        if saved:
            self._saving_group = None
            self._latest_monitor_time = float("-inf")  # decide anew, and now
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if saved or not isinstance(decision, ResizeDecision):
            return decision
        trained = self._checkpoints.trained()
        if not saving:
            self._saving_group = worker_group_state.start_time
            self._checkpoints.request()
        elif trained == self._trained and decision.num_workers < worker_group_state.num_workers:
            return decision
        self._trained = trained
        return NoopDecision()

    def _maybe_send_resource_request(self) -> None:
        """Send a changed request at once; Ray would wait up to 20 s."""
        workers = self._get_num_workers_for_resource_request()
        if workers != self._requested:
            self._requested = workers
            self._send_resource_request()
        super()._maybe_send_resource_request()

    def _get_num_workers_for_resource_request(self) -> int:
        return self._find_room()


class ProgressFailurePolicy(DefaultFailurePolicy):
    """Counts the failures since the last checkpoint that had more passes than the one before.

    Ray's own policy counts those of the whole run: a run of days on spot machines would reach any
    limit. Read in Ray 2.60. At an upgrade, check that `make_decision` still counts failures of
    workers in `_worker_group_failures`.
    """

    def __init__(self, failure_config: Any, checkpoints: RunCheckpoints) -> None:
        """Create the policy.

        Args:
            failure_config: Ray Train's.
            checkpoints: The checkpoints of the run.
        """
        super().__init__(failure_config)
        self._checkpoints = checkpoints
        self._passes = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether the workers start again."""
        passes = self._checkpoints.passes()
        if passes > self._passes:
            self._passes, self._worker_group_failures = passes, 0
        return super().make_decision(training_failed_error)


class RunTrainer(DataParallelTrainer):
    """A DataParallelTrainer with the policies above.

    Read in Ray 2.60: no public argument takes a policy. At an upgrade, look for one, or check that
    `fit` still calls `_initialize_and_run_controller` with `scaling_policy` and `failure_policy`.
    """

    def __init__(
        self,
        *arguments: Any,
        checkpoints: RunCheckpoints,
        find_room: Callable[[], int] | None,
        **options: Any,
    ) -> None:
        """Create the trainer.

        Args:
            arguments: Those of DataParallelTrainer.
            checkpoints: The checkpoints of the run.
            find_room: Returns the number of workers that fit now; None if their number is fixed.
            options: Those of DataParallelTrainer.
        """
        super().__init__(*arguments, **options)
        self._checkpoints, self._find_room = checkpoints, find_room

    def _initialize_and_run_controller(self, **given: Any) -> ray.train.Result:
        failures = self.run_config.failure_config
        given["failure_policy"] = ProgressFailurePolicy(failures, self._checkpoints)
        if self._find_room is not None:
            given["scaling_policy"] = FollowRoomPolicy(
                self.scaling_config, self._find_room, self._checkpoints
            )
        return super()._initialize_and_run_controller(**given)
