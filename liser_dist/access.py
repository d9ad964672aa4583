"""Can the nodes reach what the job names on S3? Asked before any of them begins to work.

Whoever submits a job may have keys that the nodes do not have, or another network.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from liser_dist import storage
from liser_dist.cluster import staying_nodes
from liser_dist.errors import StorageError
from liser_dist.fields import POOL
from liser_dist.spec import DistillSpec

PATIENCE_S = 10.0  # after it the last attempt begins
ANSWERS_WITHIN_S = 45.0


def require_access(spec: DistillSpec, shards: Sequence[str]) -> None:
    """Raise StorageError where a node that is up, and may get a stage of the job, cannot look at
    these shards, at `output` or at `targets.store`.

    What is on disk is not looked for. A node that says nothing in time is let be: it may be gone.
    """
    # Not the folders themselves, of which rights that end in `/*` say nothing.
    places = [storage.join(spec.output, spec.name), *shards]
    if spec.targets.store is not None:
        places.append(storage.join(spec.targets.store, "any"))
    remote = [place for place in places if storage.is_remote(place)]
    if not remote or not ray.is_initialized():
        return
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            remote
        )
        for node in _nodes_of(spec)
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWERS_WITHIN_S)
    for answer in answered:
        if failure := _said(answer):
            raise StorageError(f"a node of the cluster {failure}")


def _nodes_of(spec: DistillSpec) -> list[str]:
    """Those of the job's pools, those without a pool, and the driver's."""
    here, pools = ray.get_runtime_context().get_node_id(), spec.resources.pools
    ours = {None, pools.decoders, pools.teachers, pools.students}
    return [
        node["NodeID"]
        for node in staying_nodes()
        if node["Labels"].get(POOL) in ours or node["NodeID"] == here
    ]


def _look(places: Sequence[str]) -> str:
    """What a node cannot reach, and why; nothing where it can."""
    try:
        for place in places:
            storage.exists(place, PATIENCE_S)
    except StorageError as error:
        return str(error)
    return ""


def _said(answer: ray.ObjectRef) -> str:
    try:
        said: str = ray.get(answer)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError:
        return ""  # the node is gone by now
    return said
