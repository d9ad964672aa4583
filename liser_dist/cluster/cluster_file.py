"""Reads from a cluster file for `ray up` which nodes the cluster has at its largest."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity, Node
from liser_dist.cluster.connect import find_cluster
from liser_dist.config.base import first_mistake
from liser_dist.config.resources import POOL
from liser_dist.errors import CapacityError, StorageError


class _NodeType(BaseModel):
    resources: dict[str, float]
    labels: dict[str, str]
    min_workers: int = Field(0, ge=0)
    max_workers: int | None = Field(None, ge=0)
    node_config: dict[str, Any] = {}

    def bounds(self, max_workers: int) -> tuple[int, int]:
        """Fewest and most nodes of this type, where the cluster has at most `max_workers`."""
        most = max_workers if self.max_workers is None else self.max_workers
        return min(self.min_workers, most), most

    @property
    def instance_type(self) -> str:
        """The type as the costs file names it: with its market behind it, such as " spot"."""
        market = self.node_config.get("InstanceMarketOptions", {}).get("MarketType", "")
        return f"{self.node_config.get('InstanceType', '')} {market}".strip()


_NODE_TYPES = TypeAdapter(dict[str, _NodeType])


def capacity_of(cluster_file: str | None) -> Capacity:
    """Return the nodes of the running cluster, or with a file all nodes that it can have.

    Connects to the running cluster in both cases.

    Raises:
        CapacityError: The file is wrong, or RAY_ADDRESS names a cluster that does not respond.
    """
    running = find_cluster()
    return running if cluster_file is None else read_cluster(cluster_file, "resources.cluster")


def read_cluster(path: str, field: str) -> Capacity:
    """Read a cluster file and return all nodes that may run at the same time.

    Args:
        path: The file.
        field: The field of the spec that names the file, for error messages.

    Raises:
        CapacityError: The file cannot be read, or is not a cluster file with a pool label on each
            node type.
    """
    try:
        content = yaml.safe_load(storage.read_bytes(path))
        head, types = content["head_node_type"], content["available_node_types"]
        max_workers = int(content.get("max_workers", 2))  # 2 is Ray's own default
        node_types = _NODE_TYPES.validate_python(types)
    except StorageError as error:
        raise CapacityError(f"`{field}`: {error}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CapacityError(
            f"`{field}` {path} is not a cluster file for `ray up` ({type(error).__name__}: "
            f"{error}): set it to a file with `head_node_type` and `available_node_types`"
        ) from error
    except ValidationError as error:
        raise CapacityError(
            f"`{field}` {path}: in `available_node_types`, {first_mistake(error)}; list "
            "`resources` (such as `CPU: 16`) and `labels` for each node type, because this check "
            "does not ask AWS for them"
        ) from error
    nodes = []
    for name, node_type in node_types.items():
        if POOL not in node_type.labels:
            raise CapacityError(
                f"`{field}` {path}: the node type {name} has no label `{POOL}`, so no stage would "
                f"run on it: add `labels: {{{POOL}: decoders}}` (or `teachers`, `students`, `head`)"
            )
        least, most = (1, 1) if name == head else node_type.bounds(max_workers)
        for number in range(most):
            nodes.append(
                Node(
                    node_type.resources,
                    node_type.labels[POOL],
                    node_type.instance_type,
                    always_on=number < least,
                )
            )
    if len(nodes) - 1 > max_workers:
        raise CapacityError(
            f"`{field}` {path}: the `max_workers` of the cluster is {max_workers}, but its node "
            f"types allow {len(nodes) - 1} workers together: raise the `max_workers` of the "
            "cluster to that number, or lower the `max_workers` of the node types"
        )
    return Capacity(path, tuple(nodes))
