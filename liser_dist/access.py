"""Can every node reach what the job names on S3? Asked before any of them begins to work.

Whoever submits a job may have keys that the nodes do not have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from liser_dist import storage
from liser_dist.errors import StorageError

ANSWERS_WITHIN_S = 30.0


def require_access(places: Collection[str]) -> None:
    """Raise StorageError where a node of the connected cluster cannot look at one of the places.

    What is on disk is not looked for. A node that says nothing in time is let be: it may be gone.
    """
    remote = [place for place in places if storage.is_remote(place)]
    if not remote or not ray.is_initialized():
        return
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(remote)
        for node in ray.nodes()
        if node["Alive"]
    ]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWERS_WITHIN_S)
    for answer in answered:
        if failure := _said(answer):
            raise StorageError(f"a node of the cluster {failure}")


def _look(places: Sequence[str]) -> str:
    """What a node cannot reach, and why; nothing where it can."""
    try:
        for place in places:
            storage.exists(place)
    except StorageError as error:
        return str(error)
    return ""


def _said(answer: ray.ObjectRef) -> str:
    try:
        said: str = ray.get(answer)
    except ray.exceptions.RayError:
        return ""  # the node is gone by now
    return said
