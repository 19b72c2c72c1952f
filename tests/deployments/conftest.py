"""One Prefect server for all tests of deployments, as it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deployed_sites import DeployedSite
from prefect_servers import PrefectProcess
from prefect_traces import cleared, let_pass

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prefect leaves things behind."""
    let_pass(items, HERE)


@pytest.fixture(scope="module", autouse=True)
def _cleared() -> Iterator[None]:
    """What Prefect has left ends with the tests that it served."""
    with cleared():
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectProcess]:
    """A real server that no test harms."""
    os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with closing(PrefectProcess(tmp_path_factory.mktemp("prefect"))) as found:
        found.start()
        found.until_up()
        yield found


@pytest.fixture
def site(server: PrefectProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeployedSite]:
    """A site whose files are written, and nothing else done."""
    from prefect.settings import temporary_settings

    found = DeployedSite(path=tmp_path / "home")
    found.declare()
    monkeypatch.setenv("P3S_HOME", str(found.path))
    monkeypatch.setenv("P3S_SITE", found.name)
    with temporary_settings({"api.url": server.api}):
        yield found
