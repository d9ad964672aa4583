"""Each node has a network of its own, which can be cut off while it still reaches S3."""

import subprocess

import pytest

from liser_dist.benchmarks.testbed.network import NodeNetwork


def reaches(network: NodeNetwork, node: int, host: str) -> bool:
    """Whether a TCP connection gets an answer: it is refused, for nothing listens there."""
    command = network.command(node, ["timeout", "2", "bash", "-c", f"echo > /dev/tcp/{host}/9"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "refused" in done.stderr


def test_a_node_that_is_cut_off_still_reaches_s3() -> None:
    try:
        with NodeNetwork() as network:
            assert [network.add_node(number) for number in (1, 2)] == ["10.77.0.2", "10.77.0.3"]
            for host in (network.cluster_host, network.s3_host, "10.77.0.3"):
                assert reaches(network, 1, host)
            network.unplug(1)
            assert not reaches(network, 1, network.cluster_host)
            assert not reaches(network, 1, "10.77.0.3")
            assert reaches(network, 1, network.s3_host)
            assert reaches(network, 2, network.cluster_host)
    except subprocess.CalledProcessError:
        pytest.skip("this user may not create network namespaces")
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert network.command(1, [])[3] not in left
