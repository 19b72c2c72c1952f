"""A Dask cluster as `p3s up` starts it, shared by the tests, and sites that use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from clusters import Cluster
from sites import Declared, NewSite, Site, declare


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
def new_site(cluster: Cluster, tmp_path: Path) -> Iterator[NewSite]:
    """Makes sites, each with a home of its own."""
    with ExitStack() as opened:

        def make(declared: Declared | None = None, *, scheduler: str = "", home: str = "home") -> Site:
            site = Site(tmp_path / home, scheduler or cluster.address, declared or declare())
            return opened.enter_context(closing(site))

        yield make
