"""Each node has a network of its own, which can be cut off while it still reaches S3."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from liser_dist.benchmarks.testbed.network import NodeNetwork


@pytest.fixture
def network() -> Iterator[NodeNetwork]:
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(NodeNetwork())
        except subprocess.CalledProcessError:
            pytest.skip("this user may not create network namespaces")
        yield network


def reaches(network: NodeNetwork, node: int, host: str) -> bool:
    """Whether a TCP connection gets an answer: it is refused, for nothing listens there."""
    command = network.command(node, ["timeout", "4", "bash", "-c", f"echo > /dev/tcp/{host}/9"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "refused" in done.stderr


def test_a_node_that_is_cut_off_still_reaches_s3(network: NodeNetwork) -> None:
    _, other = [network.add_node(number) for number in (1, 2)]
    for host in (network.cluster_host, network.s3_host, other):
        assert reaches(network, 1, host)
    network.unplug(1)
    assert not reaches(network, 1, network.cluster_host)
    assert not reaches(network, 1, other)
    assert reaches(network, 1, network.s3_host)
    assert reaches(network, 2, network.cluster_host)


def test_a_network_beside_one_of_a_killed_process(network: NodeNetwork) -> None:
    network.add_node(1)
    with NodeNetwork() as second:
        second.add_node(1)
        assert reaches(second, 1, second.cluster_host)
        assert reaches(network, 1, network.cluster_host)
        namespace = second.command(1, [])[3]
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert namespace not in left
