"""The blocks of a site: what the flows get from them, and what they say if they point nowhere."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from p3s_prefect.adapters.home import Home
from p3s_prefect.blocks import CentralStore, Ledger, Pilots
from p3s_prefect.blocks.site import Site
from p3s_prefect.cli.init import write_home
from p3s_prefect.core.errors import LedgerError, ServiceError, StoreError


def test_a_ledger_is_handed_to_an_experiment(tmp_path: Path) -> None:
    """S5: where a site keeps its books."""
    for url in (f"sqlite:///{tmp_path}/ledger.db", "postgresql+psycopg://p3s@host/books"):
        assert Ledger(url=url).get_ledger().url == url


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///ledger.db",
        "postgresql://user@host/books",
        "postgresql+psycopg://user:secret@host/books",
        "postgresql+psycopg://user@host/books?password=secret",
        "ledger.db",
    ],
)
def test_a_ledger_without_its_whole_path_is_refused(url: str) -> None:
    """S7, S8: a relative one is another file in each process; and no password is written into a plain field."""
    with pytest.raises(ValidationError, match="url"):
        Ledger(url=url)


def test_blocks_that_point_nowhere_say_so(tmp_path: Path) -> None:
    """S8: before anything is begun, with the place and what to do."""
    with pytest.raises(LedgerError, match=f"no directory {tmp_path}/absent") as ledger:
        Ledger(url=f"sqlite:///{tmp_path}/absent/ledger.db").get_ledger()
    with pytest.raises(StoreError, match=f"{tmp_path}/absent/store cannot be reached") as store:
        CentralStore(directory=f"{tmp_path}/absent/store").reach_store()
    with pytest.raises(StoreError, match="cannot be reached"):
        CentralStore(directory="store").reach_store()
    assert "p3s deploy" in ledger.value.fix
    assert "p3s deploy" in store.value.fix


def test_a_store_may_be_made_at_its_first_use(tmp_path: Path) -> None:
    """S5: only what it lies in must be there."""
    assert CentralStore(directory=f"{tmp_path}/store").reach_store().directory == f"{tmp_path}/store"


@pytest.mark.sockets
def test_pilots_knock_at_their_scheduler() -> None:
    """S8: who waits for one that is not there waits for half a minute, and learns nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        assert Pilots(address=address).get_cluster() == {"address": address}
    with pytest.raises(ServiceError, match=f"no Dask scheduler answers at {address}"):
        Pilots(address=address).get_cluster()


def test_pilots_look_for_their_class() -> None:
    """S8: a class that is not installed is named with what to install."""
    found = Pilots(cluster_class="distributed.LocalCluster", cluster_kwargs={"n_workers": 1}).get_cluster()
    assert found == {
        "cluster_class": "distributed.LocalCluster",
        "cluster_kwargs": {"n_workers": 1},
        "adapt_kwargs": {},
    }
    for absent in ("dask_absent.Cluster", "distributed.AbsentCluster"):
        with pytest.raises(ServiceError, match=absent) as told:
            Pilots(cluster_class=absent).get_cluster()
        assert absent.partition(".")[0].replace("_", "-") in told.value.fix


@pytest.mark.parametrize(
    "fields",
    [{"workers": 0}, {"address": "10.0.0.1:8786"}, {"address": "tls://u:p@host:1"}, {"cluster_class": "SLURMCluster"}],
)
def test_pilots_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    """S8: when the block is made, not when something runs."""
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Pilots(**fields)


CLUSTER = "distributed.LocalCluster"


@pytest.mark.parametrize(
    ("asked", "runs_on"),
    [
        ({"cluster_kwargs": None}, {"cluster_class": CLUSTER, "cluster_kwargs": {"n": 1}, "adapt_kwargs": {}}),
        ({"cluster_kwargs": {"n": 2}}, {"cluster_class": CLUSTER, "cluster_kwargs": {"n": 2}, "adapt_kwargs": {}}),
        ({"address": "tcp://h:1"}, {"address": "tcp://h:1"}),
        ({"cluster_class": "b.Cluster", "cluster_kwargs": None}, {"cluster_class": "b.Cluster"}),
    ],
)
def test_what_a_run_asks_for_goes_before_the_site(
    tmp_path: Path, asked: dict[str, Any], runs_on: dict[str, Any]
) -> None:
    """S5: an address or a class takes the place of the site's, with all that belongs to it."""
    write_home(tmp_path, "lst1")
    pilots = Pilots(cluster_class=CLUSTER, cluster_kwargs={"n": 1})
    assert Site(experiment=Home(tmp_path).read(), pilots=pilots).cluster_for(**asked) == runs_on


@pytest.mark.sockets
def test_pilots_that_are_not_used_may_point_nowhere(tmp_path: Path) -> None:
    """S8: only what a run needs is looked for."""
    write_home(tmp_path, "lst1")
    site = Site(experiment=Home(tmp_path).read(), pilots=Pilots(address="tcp://127.0.0.1:9"))
    assert site.cluster_for(cluster_class=CLUSTER) == {"cluster_class": CLUSTER}
    with pytest.raises(ServiceError, match="points nowhere"):
        site.cluster_for(address=None)


def test_every_field_of_every_block_is_described() -> None:
    """S2: the page that edits a block shows what each field means."""
    for block in (CentralStore, Ledger, Pilots):
        assert block.get_description()
        assert block.get_code_example()
        assert all(field.description for name, field in block.model_fields.items() if not name.startswith("_"))
