"""Gives each node of a local cluster a network of its own, which can be cut off.

Each node runs in a Linux network namespace with two virtual cables: one to the other nodes, which
can be unplugged, and one to the S3 server. Creating namespaces requires root, which containers and
most CI machines provide.

    this machine            10.77.i.1 (cluster)   10.78.i.1 (S3)
    node n's namespace      10.77.i.n+1           10.78.i.n+1

The number i is one that no other network of this machine uses.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from typing import Self

import psutil

_CLUSTER, _S3 = "cluster", "s3"
_RANGES = {_CLUSTER: "10.77", _S3: "10.78"}


class NodeNetwork:
    """Two bridges on this machine, and a namespace for each node, until the context ends.

    Raises:
        CalledProcessError: On entering the context, if this user may not create them.
    """

    def __init__(self) -> None:
        self._id = _find_free_number(os.getpid())
        self._subnets = {name: f"{start}.{self._id}" for name, start in _RANGES.items()}
        self._nodes: list[int] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._remove)
            for name, subnet in self._subnets.items():
                bridge = self._bridge(name)
                _ip("link", "add", bridge, "type", "bridge")
                _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
                _ip("link", "set", bridge, "up")
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def cluster_host(self) -> str:
        """This machine's address among the nodes."""
        return f"{self._subnets[_CLUSTER]}.1"

    @property
    def s3_host(self) -> str:
        """The address on which nodes reach the S3 server."""
        return f"{self._subnets[_S3]}.1"

    def add_node(self, number: int) -> str:
        """Create the namespace of a node, numbered from 1; return its address in the cluster."""
        self._nodes.append(number)
        namespace = self._namespace(number)
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        for name, subnet in self._subnets.items():
            outside, inside = self._cable(name, number), f"{name}0"
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", namespace)
            _ip("link", "set", outside, "master", self._bridge(name), "up")
            _ip("-n", namespace, "addr", "add", f"{subnet}.{number + 1}/24", "dev", inside)
            _ip("-n", namespace, "link", "set", inside, "up")
        return f"{self._subnets[_CLUSTER]}.{number + 1}"

    def command(self, number: int, command: Sequence[str]) -> list[str]:
        """Return a command that runs in the namespace of a node."""
        return ["ip", "netns", "exec", self._namespace(number), *command]

    def s3_address(self, number: int) -> str:
        """Return the address from which a node talks to the S3 server."""
        return f"{self._subnets[_S3]}.{number + 1}"

    def unplug(self, number: int) -> None:
        """Cut a node off from the cluster, but not from S3: packets are dropped."""
        _ip("link", "set", self._cable(_CLUSTER, number), "down")

    def _bridge(self, name: str) -> str:
        return f"lb{name[0]}{self._id}"

    def _cable(self, name: str, number: int) -> str:
        return f"lv{name[0]}{self._id}n{number}"

    def _namespace(self, number: int) -> str:
        return f"liser{self._id}n{number}"

    def _remove(self) -> None:
        for number in self._nodes:
            _ip("netns", "del", self._namespace(number), check=False)
        for name in _RANGES:
            _ip("link", "del", self._bridge(name), check=False)


def _find_free_number(first: int) -> int:
    """Return the third byte of subnets in which this machine has no address.

    A network of another process, or one that a killed process left behind, keeps its own.

    Args:
        first: The number to try first, modulo 256. Processes that start together differ in it.
    """
    used = {each.address for found in psutil.net_if_addrs().values() for each in found}
    for number in (each % 256 for each in range(first, first + 256)):
        if used.isdisjoint(f"{start}.{number}.1" for start in _RANGES.values()):
            return number
    raise RuntimeError(
        "all subnets of 10.77.0.0/16 and 10.78.0.0/16 are used on this machine: remove the bridges "
        "of killed benchmarks with `ip link del lbc...` and `ip link del lbs...`"
    )


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
