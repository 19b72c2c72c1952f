"""The health row of a work pool: does somebody take what is to be run?"""

from __future__ import annotations

import pytest

from p3s_prefect.core.health import Status
from p3s_prefect.core.pool_health import PoolFacts, pool, untold

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
    row = pool(PoolFacts(has_workers=has_workers, waiting=waiting, **FACTS), own="p3s")
    assert (row.status, row.actual) == (status, actual)
    if status is not Status.OK:
        assert "produce/produce" in row.cause
        assert "prefect worker start --pool production" in row.action


def test_a_paused_pool_says_so() -> None:
    """P19: a worker that is there takes nothing."""
    row = pool(PoolFacts(has_workers=True, waiting=1, **FACTS | {"is_paused": True}), own="p3s")
    assert row.status is Status.DEGRADED
    assert "prefect work-pool resume production" in row.action


def test_the_pool_of_the_station_is_served_by_its_services() -> None:
    """P19: its worker is not started by hand in the first place."""
    facts = PoolFacts(has_workers=False, waiting=1, **FACTS | {"name": "site", "type": "p3s"})
    assert pool(facts, own="site").action.startswith("`p3s up` starts it; or look")
    # Another home's `p3s up` serves another pool.
    assert "`prefect: {pool: site}`" in pool(facts, own="p3s").action


def test_a_server_that_tells_nothing_is_told() -> None:
    """P19: no row at all would look like health."""
    row = untold("it answers 401", "Set PREFECT_API_KEY.")
    assert (row.status, row.cause, row.action) == (Status.DEGRADED, "it answers 401", "Set PREFECT_API_KEY.")
