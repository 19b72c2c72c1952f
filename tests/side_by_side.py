"""For all tests: with `pytest -n 3`, which of them stay in one process, and which begin first."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

# Tests that share a Prefect server, which costs ten seconds of a core to start, by the beginning of their names.
_SERVERS = {
    "tests/agent/": "prefect",
    "tests/deployments/": "prefect",
    "tests/station/test_station_controls.py": "prefect",
    "tests/flows/": "flows",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for servers begins first: what only computes then fills the gaps, and is soon over at the end."""
    patient = {_file(item.nodeid) for item in items if item.get_closest_marker("sockets") is not None}
    items.sort(key=lambda item: _place(item.nodeid, patient))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps files whole, as their tests share what fixtures have made; and so those that share a server."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _server(nodeid) or _file(nodeid)

    # In the order in which they were collected, and not the file with most tests first.
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def _place(nodeid: str, patient: Collection[str]) -> int:
    if _server(nodeid):
        return 0
    return 1 if _file(nodeid) in patient else 2


def _server(nodeid: str) -> str | None:
    return next((server for begins, server in _SERVERS.items() if nodeid.startswith(begins)), None)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]
