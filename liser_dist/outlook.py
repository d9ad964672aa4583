"""What a job will be on a cluster: how many of each stage, which is the slowest, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from liser_dist import storage
from liser_dist.cluster import TRAIN_WORKERS, Capacity, Need, Room, largest_first, needs_of
from liser_dist.errors import CapacityError, StorageError
from liser_dist.fields import Spec, Weight, first_mistake
from liser_dist.spec import DistillSpec
from liser_dist.study_spec import StudySpec


class SecondsPerClip(Spec):
    """Of one decoder, teacher actor and train worker."""

    decoders: Weight
    teachers: Weight
    students: Weight


class Costs(Spec):
    """The user's file: what nodes and clips cost."""

    dollars_per_hour: dict[str, Weight]  # by instance type; with " spot" behind it
    seconds_per_clip: SecondsPerClip


@dataclass(frozen=True, slots=True)
class Stage:
    need: Need
    count: int  # as many as there can be
    clips_per_s: float | None  # of all of them


@dataclass(frozen=True, slots=True)
class Outlook:
    stages: tuple[Stage, ...]
    nodes: dict[str, int]  # in use, by kind
    dollars_per_hour: float | None

    @property
    def slowest(self) -> Stage | None:
        paced = [stage for stage in self.stages if stage.clips_per_s is not None]
        return min(paced, key=lambda stage: stage.clips_per_s or 0.0, default=None)

    @property
    def dollars_per_million(self) -> float | None:
        """Of clips, once through all stages."""
        slowest = self.slowest
        if self.dollars_per_hour is None or slowest is None or not slowest.clips_per_s:
            return None
        return self.dollars_per_hour / 3600 / slowest.clips_per_s * 1e6


def look_out(
    spec: DistillSpec, capacity: Capacity, costs: Costs | None, trains: bool = True
) -> Outlook:
    """Of a job that fits: each stage at its least first, then each at its most.

    `trains`: whether there are train workers.
    """
    room, resources = Room(capacity), spec.resources
    needs = [need for need in needs_of(spec, None if trains else 0) if need.count]
    most = {
        TRAIN_WORKERS: spec.train.worker_bounds[1],
        "teachers": resources.teachers[1],
        "decoders": resources.decoders[1],
    }
    order = largest_first(needs)
    counts = {need.stage: room.take(need, need.count) for need in order}
    for need in order:
        counts[need.stage] += room.take(need, most[need.stage] - need.count)
    seconds = None if costs is None else costs.seconds_per_clip
    paces = {
        TRAIN_WORKERS: seconds and seconds.students,
        "teachers": seconds and seconds.teachers,
        "decoders": seconds and seconds.decoders,
    }
    stages = tuple(
        Stage(need, count, count / pace if (pace := paces.get(need.stage)) else None)
        for need in needs
        for count in [counts[need.stage]]
    )
    return _outlook(stages, room, costs)


def look_out_cells(spec: StudySpec, capacity: Capacity, costs: Costs | None) -> Outlook:
    """Of a study's cells, which begin when the other stages have ended."""
    room = Room(capacity)
    need = Need("cells", spec.resources.pools.students, 1, spec.study.cell_cpus)
    return _outlook((Stage(need, room.take(need, spec.study.cells), None),), room, costs)


def _outlook(stages: tuple[Stage, ...], room: Room, costs: Costs | None) -> Outlook:
    """Paid for are the nodes in use, and those that stand."""
    kinds = [node.kind for n, node in enumerate(room.nodes) if n in room.used or node.stands]
    nodes = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return Outlook(stages, nodes, None if costs is None else price_of(nodes, costs))


def price_of(nodes: dict[str, int], costs: Costs) -> float | None:
    """Dollars an hour; None where the kind of a node is not known. Raises CapacityError."""
    if "" in nodes:
        return None
    if unknown := [kind for kind in nodes if kind not in costs.dollars_per_hour]:
        raise CapacityError(
            f"`resources.costs`: `dollars_per_hour` has no {', '.join(unknown)}: write what an "
            "hour of it costs"
        )
    return sum(count * costs.dollars_per_hour[kind] for kind, count in nodes.items())


def read_costs(place: str) -> Costs:
    """Raises CapacityError, naming the field."""
    try:
        return Costs.model_validate(yaml.safe_load(storage.read_bytes(place)))
    except (StorageError, yaml.YAMLError) as error:
        raise CapacityError(f"`resources.costs` {place} cannot be read: {error}") from error
    except ValidationError as error:
        raise CapacityError(f"`resources.costs` {place}: {first_mistake(error)}") from error
