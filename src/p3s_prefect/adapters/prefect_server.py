"""Prefect's server and the agent as services of a home. This process itself needs no Prefect for that."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.programs import Program
from p3s_prefect.core.experiment import Experiment

# By itself the server recorded 30 task runs a second, and was 45 s late under load; with larger portions it records
# 110 to 120, without delay. A flush interval below 1 s burns a whole core. Of flow and task runs it removes none
# unless it is told; a task run takes 10 to 19 kB. Events are there for Prefect's own feed.
_SETTINGS = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "P30D",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P2D",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    # A detector's machines do not tell a company what they do.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
# What computes goes first: starting the server alone takes 10 s of a core.
_POLITELY = ("nice", "-n", "10")
# Importing Prefect costs 3 s of a core: what ends sooner than this is started again after a pause that grows.
_SETTLES_S = 20
_HOST = "127.0.0.1"


def prefect_programs(home: Home, experiment: Experiment) -> list[Program]:
    """The server, unless another one is used, and the agent; nothing where the experiment file does without."""
    if not experiment.prefect.enabled:
        _forget(home)
        return []
    if experiment.prefect.api_url is not None:
        _forget(home)
        return [_agent(home, experiment.prefect.api_url)]
    port = free_port(experiment.prefect.port)
    _announce(home, f"http://{_HOST}:{port}")
    return [_server(home, port), _agent(home, f"http://{_HOST}:{port}/api")]


def prefect_api(home: Home, experiment: Experiment) -> str | None:
    """The address of Prefect's API; None if this home has no server."""
    if experiment.prefect.api_url is not None:
        return experiment.prefect.api_url
    page = prefect_page(home, experiment)
    return None if page is None else f"{page}/api"


def prefect_page(home: Home, experiment: Experiment) -> str | None:
    """Where people see Prefect; None if this home has no server."""
    if not experiment.prefect.enabled:
        return None
    if experiment.prefect.api_url is not None:
        return experiment.prefect.api_url.rstrip("/").removesuffix("/api")
    try:
        return str(json.loads(_file(home).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def server_environment(home: Home, port: int) -> Mapping[str, str]:
    """What a server of this home is started with."""
    api = f"http://{_HOST}:{port}/api"
    return _SETTINGS | _own(home) | {"PREFECT_API_URL": api, "PREFECT_SERVER_UI_API_URL": api}


# --- inside ---------------------------------------------------------------------------------------------------------


def _server(home: Home, port: int) -> Program:
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(port))
    return Program(
        name="prefect",
        command=(*_POLITELY, *command),
        order=40,
        stop_wait_s=10,
        settles_s=_SETTLES_S,
        environment=server_environment(home, port),
    )


def _agent(home: Home, api_url: str) -> Program:
    command = (sys.executable, "-m", "p3s_prefect.cli", "agent", "--home", str(home.path.resolve()))
    return Program(
        name="agent",
        command=(*_POLITELY, *command),
        order=50,
        settles_s=_SETTLES_S,
        environment=_own(home) | {"PREFECT_API_URL": api_url, "DO_NOT_TRACK": "1"},
    )


def _own(home: Home) -> dict[str, str]:
    # Its database and settings belong to this home, and not to whoever starts it.
    return {"PREFECT_HOME": str(home.path.resolve() / "prefect")}


def _file(home: Home) -> Path:
    return home.run / "prefect.json"


def _announce(home: Home, url: str) -> None:
    home.run.mkdir(parents=True, exist_ok=True)
    _file(home).write_text(json.dumps({"url": url}))


def _forget(home: Home) -> None:
    _file(home).unlink(missing_ok=True)
