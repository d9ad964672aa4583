"""How far a cluster can grow: the node types of a file that `ray up` takes, as a Capacity."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.cluster import Capacity, Node, find_cluster
from liser_dist.errors import CapacityError, StorageError
from liser_dist.fields import POOL, first_mistake


class _Type(BaseModel):
    resources: dict[str, float]
    labels: dict[str, str]
    min_workers: int = Field(0, ge=0)
    max_workers: int | None = Field(None, ge=0)
    node_config: dict[str, Any] = {}

    def bounds(self, in_all: int) -> tuple[int, int]:
        most = in_all if self.max_workers is None else self.max_workers
        return min(self.min_workers, most), most

    @property
    def kind(self) -> str:
        market = self.node_config.get("InstanceMarketOptions", {}).get("MarketType", "")
        return f"{self.node_config.get('InstanceType', '')} {market}".strip()


_TYPES = TypeAdapter(dict[str, _Type])


def capacity_of(cluster_file: str | None) -> Capacity:
    """The nodes that there are; with a file, those that there could be. Raises CapacityError."""
    there = find_cluster()
    return there if cluster_file is None else read_cluster(cluster_file, "resources.cluster")


def read_cluster(place: str, field: str) -> Capacity:
    """All nodes that there could be at once. Raises CapacityError, naming the field."""
    try:
        content = yaml.safe_load(storage.read_bytes(place))
        head, types = content["head_node_type"], content["available_node_types"]
        in_all = int(content.get("max_workers", 2))  # 2 is Ray's own default
        known = _TYPES.validate_python(types)
    except StorageError as error:
        raise CapacityError(f"`{field}` {place} cannot be read: {error}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CapacityError(
            f"`{field}` {place} is no file for `ray up` ({type(error).__name__}: {error}): give "
            "one with `head_node_type` and `available_node_types`"
        ) from error
    except ValidationError as error:
        raise CapacityError(
            f"`{field}` {place}: in `available_node_types`, {first_mistake(error)}; write it "
            "there, as Ray would ask AWS for it"
        ) from error
    nodes = []
    for name, kind in known.items():
        if POOL not in kind.labels:
            raise CapacityError(
                f"`{field}` {place}: the node type {name} has no label `{POOL}`, so that no "
                f"stage would run there: write `labels: {{{POOL}: decoders}}`, or teachers, "
                "students, head"
            )
        stand, most = (1, 1) if name == head else kind.bounds(in_all)
        for number in range(most):
            nodes.append(Node(kind.resources, kind.labels[POOL], kind.kind, number < stand))
    if len(nodes) - 1 > in_all:
        raise CapacityError(
            f"`{field}` {place}: `max_workers` is {in_all}, and the node types may have "
            f"{len(nodes) - 1} in all: raise it, or lower theirs"
        )
    return Capacity(place, tuple(nodes))
