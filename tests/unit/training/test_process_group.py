"""Train workers connect over the network on which Ray knows their node."""

import os

import psutil
import pytest

from liser_dist.training.process_group import _use_interface_of


def test_gloo_uses_the_interface_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    _use_interface_of("127.0.0.1")
    name = os.environ["GLOO_SOCKET_IFNAME"]
    assert "127.0.0.1" in [each.address for each in psutil.net_if_addrs()[name]]
    _use_interface_of("10.0.0.1")  # the user's own choice, and what was found, stay
    assert os.environ["GLOO_SOCKET_IFNAME"] == name
