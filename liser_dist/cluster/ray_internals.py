"""Wraps the private API of Ray core that this package uses.

Ray has no public API for these functions. They were written against the source of Ray 2.60, which
`pyproject.toml` pins; each function says what to check when that pin changes. Private API of Ray
Data and of Ray Train is wrapped in `ray_data_internals` and `ray_train_internals`, so that a
process that only counts nodes loads neither library.
"""

from __future__ import annotations

from collections.abc import Collection


def draining_nodes() -> Collection[str]:
    """Return the ids of the nodes that are about to leave the connected cluster.

    Read in Ray 2.60. `ray.nodes()` still lists a node as alive after it got its notice. At an
    upgrade, check whether `ray.nodes()` or the state API reports draining nodes, and that this
    call still returns a mapping whose keys are node ids in hex.
    """
    import ray

    nodes: Collection[str] = ray._private.state.state.get_draining_nodes()
    return nodes
