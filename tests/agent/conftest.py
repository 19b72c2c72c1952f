"""The Prefect server as the agent sees it, and books that it records."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prefect_servers import PrefectProcess
from prefect_traces import cleared, let_pass
from recorded_books import Books

from p3s_prefect.agent.server import PrefectServer

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
async def server(prefect: PrefectProcess) -> AsyncIterator[PrefectServer]:
    """The same, as the agent sees it."""
    from prefect.client.orchestration import get_client
    from prefect.settings import temporary_settings

    with temporary_settings({"api.url": prefect.api}):
        async with get_client() as client:
            yield PrefectServer(client)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    """A home whose ledger says what a test makes it say; its experiment has a name of its own."""
    with closing(Books(tmp_path / "home", f"e{uuid.uuid4().hex[:8]}")) as found:
        yield found
