"""One Prefect server and one Dask cluster for all tests of flows: each takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import distributed
import pytest


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a real Prefect server with a database of its own, which this process uses from now on."""
    os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=90):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def dask_address(prefect_api: str) -> Iterator[str]:
    """A Dask cluster of two single-thread workers, each a process."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield str(cluster.scheduler_address)
