"""Serving the station's page: the socket, which is taken before anything else, and the server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.settings import Settings

# A browser that does not close its connection must not keep the station from stopping.
_PAGE_STOP_S = 3


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The station deals with signals: pages are served until its work has ended."""
        yield


def page_server(app: Starlette) -> uvicorn.Server:
    """A server that leaves signals to the station."""
    # Requests are not logged: their paths may carry the token.
    return _Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_PAGE_STOP_S)
    )


def listen(experiment: Experiment, settings: Settings) -> socket.socket:
    """The socket on which the page will be served.

    Raises:
        ServiceError: it would be open to everybody, or another program has it.
    """
    host, port = experiment.station.host, experiment.station.port
    if settings.token is None and not _is_loopback(host):
        raise ServiceError(
            f"the page would be open to everybody on {host}",
            fix="Set P3S_TOKEN to a secret of your own, or station.host to 127.0.0.1.",
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ServiceError(
            f"the page cannot be served on {host}:{port}: {error.strerror}",
            fix="Another program has this port: stop it, or set station.port (0 takes a free one).",
        ) from error


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def page_url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 -- what was bound, not what to bind
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
