"""Ports for servers that are started a moment later."""

from __future__ import annotations

import socket

import pytest

from p3s_prefect.adapters import free_ports
from p3s_prefect.adapters.free_ports import HOST, free_port
from p3s_prefect.core.errors import ServiceError

pytestmark = pytest.mark.sockets


def test_the_wanted_port_is_given_if_nobody_has_it() -> None:
    """S8: another one otherwise."""
    wanted = free_port()
    assert free_port(wanted) == wanted
    with socket.create_server((HOST, wanted)):
        assert free_port(wanted) != wanted


def test_no_connection_can_take_one_before_its_server_has_started() -> None:
    """V20: the kernel chooses from another range; all are there at once, so that none is given twice."""
    found = free_ports.free_ports(50)
    assert len(set(found)) == 50
    with socket.create_server((HOST, 0)) as chosen:
        assert max(found) < 32_768 <= chosen.getsockname()[1]


def test_where_none_is_free_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """S8."""
    with socket.create_server((HOST, 0)) as taken:
        monkeypatch.setattr(free_ports, "_PORTS", [taken.getsockname()[1]])
        with pytest.raises(ServiceError, match="no free port"):
            free_port()
