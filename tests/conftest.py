"""Fixtures that every test may use."""

import pytest

from liser_dist.benchmarks.testbed.local_cluster import free_port


@pytest.fixture
def unused_tcp_port() -> int:
    return free_port()
