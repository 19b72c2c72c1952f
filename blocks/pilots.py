"""The pilots as Prefect sees them: what a site computes with, when there is no station."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from prefect.utilities.importtools import from_qualified_name
from pydantic import Field

from p3s_prefect.core import experiment
from p3s_prefect.core.errors import ServiceError

_ANSWERS_S = 5.0


class Pilots(Block):
    """What productions run on: an address goes before a class of clusters, that before local processes."""

    _block_type_name = "Pilots"
    _block_type_slug = "p3s-pilots"
    _description = "What a p3s-prefect site computes with: local processes, a Dask scheduler, or a batch system."
    _code_example = """
    ```python
    from p3s_prefect.blocks import Pilots

    Pilots(
        cluster_class="dask_jobqueue.SLURMCluster",
        cluster_kwargs={"cores": 1, "memory": "2GB"},
        adapt_kwargs={"minimum_jobs": 1, "maximum_jobs": 20},
    ).save("lst1")
    cluster = Pilots.load("lst1").get_cluster()
    ```
    """

    workers: int = Field(default=2, ge=1, le=1024, description="Number of local processes; each has one slot.")
    address: str | None = Field(
        default=None,
        pattern=r"^[a-z]+://[^/@]+:\d+$",
        description="A Dask scheduler that runs already, such as tcp://10.0.0.1:8786. Not that of a station.",
    )
    cluster_class: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$",
        description="A class of clusters that a production starts, such as dask_jobqueue.SLURMCluster.",
    )
    cluster_kwargs: dict[str, Any] = Field(default={}, description="What it is made with. No secrets: people see it.")
    adapt_kwargs: dict[str, Any] = Field(
        default={}, description="How it follows the load: minimum_jobs and maximum_jobs for a batch system."
    )

    def get_pilots(self) -> experiment.Pilots:
        """The slots, as an experiment declares them."""
        return experiment.Pilots(workers=self.workers, address=self.address)

    def get_cluster(self) -> dict[str, Any]:
        """What a production runs on, by the names of its parameters.

        Raises:
            ServiceError: no scheduler answers at the address, or the class cannot be imported.
        """
        if self.address is not None:
            _knock(self.address)
            return {"address": self.address}
        if self.cluster_class is not None:
            _look_for(self.cluster_class)
            return {
                "cluster_class": self.cluster_class,
                "cluster_kwargs": dict(self.cluster_kwargs),
                "adapt_kwargs": dict(self.adapt_kwargs),
            }
        return {}


def _knock(address: str) -> None:
    parts = urlsplit(address)
    try:
        socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=_ANSWERS_S).close()
    except OSError as error:
        raise ServiceError(
            f"the block of the pilots points nowhere: no Dask scheduler answers at {address}",
            fix="Start it, or correct the address in the block.",
        ) from error


def _look_for(cluster_class: str) -> None:
    try:
        from_qualified_name(cluster_class)
    except (ImportError, AttributeError) as error:
        package = cluster_class.partition(".")[0].replace("_", "-")
        raise ServiceError(
            f"the block of the pilots names the class {cluster_class}, which cannot be imported here: {error}",
            fix=f"Install {package} where productions run, or correct the block.",
        ) from error
