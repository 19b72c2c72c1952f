"""What Dask gave up: its task in Prefect would be shown as running for ever, as nobody is left to end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Crashed
from prefect.types import DateTime
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import emit_task_run_state_change_event

from p3s_prefect.station import production as books
from p3s_prefect.station.production import Production, StageWork
from p3s_prefect.tasks.stages import run_stage
from p3s_prefect.tasks.turns import Runs, in_dask


def settle_lost(production: Production, work: Sequence[StageWork], runs: Runs) -> None:
    """Ends in the ledger and in Prefect what was submitted, and ended without a state."""
    for one in work:
        run = runs.get(one.stage_run_id)
        if run is not None and in_dask(run).status == "error":
            error = in_dask(run).exception()
            reason = f"Dask gave it up: {type(error).__name__}: {error}"
            found = books.lose(production, one, reason)
            _show(one, run, f"{reason}; in the ledger it is {found.state} now")


def _show(work: StageWork, run: PrefectFuture[Any], message: str) -> None:
    task_run = _task_run(work, run)
    state: State[Any] = Crashed(message=message)
    state.state_details.task_run_id = task_run.id
    state.state_details.flow_run_id = task_run.flow_run_id
    before, task_run.state = task_run.state, state
    task_run.state_id, task_run.state_type, task_run.state_name = state.id, state.type, state.name
    task_run.end_time = cast(DateTime, state.timestamp)
    # As Prefect's own engine does it: the server takes the states of tasks from events alone.
    emit_task_run_state_change_event(task_run=task_run, initial_state=before, validated_state=state)


def _task_run(work: StageWork, run: PrefectFuture[Any]) -> TaskRun:
    with get_client(sync_client=True) as client:
        try:
            return client.read_task_run(run.task_run_id)
        except ObjectNotFound:
            # Its worker died before it could tell anybody.
            task: Task[..., Any] = run_stage.with_options(name=f"{work.pipeline}/{work.stage}")
            making = task.create_local_run(id=run.task_run_id, parameters={}, flow_run_context=FlowRunContext.get())
            made = cast(TaskRun, run_coro_as_sync(making))
            made.name = f"{work.stage} {work.data_id}"
            return made
