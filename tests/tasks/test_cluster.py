"""What a production may be asked to run on."""

from __future__ import annotations

from typing import Any

import pytest

from p3s_prefect.core.errors import BadSelection
from p3s_prefect.tasks.cluster import check_cluster


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"address": "10.0.0.1"}, "is no address of a Dask scheduler"),
        ({"address": "tcp://10.0.0.1"}, "is no address of a Dask scheduler"),
        ({"address": "tcp://10.0.0.1:99999"}, "is no address of a Dask scheduler"),
        ({"address": "tcp://10.0.0.1:8786", "cluster_class": "a.B"}, "an address is given, and also"),
        ({"address": "tcp://10.0.0.1:8786", "adapt_kwargs": {"minimum": 1}}, "an address is given, and also"),
        ({"cluster_class": "Cluster"}, "there is no class of clusters 'Cluster'"),
        ({"cluster_class": "no_such_package.Cluster"}, "No module named 'no_such_package'"),
        ({"cluster_class": "distributed.NoCluster"}, "there is no class of clusters 'distributed.NoCluster'"),
    ],
)
def test_what_does_not_go_together_is_said(asked: dict[str, Any], what: str) -> None:
    """S8: with a fix, before anything is started."""
    everything: dict[str, Any] = dict.fromkeys(["address", "cluster_class", "cluster_kwargs", "adapt_kwargs"])
    with pytest.raises(BadSelection) as raised:
        check_cluster(**everything | asked)
    assert what in raised.value.what
    assert raised.value.fix


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"address": "tcp://10.0.0.1:8786"},
        {"address": "tls://[::1]:8786"},
        {"cluster_class": "distributed.LocalCluster"},
    ],
)
def test_what_goes_together_is_taken(asked: dict[str, Any]) -> None:
    """S5: local, an address, or a class of clusters."""
    everything: dict[str, Any] = dict.fromkeys(["address", "cluster_class", "cluster_kwargs", "adapt_kwargs"])
    check_cluster(**everything | asked)
