"""Fixtures that every test may use."""

import socket

import pytest


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
