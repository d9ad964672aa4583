"""Connect to Ray; does this job fit?

A job that does not fit would wait for ever and say nothing, so it is counted before it starts.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count

from liser_dist.errors import CapacityError
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes its address

Amounts = dict[str, float]  # "CPU", "GPU"


@dataclass(frozen=True, slots=True)
class Need:
    """The least that one stage takes."""

    stage: str
    count: int
    cpus: float  # each
    gpus: float  # each


@dataclass(frozen=True, slots=True)
class Capacity:
    where: str
    nodes: tuple[Amounts, ...]

    @property
    def amounts(self) -> Amounts:
        return {kind: sum(node.get(kind, 0.0) for node in self.nodes) for kind in ("CPU", "GPU")}


def needs_of(spec: DistillSpec, workers: int | None = None) -> list[Need]:
    """What must be there at once for the job to move at all; with so many workers, or the least."""
    resources = spec.resources
    workers = spec.train.worker_bounds[0] if workers is None else workers
    return [
        Need("train workers", workers, resources.worker_cpus, resources.worker_gpus),
        Need("teachers", resources.teachers[0], resources.teacher_cpus, resources.teacher_gpus),
        Need("decoders", resources.decoders[0], resources.decoder_cpus, 0),
        Need("readers", 1, resources.reader_cpus, 0),
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
            require_fit(spec, capacity, workers)
            return workers
    return least


def require_fit(spec: DistillSpec, capacity: Capacity, workers: int | None = None) -> None:
    """Raise CapacityError naming what is missing for so many workers, or for the least."""
    needs = needs_of(spec, workers)
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
    free = [dict(node) for node in capacity.nodes]
    for need in sorted(needs, key=lambda need: (need.gpus, need.cpus), reverse=True):
        wanted = {"CPU": need.cpus, "GPU": need.gpus}
        for _ in range(need.count):
            room = [n for n in free if all(n.get(k, 0.0) + 1e-6 >= w for k, w in wanted.items())]
            if not room:
                raise CapacityError(
                    f"the job does not fit: {need.stage} want {need.cpus:g} CPUs and "
                    f"{need.gpus:g} GPUs each on one node, and no node of {capacity.where} has "
                    "room for them; lower `resources` or `train.workers`, or use larger nodes"
                )
            for kind, amount in wanted.items():
                room[0][kind] = room[0].get(kind, 0.0) - amount


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
            return Capacity("this machine", ({"CPU": float(cpu_count()), "GPU": float(_gpus())},))
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:300]
            raise CapacityError(
                f"cannot connect to a Ray cluster at {address}: {why}; start one with `ray start "
                "--head`, or unset RAY_ADDRESS to run on this machine"
            ) from error
    return live_nodes()


def live_nodes() -> Capacity:
    """What the connected cluster has now, without the nodes that were told to go."""
    import ray

    leaving = ray._private.state.state.get_draining_nodes()  # Ray has no public place for it
    staying = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving)
    return Capacity("the Ray cluster", tuple(node["Resources"] for node in staying))


def lack_of(spec: DistillSpec) -> str:
    """Why the job cannot go on with the nodes that are left, or nothing."""
    try:
        require_fit(spec, live_nodes())
    except CapacityError as error:
        return str(error)
    return ""


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


def start_ray(capacity: Capacity) -> None:
    """Start Ray on this machine, unless connected to a cluster already."""
    import ray

    if ray.is_initialized():
        return
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
