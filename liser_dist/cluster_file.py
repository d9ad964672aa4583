"""How far a cluster can grow: the node types of a file that `ray up` takes, as a Capacity."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.cluster import Capacity, Node
from liser_dist.errors import CapacityError, StorageError
from liser_dist.fields import POOL


class _Type(BaseModel):
    resources: dict[str, float]
    labels: dict[str, str]
    max_workers: int = Field(1, ge=0)
    node_config: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        market = self.node_config.get("InstanceMarketOptions", {}).get("MarketType", "")
        return f"{self.node_config.get('InstanceType', '')} {market}".strip()


_TYPES = TypeAdapter(dict[str, _Type])


def read_cluster(place: str, field: str) -> Capacity:
    """All nodes that there could be at once. Raises CapacityError, naming the field."""
    try:
        content = yaml.safe_load(storage.read_bytes(place))
        head, types = content["head_node_type"], content["available_node_types"]
        known = _TYPES.validate_python(types)
    except (StorageError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CapacityError(
            f"`{field}` {place} is no file for `ray up` ({type(error).__name__}: {error}): give "
            "one with `head_node_type` and `available_node_types`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CapacityError(
            f"`{field}` {place}: `available_node_types.{where}`: {first['msg']}; write it there, "
            "as Ray would ask AWS for it"
        ) from error
    nodes = []
    for name, kind in known.items():
        if POOL not in kind.labels:
            raise CapacityError(
                f"`{field}` {place}: the node type {name} has no label `{POOL}`, so that no "
                f"stage would run there: write `labels: {{{POOL}: decoders}}`, or teachers, "
                "students, head"
            )
        count = 1 if name == head else kind.max_workers
        nodes += [Node(kind.resources, kind.labels[POOL], kind.kind)] * count
    return Capacity(place, tuple(nodes))
