"""Fixtures that every test may use."""

import socket

import pytest


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def unused_tcp_port() -> int:
    return free_port()
