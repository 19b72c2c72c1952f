"""Which Dask cluster a production runs on: known only when the flow has its parameters."""

from __future__ import annotations

from typing import Any

from prefect.context import FlowRunContext
from prefect.utilities.importtools import from_qualified_name
from prefect_dask.task_runners import DaskTaskRunner

from p3s_prefect.core.experiment import Pilots


def choose_cluster(
    pilots: Pilots,
    *,
    address: str | None = None,
    cluster_class: str | None = None,
    cluster_kwargs: dict[str, Any] | None = None,
    adapt_kwargs: dict[str, Any] | None = None,
) -> None:
    """Sets up the running flow's task runner before its first task: this must come first.

    An address goes before a class of clusters, that before the experiment's own address, and all before a local
    cluster of one thread for each pilot. A flow that was given a task runner with a cluster of its own keeps it.
    """
    context = FlowRunContext.get()
    runner = context.task_runner if context is not None else None
    if not isinstance(runner, DaskTaskRunner) or runner.address or runner.cluster_class or runner.cluster_kwargs:
        return
    if address is None and cluster_class is None:
        address = pilots.address
    if address is not None:
        runner.address = address
        return
    if cluster_class is not None:
        runner.resolved_cluster_class = from_qualified_name(cluster_class)
        runner.cluster_kwargs = dict(cluster_kwargs or {})
    else:
        local = {"n_workers": pilots.workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        runner.cluster_kwargs = local | (cluster_kwargs or {})
    runner.adapt_kwargs = dict(adapt_kwargs or {})
