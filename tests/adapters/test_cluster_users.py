"""A Dask cluster serves a station or productions, and both are told so."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import distributed
import pytest
import typer
from clusters import Cluster
from typer.testing import CliRunner, Result

from p3s_prefect.adapters.cluster_users import ClusterUser, note_user, refuse_productions, users_of
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import agent_cursor
from p3s_prefect.cli.check import check
from p3s_prefect.core.errors import NoScheduler, ServiceError

pytestmark = pytest.mark.sockets

app = typer.Typer()
app.command()(check)


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
    """B9: `p3s check` names file, line and key, who uses it, and the fix; the home's own station is no rival, though
    that of another home may call its experiment the same."""
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
    file, namesake = tmp_path / "experiment.yaml", tmp_path / "other" / "experiment.yaml"
    namesake.parent.mkdir()
    for one in (file, namesake):
        one.write_text(json.dumps(declared))
    own = _ledger_of(file)
    with distributed.Client(address, set_as_default=False) as client:
        assert _note(client, ClusterUser.here("station", "day", own)) is None
        assert _check(file).exit_code == 0
        # Before a station has run there, and afterwards.
        refused = [_check(namesake)]
        assert _ledger_of(namesake) != own
        refused.append(_check(namesake))
        assert _note(client, ClusterUser.here("station", "night", own)) is None
        refused.append(_check(file))
    for checked, who in zip(refused, ("day", "day", "night"), strict=True):
        assert checked.exit_code == 1
        (mistake,) = json.loads(checked.stdout)["mistakes"]
        assert mistake["key"] == "pilots.address"
        assert f"is used by the station {who!r}" in mistake["what"]
        assert "p3s down" in mistake["fix"]


def _ledger_of(file: Path) -> UUID:
    """Its id, which it has as soon as a station has opened it."""
    home = Home(file.parent)
    with closing(home.ledger(home.read())) as ledger:
        ledger.migrate()
        with ledger.transaction() as connection:
            return agent_cursor.open_cursor(connection, 0.0).site


def test_a_station_takes_over_from_one_of_its_own_ledger_alone() -> None:
    """B9, P9: what a namesake of another home has begun goes on."""
    first, other = uuid4(), uuid4()
    station = ClusterUser.here("station", "day", first)
    assert station.replaces(ClusterUser.here("station", "day", first))
    assert not station.replaces(ClusterUser.here("station", "day", other))
    assert not station.replaces(ClusterUser.here("production", "day"))
    later = ClusterUser.here("station", "day", first, token=1)
    assert later.replaces(station)
    assert later.is_rival_of(station)
    assert not station.replaces(later)
    assert not station.is_rival_of(later)


def _check(file: Path) -> Result:
    return CliRunner().invoke(app, [str(file), "--json"])


def test_nobody_there_is_an_error_of_its_own() -> None:
    """S8: for those who need one; a station waits for its scheduler."""
    with pytest.raises(NoScheduler, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        users_of("tcp://127.0.0.1:9", 0.5)
