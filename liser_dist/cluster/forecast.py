"""Forecasts a job on a cluster: the actors of each stage, the slowest stage, and the price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from liser_dist import storage
from liser_dist.cluster.capacity import (
    DECODER_ACTORS,
    TEACHER_ACTORS,
    TRAIN_WORKERS,
    Capacity,
    Need,
    Placement,
    largest_first,
    stage_needs,
)
from liser_dist.config.base import Spec, Weight, first_mistake
from liser_dist.config.resources import ResourcesSpec
from liser_dist.errors import CapacityError, StorageError, one_line

EXECUTOR = "stream executor"
STREAM_BYTES_PER_S = 85e6  # of one stream from S3: an assumption, not a measurement


class SecondsPerClip(Spec):
    """Seconds that one decoder, one teacher actor and one train worker take for a clip.

    A stream has a single executor, the process in which Ray Data hands clips from stage to stage;
    without its time, a forecast does not limit the speed to what it can hand on.
    """

    decoders: Weight
    teachers: Weight
    students: Weight
    executor: Weight | None = None


class ClusterCosts(Spec):
    """The file at `resources.costs`: what nodes and clips cost."""

    dollars_per_hour: dict[str, Weight]  # by instance type; spot instances have " spot" appended
    seconds_per_clip: SecondsPerClip


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a job, at the largest size that the cluster has room for."""

    need: Need
    count: int
    clips_per_s: float | None  # of all actors or workers together


@dataclass(frozen=True, slots=True)
class Forecast:
    """Stages of a job on a cluster, the nodes they use, and the price of those nodes."""

    stages: tuple[Stage, ...]
    nodes: dict[str, int]  # paid for, by instance type
    dollars_per_hour: float | None

    @property
    def slowest(self) -> Stage | None:
        """The stage that limits the speed; None if speeds are unknown."""
        timed = [stage for stage in self.stages if stage.clips_per_s is not None]
        return min(timed, key=lambda stage: stage.clips_per_s or 0.0, default=None)

    @property
    def dollars_per_million(self) -> float | None:
        """The price of one million clips that pass once through all stages."""
        slowest = self.slowest
        if self.dollars_per_hour is None or slowest is None or not slowest.clips_per_s:
            return None
        return self.dollars_per_hour / 3600 / slowest.clips_per_s * 1e6


def forecast_job(
    resources: ResourcesSpec,
    worker_bounds: tuple[int, int],
    capacity: Capacity,
    costs: ClusterCosts | None,
) -> Forecast:
    """Forecast a job that fits: places every stage at its minimum, then grows each to its maximum.

    Args:
        resources: How many of each stage there are, and what one of each takes.
        worker_bounds: Fewest and most train workers; (0, 0) for a job that trains nothing.
        capacity: The nodes that the job may use.
        costs: Prices and seconds per clip; None leaves speed and price unknown.
    """
    placement = Placement(capacity)
    needs = [need for need in stage_needs(resources, worker_bounds[0]) if need.count]
    most = {
        TRAIN_WORKERS: worker_bounds[1],
        TEACHER_ACTORS: resources.teachers[1],
        DECODER_ACTORS: resources.decoders[1],
    }
    order = largest_first(needs)
    counts = {need.stage: placement.add(need, need.count) for need in order}
    for need in order:
        counts[need.stage] += placement.add(need, most[need.stage] - need.count)
    needs.append(Need(EXECUTOR, "", 1, 0.0))
    counts[EXECUTOR] = 1
    seconds = _seconds_by_stage(costs)
    stages = [_stage(need, counts[need.stage], seconds.get(need.stage)) for need in needs]
    return _forecast(stages, placement, costs)


def _stage(need: Need, count: int, seconds_per_clip: float | None) -> Stage:
    return Stage(need, count, count / seconds_per_clip if seconds_per_clip else None)


def readers_needed(forecast: Forecast, bytes_per_clip: float) -> int | None:
    """Return how many tasks, of one stream each, must read from S3 for the speed of a forecast.

    Args:
        forecast: Forecast of the job.
        bytes_per_clip: Mean size of a clip in its shard.

    Returns:
        None if the speed is not known.
    """
    slowest = forecast.slowest
    if slowest is None or slowest.clips_per_s is None:
        return None
    return max(1, math.ceil(slowest.clips_per_s * bytes_per_clip / STREAM_BYTES_PER_S))


def _seconds_by_stage(costs: ClusterCosts | None) -> dict[str, float | None]:
    if costs is None:
        return {}
    seconds = costs.seconds_per_clip
    return {
        TRAIN_WORKERS: seconds.students,
        TEACHER_ACTORS: seconds.teachers,
        DECODER_ACTORS: seconds.decoders,
        EXECUTOR: seconds.executor,
    }


def forecast_cells(
    pool: str, cells: int, cell_cpus: float, capacity: Capacity, costs: ClusterCosts | None
) -> Forecast:
    """Forecast the cells of a study, which start when all other stages have ended.

    Args:
        pool: The pool of the cells.
        cells: Number of cells in the study.
        cell_cpus: CPUs that one cell takes.
        capacity: The nodes that the study may use.
        costs: Prices of nodes; None leaves the price unknown.
    """
    placement = Placement(capacity)
    need = Need("cells", pool, 1, cell_cpus)
    return _forecast([Stage(need, placement.add(need, cells), None)], placement, costs)


def _forecast(
    stages: Sequence[Stage], placement: Placement, costs: ClusterCosts | None
) -> Forecast:
    """Count the nodes to pay for: those in use, and those that are always on."""
    kinds = [
        node.kind
        for number, node in enumerate(placement.nodes)
        if number in placement.used or node.always_on
    ]
    nodes = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return Forecast(tuple(stages), nodes, None if costs is None else hourly_price(nodes, costs))


def hourly_price(nodes: dict[str, int], costs: ClusterCosts) -> float | None:
    """Return the price of nodes in dollars per hour; None if an instance type is not known.

    Raises:
        CapacityError: The costs file has no price for an instance type.
    """
    if "" in nodes:
        return None
    if unpriced := [kind for kind in nodes if kind not in costs.dollars_per_hour]:
        raise CapacityError(
            f"`resources.costs`: `dollars_per_hour` has no price for {', '.join(unpriced)}: add "
            "it, in US dollars per hour"
        )
    return sum(count * costs.dollars_per_hour[kind] for kind, count in nodes.items())


def read_costs(path: str) -> ClusterCosts:
    """Read the file at `resources.costs`.

    Raises:
        CapacityError: The file cannot be read, or a field of it is wrong.
    """
    try:
        return ClusterCosts.model_validate(yaml.safe_load(storage.read_bytes(path)))
    except StorageError as error:
        raise CapacityError(f"`resources.costs`: {error}") from error
    except yaml.YAMLError as error:
        raise CapacityError(
            f"`resources.costs` {path} is not valid YAML: {one_line(error)}; correct it"
        ) from error
    except ValidationError as error:
        raise CapacityError(
            f"`resources.costs` {path}: {first_mistake(error)}; infra/costs.yaml is an example"
        ) from error
