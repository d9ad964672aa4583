"""Checks that the cluster's nodes can reach the job's paths on S3, before any stage starts.

The person who submits a job may have credentials or a network that the nodes do not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from liser_dist import storage
from liser_dist.cluster.connect import active_nodes
from liser_dist.config.resources import POOL, PoolsSpec
from liser_dist.errors import StorageError

_PATIENCE_S = 10.0  # the last attempt starts within this time
_RESPONSE_LIMIT_S = 45.0


def require_access(paths: Sequence[str], pools: PoolsSpec) -> None:
    """Check from every node that may run a stage of the job that these paths can be reached.

    Local paths are not checked. A node that does not respond in time is skipped, because it may
    be gone.

    Args:
        paths: Files, or names below the folders that the job writes to, existing or not. Do not
            give the folders themselves: an IAM policy that ends in `/*` does not cover them.
        pools: Pools of the job's stages.

    Raises:
        StorageError: A node cannot reach one of the paths.
    """
    remote = [path for path in paths if storage.is_remote(path)]
    if not remote or not ray.is_initialized():
        return
    probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
    addresses: dict[ray.ObjectRef, str] = {}
    for node, address in _nodes_of(pools).items():
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        addresses[probe.options(scheduling_strategy=on_node).remote(remote)] = address
    pending = list(addresses)
    ready, _ = ray.wait(pending, num_returns=len(pending), timeout=_RESPONSE_LIMIT_S)
    for reference in ready:
        if failure := _result_of(reference):
            raise StorageError(f"the node {addresses[reference]} of the cluster {failure}")


def _nodes_of(pools: PoolsSpec) -> dict[str, str]:
    """Addresses, by ID, of the nodes in the job's pools, those without a pool and the driver's."""
    driver = ray.get_runtime_context().get_node_id()
    labels = {None, pools.decoders, pools.teachers, pools.students}
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in active_nodes()
        if node["Labels"].get(POOL) in labels or node["NodeID"] == driver
    }


def _probe(paths: Sequence[str]) -> str:
    """Run on a node: say which path it cannot reach and why; empty if it reaches all."""
    try:
        for path in paths:
            storage.exists(path, _PATIENCE_S)
    except StorageError as error:
        return str(error)
    return ""


def _result_of(reference: ray.ObjectRef) -> str:
    try:
        failure: str = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        return ""  # the node was lost in the meantime
    return failure
