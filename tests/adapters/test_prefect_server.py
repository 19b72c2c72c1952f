"""Prefect's server and the agent as services: what the experiment file says about them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.prefect_server import prefect_api, prefect_page, prefect_programs
from p3s_prefect.core.experiment import Experiment, Prefect

pytestmark = pytest.mark.sockets


def declared(**prefect: Any) -> Experiment:
    return Experiment.model_construct(prefect=Prefect(**prefect))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "50% of a run")


def test_without_prefect_nothing_of_it_is_started(home: Home) -> None:
    """V18 (enabled): and nobody is told an address, also where there was one before."""
    prefect_programs(home, declared(port=0))
    off = declared(enabled=False)
    assert prefect_programs(home, off) == []
    assert prefect_page(home, off) is None
    assert prefect_page(home, declared()) is None


def test_a_server_that_exists_is_used_instead(home: Home) -> None:
    """V18 (api_url): only the agent is started, and told where it is."""
    experiment = declared(api_url="http://prefect.example:4200/api")
    (agent,) = prefect_programs(home, experiment)
    assert agent.name == "agent"
    assert agent.environment["PREFECT_API_URL"] == "http://prefect.example:4200/api"
    assert prefect_page(home, experiment) == "http://prefect.example:4200"
    assert prefect_api(home, experiment) == "http://prefect.example:4200/api"


def test_the_server_has_its_port_and_the_page_asks_there(home: Home) -> None:
    """V18 (port): on another port than 4200, the page would ask the wrong server by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    experiment = declared(port=port)
    server, agent = prefect_programs(home, experiment)
    assert server.command[-2:] == ("--port", str(port))
    assert server.environment["PREFECT_SERVER_UI_API_URL"] == f"http://127.0.0.1:{port}/api"
    assert agent.environment["PREFECT_API_URL"] == prefect_api(home, experiment) == f"http://127.0.0.1:{port}/api"
    assert server.environment["PREFECT_HOME"] == agent.environment["PREFECT_HOME"] == str(home.path / "prefect")


def test_a_port_that_is_taken_does_not_keep_the_station_from_starting(home: Home) -> None:
    """V18 (port), V21: what shows is not needed by what computes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server, _ = prefect_programs(home, declared(port=port))
    assert server.command[-1] != str(port)
    assert prefect_page(home, declared(port=port)) == f"http://127.0.0.1:{server.command[-1]}"


def test_prefect_understands_every_setting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """V18: portions, retention and the page's address are what the server then has."""
    server, _ = prefect_programs(home, declared(port=0))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    from prefect.settings import Settings

    services, events = Settings().server.services, Settings().server.events
    assert (services.task_run_recorder.batch_size, services.task_run_recorder.read_batch_size) == (100, 100)
    assert (services.event_persister.batch_size, services.event_persister.flush_interval) == (200, 1)
    assert services.triggers.read_batch_size == 100
    assert services.db_vacuum.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert (services.db_vacuum.retention_period.days, events.retention_period.days) == (30, 2)
    assert Settings().server.analytics_enabled is False
    assert Settings().server.ui.api_url == server.environment["PREFECT_SERVER_UI_API_URL"]
