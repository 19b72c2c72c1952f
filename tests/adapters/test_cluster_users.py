"""A Dask cluster serves a station or productions, and both are told so."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from clusters import Cluster

from p3s_prefect.adapters.cluster_users import ClusterUser, note_user, refuse_productions, users_of
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.core.errors import NoScheduler, ServiceError

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.start_scheduler()
    yield cluster.address
    cluster.close()


def _note(client: distributed.Client, user: ClusterUser) -> Any:
    return client.run_on_scheduler(note_user, user=user, client=client.id)


def test_a_note_counts_as_long_as_its_client_is_there(address: str) -> None:
    """B9: whoever has gone, or has died, does not keep others out."""
    production = ClusterUser.here("production", "night")
    with distributed.Client(address, set_as_default=False) as client:
        assert _note(client, production) is None
        assert users_of(address, 5) == [production]
        with pytest.raises(ServiceError, match="is used by the production 'night'"):
            refuse_productions(address)
    assert users_of(address, 5) == []
    refuse_productions(address)


def test_productions_may_share_a_cluster(address: str) -> None:
    """B9: Dask shares it between them; a station would not get what it counts on."""
    production = ClusterUser.here("production", "night")
    with (
        distributed.Client(address, set_as_default=False) as one,
        distributed.Client(address, set_as_default=False) as other,
    ):
        assert _note(one, production) is None
        assert _note(other, production) is None
        assert _note(other, ClusterUser.here("station", "night")) == production


async def test_a_stations_pilots_are_not_those_of_a_production(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """B9: meanwhile it has no slots, says why, and takes them when the production has ended."""
    caplog.set_level(logging.WARNING)
    async with distributed.Client(address, asynchronous=True, set_as_default=False) as client:
        user = ClusterUser.here("production", "night")
        assert await client.run_on_scheduler(note_user, user=user, client=client.id) is None
        async with DaskPilots(address, experiment="other") as pilots:
            async with asyncio.timeout(30):
                while "is used by the production 'night'" not in caplog.text:
                    await asyncio.sleep(0.02)
                assert pilots.slots() == 0
                await client.close()
                while not any(user.road == "station" for user in await asyncio.to_thread(users_of, address, 5)):
                    await asyncio.sleep(0.05)


def test_check_refuses_a_cluster_that_others_use(address: str, tmp_path: Path) -> None:
    """B9: `p3s check` names file, line and key, who uses it, and the fix; the experiment's own station is no rival."""
    declared = {
        "experiment": "day",
        "instrument": {"name": "Cam", "dimensions": {"run": "int", "part": "int"}, "group": ["run"]},
        "dataset_types": {"raw": {"format": "text"}},
        "pipelines": {"dqm": {"stages": {"look": {"steps": [{"name": "s", "command": ["/bin/true"]}]}}}},
        "streams": {
            "s": {
                "directory": "in",
                "pattern": "r{run}.{part}.txt",
                "dataset_type": "raw",
                "rules": [{"pipelines": ["dqm"]}],
            }
        },
        "pilots": {"address": address},
    }
    file = tmp_path / "experiment.yaml"
    file.write_text(json.dumps(declared))
    with distributed.Client(address, set_as_default=False) as client:
        assert _note(client, ClusterUser.here("station", "day")) is None
        assert _check(file).returncode == 0
        assert _note(client, ClusterUser.here("station", "night")) is None
        checked = _check(file)
    assert checked.returncode == 1
    (mistake,) = json.loads(checked.stdout)["mistakes"]
    assert mistake["key"] == "pilots.address"
    assert "is used by the station 'night'" in mistake["what"]
    assert "p3s down" in mistake["fix"]


def _check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p3s_prefect.cli", "check", str(file), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_nobody_there_is_an_error_of_its_own() -> None:
    """S8: for those who need one; a station waits for its scheduler."""
    with pytest.raises(NoScheduler, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        users_of("tcp://127.0.0.1:9", 0.5)
