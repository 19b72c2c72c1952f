"""The health row of a work pool: does somebody take what is to be run?"""

from __future__ import annotations

import pytest

from p3s_prefect.core.health import Status
from p3s_prefect.core.pool_health import PoolFacts, pool

FACTS = {"name": "production", "type": "process", "is_paused": False, "deployments": ("produce/produce",)}


@pytest.mark.parametrize(
    ("has_workers", "waiting", "status", "actual"),
    [
        (True, 0, Status.OK, "a worker, nothing waits"),
        (True, 2, Status.OK, "a worker, 2 runs wait"),
        (False, 0, Status.OK, "no worker, nothing waits"),
        (False, 1, Status.DEGRADED, "no worker, 1 run waits"),
    ],
)
def test_runs_without_a_worker_are_told(has_workers: bool, waiting: int, status: Status, actual: str) -> None:
    """P19: it is said that there is none, and it is bad as soon as something waits."""
    row = pool(PoolFacts(has_workers=has_workers, waiting=waiting, **FACTS))
    assert (row.status, row.actual) == (status, actual)
    if status is not Status.OK:
        assert "produce/produce" in row.cause
        assert "prefect worker start --pool production" in row.action


def test_a_paused_pool_says_so() -> None:
    """P19: a worker that is there takes nothing."""
    row = pool(PoolFacts(has_workers=True, waiting=1, **FACTS | {"is_paused": True}))
    assert row.status is Status.DEGRADED
    assert "prefect work-pool resume production" in row.action


def test_the_pool_of_the_station_is_served_by_its_services() -> None:
    """P19: its worker is not started by hand in the first place."""
    row = pool(PoolFacts(has_workers=False, waiting=1, **FACTS | {"name": "site", "type": "p3s"}))
    assert "`p3s up`" in row.action
