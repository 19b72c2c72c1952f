"""A Prefect server for as long as a production lasts, where none is configured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings, temporary_settings

# On a busy machine it took 24 s the first time, when it makes its database.
_START_S = 90
_LAUNCH = (
    "import sys; from p3s_prefect.adapters.pilot.descendants import die_with_parent; "
    "die_with_parent(int(sys.argv.pop(1))); import runpy; runpy.run_module('uvicorn', run_name='__main__')"
)


class _Server(SubprocessASGIServer):
    def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
        """The server, which does not outlive this process, however that ends.

        In a session of its own: Ctrl-C at a terminal reaches the whole group of processes, and the flow is stopped by
        way of its server.
        """
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error", "--lifespan", "on"]
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        return subprocess.Popen(  # noqa: S603 -- it is this interpreter
            [
                sys.executable,
                "-c",
                _LAUNCH,
                str(os.getpid()),
                "--factory",
                "prefect.server.api.server:create_app",
                *where,
            ],
            env={**os.environ, **own, **settings},
            start_new_session=True,
        )


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
    server = _Server()
    with temporary_settings(settings):
        server.start(timeout=_START_S)
    with temporary_settings({"api.url": server.api_url}):
        yield server.api_url
