"""Train workers whose number follows the cluster, and leaves room for the stages that feed them.

Ray Train's own elastic policy takes all that a cluster has, up to the most workers: then no clip
would ever be decoded.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from liser_dist import cluster
from liser_dist.spec import DistillSpec


class LeavesRoom(ElasticScalingPolicy):
    """Asks for as many workers as fit beside the least of every other stage."""

    def __init__(self, scaling_config: Any, spec: DistillSpec) -> None:
        super().__init__(scaling_config)
        self._spec = spec
        self._asked = 0

    def _maybe_send_resource_request(self) -> None:
        """At once when there is more room or less; Ray would wait up to 20 s."""
        wanted = self._get_num_workers_for_resource_request()
        if wanted != self._asked:
            self._asked = wanted
            self._send_resource_request()
        super()._maybe_send_resource_request()

    def _get_num_workers_for_resource_request(self) -> int:
        return cluster.most_workers(self._spec, cluster.live_nodes())


class ElasticTrainer(DataParallelTrainer):
    """A DataParallelTrainer with this policy: Ray has no public place for one."""

    def __init__(self, *arguments: Any, spec: DistillSpec, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spec = spec

    def _initialize_and_run_controller(self, **given: Any) -> ray.train.Result:
        policy = LeavesRoom(self.scaling_config, self._spec)
        return super()._initialize_and_run_controller(**{**given, "scaling_policy": policy})
