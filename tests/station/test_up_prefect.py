"""`p3s up` with Prefect: its server and the agent are kept running beside the station."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import httpx
import pytest
from prefect_servers import PrefectProcess
from sites import Site, declare
from supervised import p3s, service_of

from p3s_prefect.adapters import prefect_server
from p3s_prefect.adapters.supervision import Services

pytestmark = pytest.mark.sockets

# A server and an agent have to start, each twice.
PATIENCE_S = 180.0


async def test_up_starts_prefect_and_what_happens_is_seen_there(prepared: Callable[..., Site]) -> None:
    """S2, P12, V20: the address is told; server and agent come back when they are killed; `down` leaves nothing."""
    site = prepared(declare(prefect={"port": 0}))
    up = p3s("up", "--home", str(site.path))
    assert up.returncode == 0, up.stdout + up.stderr
    page = prefect_server.prefect_page(site.home, site.experiment)
    assert page is not None
    assert f"Prefect is at {page}" in up.stdout
    seen = PrefectProcess(site.path, port=int(page.rpartition(":")[2]))

    def runs() -> set[str]:
        try:
            return set(seen.flow_runs("test"))
        except httpx.HTTPError:
            return set()

    site.arrive(0)
    await site.until(lambda: "dqm run=1 pass 0" in runs(), "the record", PATIENCE_S)
    server, agent = service_of(site, "prefect"), service_of(site, "agent")
    assert server.environ()["PREFECT_HOME"] == str(site.path / "prefect")
    for process in (server, agent):
        process.send_signal(signal.SIGKILL)
    site.arrive(0, run=2)
    await site.until(lambda: "dqm run=2 pass 0" in runs(), "the record after the kills", PATIENCE_S)
    assert service_of(site, "prefect").pid != server.pid
    status = json.loads(p3s("status", "--json", "--home", str(site.path)).stdout)
    row = next(row for row in status["health"] if row["name"] == "prefect")
    assert row["nominal"] == "recorded within 30 s"
    assert f"Prefect: {page}" in p3s("status", "--home", str(site.path)).stdout
    assert "Stopped." in p3s("down", "--home", str(site.path)).stdout
    assert not Services(site.home).processes()
