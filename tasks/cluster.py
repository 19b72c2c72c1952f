"""Which Dask cluster a production runs on: known only when the flow has its parameters."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlsplit

from dask.utils import parse_timedelta
from prefect.context import FlowRunContext
from prefect.utilities.importtools import from_qualified_name
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner

from p3s_prefect.adapters.cluster_users import ClusterUser, no_scheduler, note_user, refused
from p3s_prefect.core.errors import BadSelection, ServiceError
from p3s_prefect.core.experiment import Experiment

_CONNECT = "10s"
# Dask gives a task up when so many workers have died around it. The ledger ends it at its third loss already; but those
# that only waited at the same workers are counted too, and they shall run.
_MOST_DEATHS = 100


def choose_cluster(
    experiment: Experiment,
    *,
    address: str | None = None,
    cluster_class: str | None = None,
    cluster_kwargs: dict[str, Any] | None = None,
    adapt_kwargs: dict[str, Any] | None = None,
) -> None:
    """Sets up the running flow's task runner before its first task, and connects it: this must come first.

    An address or a class of clusters goes before the experiment's own address, and that before a local cluster of one
    thread for each pilot. A flow that was given a task runner with a cluster of its own keeps it.

    Raises:
        BadSelection: the parameters do not go together, or name what is not there.
        ServiceError: the cluster cannot be reached or started, or serves a station.
    """
    check_cluster(address, cluster_class, cluster_kwargs, adapt_kwargs)
    context = FlowRunContext.get()
    runner = context.task_runner if context is not None else None
    if not isinstance(runner, DaskTaskRunner):
        return
    if not (runner.address or runner.cluster_class or runner.cluster_kwargs):
        pilots = experiment.pilots
        if address is None and cluster_class is None and cluster_kwargs is None:
            address = pilots.address
        local = {"n_workers": pilots.workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        runner.address = address
        if address is None:
            runner.resolved_cluster_class = from_qualified_name(cluster_class) if cluster_class else None
            runner.cluster_kwargs = ({} if cluster_class else local) | (cluster_kwargs or {})
            runner.adapt_kwargs = dict(adapt_kwargs or {})
    runner.client_kwargs |= {"name": "p3s-production", "timeout": parse_timedelta(_CONNECT)}
    _take(_connected(runner), experiment.experiment)


def slots() -> tuple[int, float]:
    """How many stages the running flow's cluster has room for, and how many may be with it: all, where it grows."""
    context = FlowRunContext.get()
    runner = context.task_runner if context is not None else None
    if not isinstance(runner, DaskTaskRunner):
        return 1, math.inf
    threads = sum(runner.client.nthreads().values())
    return threads, math.inf if runner.adapt_kwargs else threads


def check_cluster(
    address: str | None,
    cluster_class: str | None,
    cluster_kwargs: dict[str, Any] | None,
    adapt_kwargs: dict[str, Any] | None,
) -> None:
    """Makes sure that these parameters go together.

    Raises:
        BadSelection: they do not.
    """
    if address is not None and (cluster_class or cluster_kwargs or adapt_kwargs):
        raise BadSelection(
            "an address is given, and also how to start a cluster", fix="Give `address`, or `cluster_class` and others."
        )
    if address is not None and not _is_address(address):
        raise BadSelection(
            f"{address!r} is no address of a Dask scheduler", fix="It looks like tcp://10.0.0.1:8786, with its port."
        )
    if cluster_class is not None:
        _check_class(cluster_class)


def _check_class(cluster_class: str) -> None:
    try:
        if "." in cluster_class and callable(from_qualified_name(cluster_class)):
            return
        why = "it is no class of a module"
    except (ImportError, AttributeError) as error:
        why = str(error)
    package = cluster_class.partition(".")[0].replace("_", "-")
    raise BadSelection(
        f"there is no class of clusters {cluster_class!r}: {why}",
        fix=f"Correct its name (dask_jobqueue.SLURMCluster is one), or install {package}.",
    )


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return bool(parts.scheme and parts.hostname and parts.port)
    except ValueError:
        return False


def _connected(runner: DaskTaskRunner) -> PrefectDaskClient:
    try:
        return runner.client
    except Exception as error:
        # Whatever a class of clusters raises when it is not made as it wants.
        if runner.address:
            raise no_scheduler(runner.address) from error
        raise ServiceError(
            f"the cluster cannot be started: {type(error).__name__}: {error}",
            fix="Correct `cluster_kwargs` or `adapt_kwargs`: they are handed to the class of clusters as they are.",
        ) from error


def _take(client: PrefectDaskClient, experiment: str) -> None:
    user = ClusterUser.here("production", experiment)
    rival = client.run_on_scheduler(note_user, user=user, client=client.id)
    if rival is not None:
        raise refused(str(client.scheduler_info()["address"]), rival)
    client.run_on_scheduler(_let_the_books_decide)


def _let_the_books_decide(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = max(dask_scheduler.allowed_failures, _MOST_DEATHS)
