"""A Prefect server for as long as a production lasts, where none is configured."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings, temporary_settings
from prefect.utilities.asyncutils import run_coro_as_sync

# On a busy machine it took 24 s the first time, when it makes its database.
_START_S = 90


@contextmanager
def prefect_server(directory: Path) -> Iterator[str]:
    """The address of Prefect's API: the one that is configured, or else that of a temporary server on loopback.

    A temporary server keeps its database in `directory`, so that the next one starts faster. Without it here, each of
    Dask's workers would start a server of its own.
    """
    if url := get_current_settings().api.url:
        yield url
        return
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "server.database.connection_url": f"sqlite+aiosqlite:///{directory.resolve() / 'prefect.db'}",
        "server.analytics_enabled": False,
        "server.logging_level": "CRITICAL",
    }
    with temporary_settings(settings):
        server = SubprocessASGIServer()
        server.start(timeout=_START_S)
        try:
            with temporary_settings({"api.url": server.api_url}):
                yield server.api_url
                run_coro_as_sync(_send_what_waits())
        finally:
            server.stop()


async def _send_what_waits() -> None:
    """Logs and events are sent from threads, which would complain that the server is gone."""
    for sending in (APILogWorker.instance().drain(), EventsWorker.drain_all()):
        if inspect.isawaitable(sending):
            await sending
