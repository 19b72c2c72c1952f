"""One stage run as a Prefect task: each try opens an attempt in the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from distributed import get_worker
from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.filesystems import WritableFileSystem
from prefect.states import Cancelled

from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.worker import stage_runner
from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.core.errors import StageFailed
from p3s_prefect.core.experiment import Stage
from p3s_prefect.core.records import Failure, StageOrder, StageReport
from p3s_prefect.core.retry import backoff_s
from p3s_prefect.station import production as books
from p3s_prefect.station.production import Production, StageWork

# The stage runner kills its payload first; Prefect's limit stands behind it, for when the runner itself hangs.
_BEHIND_S = 10.0
# Prefect takes no more than 50 delays, and repeats the last one then.
_MOST_DELAYS = 50
_LOOK_EVERY_S = 0.3


@task
async def run_stage(production: Production, work: StageWork) -> dict[str, Any] | State[Any]:
    """Runs a stage for a unit or group, publishes what it gives, and tells where that is.

    Asynchronous, as Prefect cannot end what blocks a thread: at its time limit the payload is killed here.
    """
    _lend_keys()
    order = await asyncio.to_thread(books.begin, production, work)
    if order is None:
        return _told(work, "already done")
    runner = await asyncio.to_thread(stage_runner, production.catalogue().payload_modules)
    began_at = time.time()
    try:
        report = await _while_wanted(runner, order)
    except asyncio.CancelledError:
        runner.stop(order.attempt_id)
        with suppress(StageFailed):
            books.overdue(production, order, began_at, budget_s(production.stage(work)) + _BEHIND_S)
        raise
    try:
        await asyncio.to_thread(books.settle, production, order, report)
    except StageFailed as stopped:
        if report.failure is Failure.STOPPED:
            return Cancelled(message=f"{stopped.what}; it is queued again")
        raise
    return _told(work, "done")


def as_task(
    production: Production, work: StageWork, results: WritableFileSystem
) -> Task[..., Coroutine[Any, Any, dict[str, Any] | State[Any]]]:
    """`run_stage` with the name, retries, time limit and result of one stage run.

    The ledger decides what was done before: only then may Prefect take the result that it finds in the store.
    """
    stage = production.stage(work)
    delays = [backoff_s(stage, failures) for failures in range(1, min(stage.retries, _MOST_DELAYS) + 1)]
    return run_stage.with_options(
        name=f"{work.pipeline}/{work.stage}",
        task_run_name=f"{work.stage} {work.data_id}",
        tags=[f"pipeline:{work.pipeline}", f"stage:{work.stage}"],
        retries=stage.retries,
        retry_delay_seconds=delays,
        retry_condition_fn=_may_try_again,
        timeout_seconds=budget_s(stage) + _BEHIND_S,
        persist_result=True,
        result_storage=results,
        result_serializer="json",
        cache_key_fn=result_key,
        refresh_cache=not work.is_done,
    )


def budget_s(stage: Stage) -> float:
    """The longest that a stage's steps may take together."""
    return sum(step.timeout_s for step in stage.steps)


def result_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Where a stage run's result is kept: by run collection, which names its pass too, data id and stage."""
    work: StageWork = parameters["work"]
    return f"{work.collection}/{work.data_id.replace(' ', '/')}/{work.stage}.json"


async def _while_wanted(runner: StageRunner, order: StageOrder) -> StageReport:
    """Runs an order, and stops it when Dask no longer wants it: its flow was cancelled, or has died."""
    running = asyncio.create_task(asyncio.to_thread(runner.run, order))
    worker = get_worker()
    key = worker.get_current_task()
    while not (await asyncio.wait([running], timeout=_LOOK_EVERY_S))[0]:
        here = worker.state.tasks.get(key)
        if here is None or here.state == "cancelled":
            runner.stop(order.attempt_id)
    return running.result()


def _lend_keys() -> None:
    """The site's keys to its bucket come with its block; the order names the bucket only."""
    context = TaskRunContext.get()
    if context is not None and isinstance(context.task.result_storage, CentralStore):
        context.task.result_storage.lend_keys()


async def _may_try_again(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    error = await state.aresult(raise_on_failure=False)
    return not isinstance(error, StageFailed) or error.may_try_again


def _told(work: StageWork, how: str) -> dict[str, Any]:
    return {
        "unit": work.data_id,
        "pipeline": work.pipeline,
        "stage": work.stage,
        "collection": work.collection,
        "how": how,
    }
