"""Work pools and their queues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from p3s_prefect.agent.deployed_server import DeployedServer, became
from p3s_prefect.agent.worker import P3sWorker
from p3s_prefect.core.deployment import Applied, Became, Pool, Queue, class_queues, differences
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import did_you_mean


def apply_pool(server: DeployedServer, name: str, pool: Pool, experiment: Experiment) -> Iterator[Applied]:
    """A pool, and its queues.

    Raises:
        ServiceError: there is a pool of that name with another type, or no worker of the type is installed.
    """
    found = server.one("/work_pools/filter", {"work_pools": {"name": {"any_": [name]}}})
    wanted: dict[str, Any] = {"description": pool.description, "concurrency_limit": pool.concurrency_limit}
    if found is None:
        # Later it is left to whoever edits it in Prefect.
        wanted |= {"name": name, "type": pool.type, "base_job_template": _template(pool.type)}
    elif found["type"] != pool.type:
        raise ServiceError(
            f"the work pool {name} has the type {found['type']}, not {pool.type}, and types cannot be changed",
            fix=f"Remove it with `prefect work-pool delete {name}`, or name another pool in the overlay.",
        )
    yield server.bring("pool", name, wanted, found, new="/work_pools/", known=f"/work_pools/{name}")
    if pool.queues == "classes":
        yield from _apply_queues(server, name, class_queues(experiment), is_new=found is None)


def _apply_queues(server: DeployedServer, pool: str, queues: Sequence[Queue], *, is_new: bool) -> Iterator[Applied]:
    path = f"/work_pools/{pool}/queues"
    seen = {} if is_new else {queue["name"]: queue for queue in server.ask(f"{path}/filter", {})}
    results = []
    for queue in queues:
        wanted, found = asdict(queue), seen.get(queue.name)
        changes = differences(wanted, found)
        results.append(
            Applied(kind="queue", name=f"{pool}/{queue.name}", became=became(found, changes), changes=changes)
        )
    if not server.is_dry_run and any(result.became is not Became.UNCHANGED for result in results):
        _write_queues(server, path, queues)
    yield from results


def _write_queues(server: DeployedServer, path: str, queues: Sequence[Queue]) -> None:
    """From the one that goes first on: Prefect moves others on where a priority is taken, so each is looked at anew."""
    for queue in queues:
        wanted = asdict(queue)
        there = {one["name"]: one for one in server.ask(f"{path}/filter", {})}
        if queue.name not in there:
            server.change("POST", f"{path}/", wanted)
        elif differences(wanted, there[queue.name]):
            server.change("PATCH", f"{path}/{queue.name}", {key: wanted[key] for key in wanted if key != "name"})


def _template(kind: str) -> dict[str, Any]:
    # Prefect knows others by the collections that are installed.
    worker = _WORKERS.get(kind) or BaseWorker.get_worker_class_from_type(kind)
    if worker is None:
        fix = did_you_mean(kind, sorted({*_WORKERS, *BaseWorker.get_all_available_worker_types()}))
        raise ServiceError(f"no worker of the type {kind!r} is installed here", fix=fix)
    return deepcopy(worker.get_default_base_job_template())


_WORKERS: dict[str, type[BaseWorker[Any, Any, Any]]] = {worker.type: worker for worker in (P3sWorker, ProcessWorker)}
