"""A Dask cluster as `p3s up` starts it, shared by the tests, and sites that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from clusters import Cluster
from s3_servers import SeaweedServer
from sites import Declared, NewSite, Site, declare

from p3s_prefect.adapters import supervision


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pilots that no test harms."""
    with closing(Cluster(tmp_path_factory.mktemp("cluster"))) as found:
        found.start_scheduler()
        found.add_worker()
        found.add_worker()
        yield found


@pytest.fixture
def fragile_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler of its own without workers, for tests that kill."""
    (tmp_path / "cluster").mkdir()
    with closing(Cluster(tmp_path / "cluster")) as found:
        found.start_scheduler()
        yield found


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    """To be killed; everybody here finds its keys as boto3 does."""
    with closing(SeaweedServer(tmp_path / "server")) as server:
        server.start()
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(server.credentials))
        yield server


@pytest.fixture
def pilots(own_server: SeaweedServer, tmp_path: Path) -> Iterator[Cluster]:
    """Two pilots with the keys in their environment."""
    (tmp_path / "pilots").mkdir()
    settings = {**supervision.SERVICE_ENVIRONMENT, "AWS_SHARED_CREDENTIALS_FILE": str(own_server.credentials)}
    with closing(Cluster(tmp_path / "pilots", settings=settings)) as found:
        found.start_scheduler()
        found.add_worker()
        found.add_worker()
        yield found


@pytest.fixture
def new_site(cluster: Cluster, tmp_path: Path) -> Iterator[NewSite]:
    """Makes sites, each with a home of its own."""
    with ExitStack() as opened:

        def make(declared: Declared | None = None, *, scheduler: str = "", home: str = "home") -> Site:
            site = Site(tmp_path / home, scheduler or cluster.address, declared or declare())
            return opened.enter_context(closing(site))

        yield make


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a site in a directory with an awkward and long name; what was started there is stopped."""
    sites: list[Site] = []

    def make(declared: Declared | None = None) -> Site:
        site = Site(tmp_path / f"50% of a {'long ' * 20}run", "", declared or declare())
        sites.append(site)
        return site

    yield make
    for site in sites:
        supervision.Services(site.home).stop()
        site.close()
