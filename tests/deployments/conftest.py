"""Sites to be deployed in the Prefect server that tests share."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture
def site(prefect: PrefectProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeployedSite]:
    """A site whose files are written, and nothing else done."""
    from prefect.settings import temporary_settings

    found = DeployedSite(path=tmp_path / "home")
    found.declare()
    monkeypatch.setenv("P3S_HOME", str(found.path))
    monkeypatch.setenv("P3S_SITE", found.name)
    with temporary_settings({"api.url": prefect.api}):
        yield found
