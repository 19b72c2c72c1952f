"""Whether Prefect shows how each task has ended: before a flow ends, it looks, and tells what is missing.

Workers tell the states of their tasks by a connection of their own, in the background. It may break, its worker may be
killed before it is through, and Prefect keeps it where it was first made, also where another server is used since. Then
a task would be shown as running for ever.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import Task
from prefect._internal.result_records import ResultRecord
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Cancelled
from prefect.types import DateTime
from prefect.utilities.asyncutils import run_coro_as_sync

from p3s_prefect.adapters.task_run_events import ToldState, task_run_event
from p3s_prefect.station.production import StageWork
from p3s_prefect.tasks.stages import run_stage
from p3s_prefect.tasks.turns import Runs, before, in_dask

_T = TypeVar("_T")
# The most that a server's answer holds.
_PAGE = 200
_LOOK_EVERY_S = 0.2
# By itself a server is up to 45 s late under load, but never so long without any progress.
_PATIENCE_S, _TOLD_S = 10.0, 30.0
_FETCH_S = 30.0
# The end of a task whose parents did not end well; Prefect leaves it pending under this name, and changes it no more.
_NOT_READY = "NotReady"
_MOST_NAMES = 10
# What the server fills in, or the event says elsewhere.
_NOT_FIELDS = {"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"} | {
    "estimated_start_time_delta",
    "estimated_run_time",
}


def show_ends(work: Sequence[StageWork], runs: Runs, lost: Mapping[int, State[Any]]) -> None:
    """Waits until Prefect shows an end of everything that was submitted, and tells it what does not come.

    `lost` are the ends of what nobody else will tell, by the ids of the stage runs.
    """
    submitted = {runs[one.stage_run_id].task_run_id: one for one in work if one.stage_run_id in runs}
    silent = {task_run_id for task_run_id, one in submitted.items() if one.stage_run_id in lost}
    with get_client(sync_client=True) as client:
        missing = _not_ended(client, submitted.keys() - silent, _PATIENCE_S) | _not_ended(client, silent, 0.0)
        events = [_event(client, submitted[task_run_id], runs, lost) for task_run_id in missing]
        for some in _portions(events):
            client.request("POST", "/events", json=some)
        left = _not_ended(client, missing, _TOLD_S)
    if left:
        names = ", ".join(sorted(_name(submitted[task_run_id]) for task_run_id in left)[:_MOST_NAMES])
        get_run_logger().warning(
            "Prefect does not record the ends of %d tasks; the ledger has them: %s", len(left), names
        )


# --- inside ---------------------------------------------------------------------------------------------------------


def _not_ended(client: SyncPrefectClient, task_run_ids: Collection[UUID], patience_s: float) -> set[UUID]:
    """Which of them Prefect does not show as ended, once all are or nothing has changed for `patience_s`."""
    left, until = set(task_run_ids), time.monotonic() + patience_s
    while left:
        number = len(left)
        for some in _portions(sorted(left)):
            chosen = TaskRunFilter(id=TaskRunFilterId(any_=list(some)))
            found = client.read_task_runs(task_run_filter=chosen, limit=_PAGE)
            left -= {run.id for run in found if _is_end(run.state)}
        if len(left) < number:
            until = time.monotonic() + patience_s
        elif time.monotonic() >= until:
            break
        time.sleep(_LOOK_EVERY_S)
    return left


def _is_end(state: State[Any] | None) -> bool:
    return state is not None and (state.is_final() or state.name == _NOT_READY)


def _event(client: SyncPrefectClient, work: StageWork, runs: Runs, lost: Mapping[int, State[Any]]) -> dict[str, Any]:
    task_run, state = _task_run(client, work, runs), lost.get(work.stage_run_id) or _end(runs[work.stage_run_id])
    was = task_run.state
    if was is not None and was.is_running():
        task_run.total_run_time += state.timestamp - was.timestamp
    task_run.end_time = cast(DateTime, state.timestamp)
    flow_run = _flow_run()
    return task_run_event(
        task_run_id=task_run.id,
        name=task_run.name,
        run_count=task_run.run_count,
        tags=task_run.tags,
        flow_run_id=flow_run.id,
        flow_run_name=flow_run.name,
        before=None if was is None else _told(was),
        state=_told(state),
        fields=task_run.model_dump(mode="json", exclude_none=True, exclude=_NOT_FIELDS),
    )


def _task_run(client: SyncPrefectClient, work: StageWork, runs: Runs) -> TaskRun:
    run = runs[work.stage_run_id]
    try:
        return client.read_task_run(run.task_run_id)
    except ObjectNotFound:
        # Nothing that its worker told has come.
        task: Task[..., Any] = run_stage.with_options(name=f"{work.pipeline}/{work.stage}")
        making = task.create_local_run(
            id=run.task_run_id, flow_run_context=FlowRunContext.get(), wait_for=before(work, runs)
        )
        made = cast(TaskRun, run_coro_as_sync(making))
        made.name = _name(work)
        return made


def _end(run: PrefectFuture[Any]) -> State[Any]:
    future = in_dask(run)
    if future.cancelled():
        return Cancelled(message="its production was stopped")
    return cast(State[Any], future.result(timeout=_FETCH_S))


def _told(state: State[Any]) -> ToldState:
    data = state.data.metadata.model_dump(mode="json") if isinstance(state.data, ResultRecord) else None
    return ToldState(
        id=state.id,
        kind=state.type.value,
        name=state.name or state.type.value.capitalize(),
        at=state.timestamp.isoformat(),
        message=state.message or "",
        data=data,
    )


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("the ends of tasks are shown from within their flow")
    return context.flow_run


def _name(work: StageWork) -> str:
    return f"{work.stage} {work.data_id}"


def _portions(things: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (things[start : start + _PAGE] for start in range(0, len(things), _PAGE))
