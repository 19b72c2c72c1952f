"""One Prefect server and one Dask cluster for all tests of flows: each takes seconds to start."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import distributed
import pytest
from prefect_traces import cleared, let_pass

HERE = Path(__file__).parent
WORKERS = 2
# After 15 s without a worker, Dask forgets it, and starts another one when it is asked to.
_RESTART_S = 20.0
# Two imports of everything, on a machine that does other things: ten times what they take alone.
_START_S = 120.0


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
def _cluster(prefect_api: str) -> Iterator[distributed.LocalCluster]:
    # What Dask measures of itself takes more of two cores than its tasks, over the time that this cluster lives.
    quiet = {"worker.profile.enabled": False, "admin.system-monitor.interval": "5s", "admin.tick.interval": "200ms"}
    with (
        dask.config.set({f"distributed.{name}": value for name, value in quiet.items()}),
        distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def dask_address(_cluster: distributed.LocalCluster) -> str:
    """A Dask cluster of two single-thread workers, each a process."""
    return str(_cluster.scheduler_address)


@pytest.fixture(autouse=True)
def _all_workers(request: pytest.FixtureRequest) -> None:
    """Both workers are there, whatever tests before have killed: Dask starts none again that is killed at its start."""
    if "dask_address" not in request.fixturenames:
        return
    cluster: distributed.LocalCluster = request.getfixturevalue("_cluster")
    until = time.monotonic() + _RESTART_S
    while len(there := cluster.scheduler_info["workers"]) < WORKERS and time.monotonic() < until:
        time.sleep(0.05)
    if len(there) < WORKERS:
        given_up = [name for name, nanny in cluster.workers.items() if nanny.worker_address not in there]
        cluster.sync(cluster.scale_down, given_up)
        cluster.scale(WORKERS)
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(WORKERS, timeout=_START_S)
