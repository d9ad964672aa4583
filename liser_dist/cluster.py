"""Connect to Ray; does this job fit?

A job that does not fit would wait for ever and say nothing, so it is counted before it starts.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import cpu_count

from liser_dist.errors import CapacityError, in_a_line
from liser_dist.fields import POOL
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes its address

HERE = "this machine"
TRAIN_WORKERS = "train workers"
Amounts = dict[str, float]  # "CPU", "GPU"


@dataclass(frozen=True, slots=True)
class Need:
    """The least that one stage takes."""

    stage: str
    pool: str
    count: int
    cpus: float  # each
    gpus: float = 0.0  # each


@dataclass(frozen=True, slots=True)
class Node:
    amounts: Amounts
    pool: str | None = None
    kind: str = ""  # the instance type, where it is known
    stands: bool = False  # also when nothing runs there


@dataclass(frozen=True, slots=True)
class Capacity:
    where: str
    nodes: tuple[Node, ...]

    @property
    def amounts(self) -> Amounts:
        return {
            kind: sum(node.amounts.get(kind, 0.0) for node in self.nodes) for kind in ("CPU", "GPU")
        }

    @property
    def pools(self) -> set[str]:
        """The labels that there are; where there is none, any stage runs anywhere."""
        return {node.pool for node in self.nodes if node.pool is not None}

    def of(self, pool: str) -> Capacity:
        """What a stage of this pool may run on. Raises CapacityError where that is no node."""
        if not self.pools:
            return self
        if pool not in self.pools:
            raise CapacityError(
                f"no node of {self.where} has the label `{POOL}={pool}`, only "
                f"{', '.join(sorted(self.pools))}: name the file of a cluster that grows in "
                f"`resources.cluster`, or start nodes with `ray start --labels {POOL}={pool}`, or "
                "give the stage another pool in `resources`"
            )
        nodes = tuple(node for node in self.nodes if node.pool == pool)
        return Capacity(f"the pool {pool} of {self.where}", nodes)


def needs_of(spec: DistillSpec, workers: int | None = None) -> list[Need]:
    """What must be there at once for the job to move at all: its train workers, so many or the
    least of them, then the others.
    """
    resources = spec.resources
    workers = spec.train.worker_bounds[0] if workers is None else workers
    pools, teachers = resources.pools, resources.teachers[0]
    worker = resources.worker_cpus, resources.worker_gpus
    teacher = resources.teacher_cpus, resources.teacher_gpus
    return [
        Need(TRAIN_WORKERS, pools.students, workers, *worker),
        Need("teachers", pools.teachers, teachers, *teacher),
        Need("decoders", pools.decoders, resources.decoders[0], resources.decoder_cpus),
    ]


def total_of(needs: list[Need]) -> Amounts:
    return {
        "CPU": sum(need.count * need.cpus for need in needs),
        "GPU": sum(need.count * need.gpus for need in needs),
    }


def most_workers(spec: DistillSpec, capacity: Capacity) -> int:
    """How many of an elastic job's workers there is room for beside all that feeds them."""
    least, most = spec.train.worker_bounds
    for workers in range(most, least, -1):
        with suppress(CapacityError):
            # Nodes that the workers do not share may all be gone: the next will be theirs again.
            _require_fit(*next(_by_pool(needs_of(spec, workers), capacity)))
            return workers
    return least


def require_fit(spec: DistillSpec, capacity: Capacity, workers: int | None = None) -> None:
    """Raise CapacityError naming what is missing for so many workers, or for the least."""
    for needs, nodes in _by_pool(needs_of(spec, workers), capacity):
        _require_fit(needs, nodes)


def _by_pool(needs: list[Need], capacity: Capacity) -> Iterator[tuple[list[Need], Capacity]]:
    """The needs that share nodes, and those nodes; first those of the first need.

    Raises CapacityError where a pool has no node.
    """
    if not capacity.pools:
        yield needs, capacity
        return
    for pool in dict.fromkeys(need.pool for need in needs if need.count):
        yield [need for need in needs if need.pool == pool], capacity.of(pool)


def _require_fit(needs: list[Need], capacity: Capacity) -> None:
    for kind, wanted in total_of(needs).items():
        there = capacity.amounts.get(kind, 0.0)
        if wanted <= there + 1e-6:
            continue
        shares = ", ".join(
            f"{need.count} {need.stage} of {each:g}"
            for need in needs
            if (each := need.cpus if kind == "CPU" else need.gpus)
        )
        raise CapacityError(
            f"the job does not fit: it needs at least {wanted:g} {kind}s ({shares}), and "
            f"{capacity.where} has {there:g}, so {wanted - there:g} {kind}s are missing; lower "
            "`resources` or `train.workers`, or run it on a larger cluster"
        )
    _require_room(needs, capacity)


def _require_room(needs: list[Need], capacity: Capacity) -> None:
    """Each worker, actor and task wants its amounts on one node: largest first, where it fits."""
    room = Room(capacity)
    for need in largest_first(needs):
        if room.take(need, need.count) < need.count:
            raise CapacityError(
                f"the job does not fit: {need.stage} want {need.cpus:g} CPUs and "
                f"{need.gpus:g} GPUs each on one node, and no node of {capacity.where} has "
                "room for them; lower `resources` or `train.workers`, or use larger nodes"
            )


def largest_first(needs: list[Need]) -> list[Need]:
    return sorted(needs, key=lambda need: (need.gpus, need.cpus), reverse=True)


class Room:
    """What is free on each node, and which nodes are in use."""

    def __init__(self, capacity: Capacity) -> None:
        self.pools = capacity.pools
        self.nodes = capacity.nodes
        self.used: set[int] = set()
        self._free = [dict(node.amounts) for node in capacity.nodes]

    def take(self, need: Need, most: int) -> int:
        """Put up to `most` of a stage where it may run; how many there was room for."""
        wanted = {"CPU": need.cpus, "GPU": need.gpus}
        for count in range(most):
            for number, free in enumerate(self._free):
                allowed = not self.pools or self.nodes[number].pool == need.pool
                if allowed and all(free.get(k, 0.0) + 1e-6 >= w for k, w in wanted.items()):
                    break
            else:
                return count
            self.used.add(number)
            for kind, amount in wanted.items():
                free[kind] = free.get(kind, 0.0) - amount
        return most


def _quiet_ray() -> None:
    """Ray's own bars and chatter down; its warnings stay."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_LOG_ENCODING", "TEXT")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)


def find_cluster() -> Capacity:
    """The running cluster, connected to, when there is one; else what this machine has.

    RAY_ADDRESS=local, as Ray reads it too: none that runs is wanted.

    Raises CapacityError when RAY_ADDRESS names a cluster that does not answer.
    """
    import ray

    _quiet_ray()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or _started_here()
        if address in (None, "local"):
            here = Node({"CPU": float(cpu_count()), "GPU": float(_gpus())})
            return Capacity(HERE, (here,))
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            why = in_a_line(error)
            remedy = (
                "start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine"
            )
            if "Version mismatch" in why:
                remedy = "install here what the cluster has, or the other way round"
            raise CapacityError(
                f"cannot connect to a Ray cluster at {address}: {why}; {remedy}"
            ) from error
    return live_nodes()


def live_nodes() -> Capacity:
    """What the connected cluster has now, without the nodes that were told to go."""
    nodes = (Node(node["Resources"], node["Labels"].get(POOL)) for node in staying_nodes())
    return Capacity("the Ray cluster", tuple(nodes))


def staying_nodes() -> list[dict[str, Any]]:
    """As Ray tells of them: those that are up, and were not told to go."""
    import ray

    leaving = ray._private.state.state.get_draining_nodes()  # Ray has no public place for it
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def place(pool: str) -> dict[str, str]:
    """The labels that a stage of this pool asks for: none, on a cluster without pools.

    Nodes that are gone count, too: those of a pool may all be, for a while.
    """
    import ray

    return {POOL: pool} if any(POOL in node["Labels"] for node in ray.nodes()) else {}


def _started_here() -> str | None:
    """The address of a cluster that `ray start` left on this machine, while it answers.

    Ray's own search would also find a cluster that some other job runs for itself alone, and
    that ends with it.
    """
    if not STARTED_HERE.exists():
        return None
    address = STARTED_HERE.read_text().strip()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None  # it ended without a word
    return address


def require_reachable(capacity: Capacity) -> None:
    """Raise CapacityError where the job was planned for a cluster that does not run."""
    import ray

    if capacity.where != HERE and not ray.is_initialized():
        raise CapacityError(
            f"`resources.cluster` is {capacity.where}, and no Ray cluster answers: start it with "
            f"`ray up {capacity.where}` and submit the job there, or leave the field out to run "
            "on this machine"
        )


def start_ray(capacity: Capacity) -> None:
    """Start Ray on this machine, unless connected to a cluster already."""
    import ray

    if ray.is_initialized():
        return
    require_reachable(capacity)
    ray.init(
        address="local",
        num_cpus=int(capacity.amounts["CPU"]),
        num_gpus=int(capacity.amounts["GPU"]),
        include_dashboard=True,  # Ray Train asks its state API
        log_to_driver=True,
        logging_level=logging.WARNING,
    )


def leave_ray() -> None:
    """End what was started, so that no line of it comes after the job's last."""
    import ray

    ray.shutdown()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
