"""Checks whether a job fits on a cluster, by counting CPUs and GPUs before any stage starts.

Without this check, Ray would keep a job that does not fit waiting forever, without a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from liser_dist.config.base import Bounds
from liser_dist.config.resources import POOL, ResourcesSpec
from liser_dist.errors import CapacityError

TRAIN_WORKERS = "train workers"
TEACHER_ACTORS = "teachers"
DECODER_ACTORS = "decoders"
Amounts = dict[str, float]  # "CPU", "GPU"
_KINDS = ("CPU", "GPU")
_ROUNDING = 1e-6  # sums of fractions such as 0.1 CPU


@dataclass(frozen=True, slots=True)
class Need:
    """The minimum that one stage of a job takes."""

    stage: str
    pool: str
    count: int
    cpus: float  # each
    gpus: float = 0.0  # each

    @property
    def each(self) -> Amounts:
        """CPUs and GPUs of one actor or worker of the stage."""
        return {"CPU": self.cpus, "GPU": self.gpus}


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is running, or that a cluster file allows."""

    amounts: Amounts
    pool: str | None = None
    kind: str = ""  # the instance type, if known
    always_on: bool = False  # runs, and is paid for, even when no stage uses it


@dataclass(frozen=True, slots=True)
class Capacity:
    """The nodes that a job may use."""

    where: str
    nodes: tuple[Node, ...]

    @property
    def amounts(self) -> Amounts:
        """CPUs and GPUs of all nodes together."""
        return {kind: sum(node.amounts.get(kind, 0.0) for node in self.nodes) for kind in _KINDS}

    @property
    def pools(self) -> set[str]:
        """Pool labels of the nodes; if there are none, every stage runs on any node."""
        return {node.pool for node in self.nodes if node.pool is not None}

    def of(self, pool: str) -> Capacity:
        """Return the nodes that stages of this pool may use.

        Raises:
            CapacityError: The cluster has pools, and no node is in this one.
        """
        if not self.pools:
            return self
        if pool not in self.pools:
            raise CapacityError(
                f"no node of {self.where} has the label `{POOL}={pool}`; the pools that have nodes "
                f"are {', '.join(sorted(self.pools))}: choose one of these in `resources.pools`, "
                f"start a node with `ray start --labels {POOL}={pool}`, or, if the cluster scales "
                "up by itself, set `resources.cluster` to its cluster file"
            )
        nodes = tuple(node for node in self.nodes if node.pool == pool)
        return Capacity(f"the pool {pool} of {self.where}", nodes)


def stage_needs(resources: ResourcesSpec, workers: int) -> list[Need]:
    """Return the minimum that must be running at once for a job to make progress.

    Args:
        resources: How many of each stage there are, and what one of each takes.
        workers: Number of train workers; 0 for a job that trains nothing.
    """
    pools = resources.pools
    teacher_each = resources.teacher_cpus, resources.teacher_gpus
    worker_each = resources.worker_cpus, resources.worker_gpus
    return [
        Need(TRAIN_WORKERS, pools.students, workers, *worker_each),
        Need(TEACHER_ACTORS, pools.teachers, resources.teachers[0], *teacher_each),
        Need(DECODER_ACTORS, pools.decoders, resources.decoders[0], resources.decoder_cpus),
    ]


def total_of(needs: Sequence[Need]) -> Amounts:
    """Return the CPUs and GPUs of several needs together."""
    return {kind: sum(need.count * need.each[kind] for need in needs) for kind in _KINDS}


def format_amount(amount: float, kind: str) -> str:
    """Return an amount with its unit in the right number: `1 CPU`, `0.5 CPUs`, `2 GPUs`."""
    number = f"{amount:g}"
    return f"{number} {kind}" + ("" if number == "1" else "s")


def workers_that_fit(resources: ResourcesSpec, worker_bounds: Bounds, capacity: Capacity) -> int:
    """Return how many elastic train workers fit beside the minimum of every other stage.

    Args:
        resources: How many of each stage there are, and what one of each takes.
        worker_bounds: Fewest and most train workers; the fewest are returned if none fit.
        capacity: The nodes that are running.
    """
    # Only the workers' own pool counts. All nodes of another pool may be lost for a while, and the
    # next ones that start belong to that pool again.
    pool = resources.pools.students
    nodes = tuple(node for node in capacity.nodes if not capacity.pools or node.pool == pool)
    least, most = worker_bounds
    for workers in range(most, least, -1):
        needs = _by_pool(stage_needs(resources, workers), capacity)[pool]
        if not _shortages(needs, Capacity(capacity.where, nodes)):
            return workers
    return least


def require_fit(resources: ResourcesSpec, workers: int, capacity: Capacity) -> None:
    """Check that a job fits, at the minimum of its stages and with this number of train workers.

    Raises:
        CapacityError: The job does not fit. The message lists everything that is missing.
    """
    problems, shortages = [], []
    for pool, needs in _by_pool(stage_needs(resources, workers), capacity).items():
        try:
            shortages += _shortages(needs, capacity.of(pool))
        except CapacityError as error:
            problems.append(str(error))
    if shortages:
        problems.append(
            f"the job does not fit: {'; '.join(shortages)}; lower the numbers in `resources` "
            "or `train.workers`, or use more or larger nodes"
        )
    if problems:
        raise CapacityError("\n".join(problems))


def _by_pool(needs: Sequence[Need], capacity: Capacity) -> dict[str, list[Need]]:
    """The needs that share nodes, by pool; the pool of the first need comes first."""
    if not capacity.pools:
        return {needs[0].pool: list(needs)}
    pools = dict.fromkeys(need.pool for need in needs if need.count)
    return {pool: [need for need in needs if need.pool == pool] for pool in pools}


def _shortages(needs: Sequence[Need], capacity: Capacity) -> list[str]:
    """What the nodes lack to hold these needs: totals first, then room on single nodes."""
    missing = []
    for kind, required in total_of(needs).items():
        available = capacity.amounts[kind]
        if required <= available + _ROUNDING:
            continue
        shares = ", ".join(
            f"{need.stage}: {need.count} x {need.each[kind]:g}" for need in needs if need.each[kind]
        )
        lacking = format_amount(required - available, kind)
        missing.append(
            f"it needs at least {format_amount(required, kind)} ({shares}), and {capacity.where} "
            f"has {available:g}, so {lacking} {'are' if lacking.endswith('s') else 'is'} missing"
        )
    return missing or _unplaced(needs, capacity)


def _unplaced(needs: Sequence[Need], capacity: Capacity) -> list[str]:
    """Stages of which not every actor or worker finds a node with enough room, as sentences."""
    placement = Placement(capacity)
    return [
        f"{need.stage} need {format_amount(need.cpus, 'CPU')} and "
        f"{format_amount(need.gpus, 'GPU')} each on one node, and no node of {capacity.where} has "
        "enough left"
        for need in largest_first(needs)
        if placement.add(need, need.count) < need.count
    ]


def largest_first(needs: Sequence[Need]) -> list[Need]:
    """Return the needs in the order in which to place them, GPUs before CPUs."""
    return sorted(needs, key=lambda need: (need.gpus, need.cpus), reverse=True)


class Placement:
    """Assigns actors and workers to nodes, first fit.

    Attributes:
        pools: Pool labels of the nodes.
        nodes: The nodes.
        used: Indices of the nodes that have something assigned.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.pools = capacity.pools
        self.nodes = capacity.nodes
        self.used: set[int] = set()
        self._free = [dict(node.amounts) for node in capacity.nodes]

    def add(self, need: Need, most: int) -> int:
        """Assign up to `most` actors or workers of a stage; returns how many found a node."""
        for count in range(most):
            number = self._first_fit(need)
            if number is None:
                return count
            self.used.add(number)
            for kind, amount in need.each.items():
                self._free[number][kind] = self._free[number].get(kind, 0.0) - amount
        return most

    def _first_fit(self, need: Need) -> int | None:
        for number, free in enumerate(self._free):
            allowed = not self.pools or self.nodes[number].pool == need.pool
            if allowed and all(free.get(k, 0.0) + _ROUNDING >= w for k, w in need.each.items()):
                return number
        return None
