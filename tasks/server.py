"""A Prefect server for as long as a production lasts, where none is configured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings, temporary_settings

# On a busy machine it took 24 s the first time, when it makes its database.
_START_S = 90


@contextmanager
def prefect_server(directory: Path) -> Iterator[str]:
    """The address of Prefect's API: the one that is configured, or else that of a temporary server on loopback.

    A temporary server keeps its database in `directory`, so that the next one starts faster. Without it here, each of
    Dask's workers would start a server of its own. It goes on until this process ends: Prefect's threads send logs and
    events until then, and would wait for a minute for one that is gone.
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
    server = SubprocessASGIServer()
    with temporary_settings(settings):
        server.start(timeout=_START_S)
    with temporary_settings({"api.url": server.api_url}):
        yield server.api_url
