"""One Prefect server and one Dask cluster for all tests of flows: each takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
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
def prefect_api() -> Iterator[str]:
    """The address of a real Prefect server with a database of its own, which this process uses from now on."""
    os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def dask_address(prefect_api: str) -> Iterator[str]:
    """A Dask cluster of two single-thread workers, each a process."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield str(cluster.scheduler_address)
