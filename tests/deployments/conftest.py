"""One Prefect server for all tests of deployments, as it takes seconds to start."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deployed_sites import DeployedSite
from prefect_servers import PrefectProcess

HERE = Path(__file__).parent
# Prefect 3.8 leaves connections to its server, and their event loops, to the garbage collector.
UNCLOSED = "ignore:unclosed:ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing else is let pass, and elsewhere not even that."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED))


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What Prefect has left is collected here, not during somebody else's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


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
