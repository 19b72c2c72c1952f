"""That tests stand by themselves: what `isolation.py` promises."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from isolation import forget_settings


def test_sockets_are_off_unless_marked() -> None:
    with socket.socket() as unmarked, pytest.raises(RuntimeError, match="sockets are off"):
        unmarked.bind(("127.0.0.1", 0))
    with socket.socket() as unmarked, pytest.raises(RuntimeError, match="sockets are off"):
        unmarked.connect(("127.0.0.1", 9))


@pytest.mark.sockets
def test_loopback_is_open_to_a_marked_test_and_nothing_else_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        pass
    with socket.socket() as outward, pytest.raises(RuntimeError, match="tests never leave"):
        outward.connect(("192.0.2.1", 80))
    with socket.socket() as everywhere, pytest.raises(RuntimeError, match="tests never leave"):
        everywhere.bind(("0.0.0.0", 0))  # noqa: S104


async def test_asyncio_works_without_sockets() -> None:
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


def test_settings_of_whoever_runs_the_tests_do_not_reach_them() -> None:
    environment = {
        "P3S_TOKEN": "secret",
        "PREFECT_API_URL": "http://else",
        "DASK_X": "1",
        "PATH": "/bin",
        "P3S_KILLS": "9",
    }
    forget_settings(environment)
    assert environment == {"PATH": "/bin", "P3S_KILLS": "9"}
    assert "p3s-tests-" in os.environ["HOME"]
