"""Connects a job to its Ray cluster, or starts one, and lists the nodes."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from joblib import cpu_count

from liser_dist.cluster.capacity import Capacity, Node
from liser_dist.cluster.ray_internals import draining_nodes
from liser_dist.config.resources import POOL
from liser_dist.errors import CapacityError, one_line

_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # where `ray start` stores its address
_THIS_MACHINE = "this machine"


def _quiet_ray() -> None:
    """Turn off Ray's progress bars and informational output; its warnings stay."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_LOG_ENCODING", "TEXT")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)


def find_cluster() -> Capacity:
    """Connect to the running cluster if there is one, and return its nodes.

    Otherwise return what this machine has. `RAY_ADDRESS=local` means, as it does to Ray, not to
    use a running cluster.

    Raises:
        CapacityError: The cluster at RAY_ADDRESS does not respond.
    """
    import ray

    _quiet_ray()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or _local_address()
        if address in (None, "local"):
            machine = Node({"CPU": float(cpu_count()), "GPU": float(_gpu_count())})
            return Capacity(_THIS_MACHINE, (machine,))
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            cause = one_line(error)
            remedy = (
                "start one with `ray start --head`, or set RAY_ADDRESS=local to run on this machine"
            )
            if "Version mismatch" in cause:
                remedy = "install the same Ray and Python on this machine and on the cluster"
            raise CapacityError(
                f"cannot connect to a Ray cluster at {address}: {cause}; {remedy}"
            ) from error
    return current_capacity()


def current_capacity() -> Capacity:
    """Return the nodes that the connected cluster has now, without draining ones."""
    nodes = (Node(node["Resources"], node["Labels"].get(POOL)) for node in active_nodes())
    return Capacity("the Ray cluster", tuple(nodes))


def active_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are alive and not draining."""
    import ray

    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def pool_selector(pool: str) -> dict[str, str]:
    """Return Ray's label selector for a stage of this pool; empty on a cluster without pools.

    Dead nodes count, too: all nodes of every pool may be lost for a while.
    """
    import ray

    return {POOL: pool} if any(POOL in node["Labels"] for node in ray.nodes()) else {}


def _local_address() -> str | None:
    """Address of a cluster that `ray start` started on this machine, if it responds.

    Ray's own search would also find the private cluster of another job, which ends with that job.
    """
    if not _ADDRESS_FILE.exists():
        return None
    address = _ADDRESS_FILE.read_text().strip()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None  # the cluster ended without removing the file
    return address


def require_reachable(capacity: Capacity) -> None:
    """Check that the cluster that a job was planned for is running.

    Raises:
        CapacityError: The job was planned for a cluster file, and no Ray cluster responds.
    """
    import ray

    if capacity.where != _THIS_MACHINE and not ray.is_initialized():
        raise CapacityError(
            f"`resources.cluster` is {capacity.where}, and no Ray cluster responds: start one "
            f"with `ray up {capacity.where}` and submit the job there, or leave "
            "`resources.cluster` out to run on this machine"
        )


def start_ray(capacity: Capacity) -> None:
    """Start Ray on this machine, unless already connected to a cluster.

    Raises:
        CapacityError: The job was planned for a cluster file, and no Ray cluster responds.
    """
    import ray

    if ray.is_initialized():
        return
    require_reachable(capacity)
    ray.init(
        address="local",
        num_cpus=int(capacity.amounts["CPU"]),
        num_gpus=int(capacity.amounts["GPU"]),
        include_dashboard=True,  # Ray Train needs the dashboard's state API
        log_to_driver=True,
        logging_level=logging.WARNING,
    )


def leave_ray() -> None:
    """Shut Ray down, so that none of its log lines follow the job's last line of output."""
    import ray

    ray.shutdown()


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()
