"""Ports of this machine for servers that are started a moment later."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

from p3s_prefect.core.errors import ServiceError

HOST = "127.0.0.1"
# Below those that Linux gives to connections, from 32768 on: such a port, free now, may be a client's before the server
# that it was chosen for has started, which takes seconds.
_PORTS = range(20_000, 32_000)
_TRIES = 1_000


def free_port(wanted: int = 0) -> int:
    """This port if nobody has it; else, or for 0, another one.

    Raises:
        ServiceError: none was found.
    """
    if wanted:
        with contextlib.suppress(OSError), socket.create_server((HOST, wanted)):
            return wanted
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many ports that nobody has; raises as `free_port`."""
    with ExitStack() as held:
        found = [held.enter_context(server) for server in islice(_servers(), count)]
        if len(found) < count:
            raise ServiceError("this machine has no free port", fix="End what takes them all.")
        return [int(one.getsockname()[1]) for one in found]


def _servers() -> Iterator[socket.socket]:
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            yield socket.create_server((HOST, secrets.choice(_PORTS)))
