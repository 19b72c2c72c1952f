"""The worker type `p3s`: it runs flows of this package in its own warm process, a fraction of a second after they come.

Other flows are refused with the hint to use a process pool: what is not known here could block everything else. A run
whose worker ends, or is killed, goes back to the queue: the flows of this package ask the station once, and a run that
comes again only waits for the answer.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import os
import socket
import uuid
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.abc
import psutil
from prefect import Flow
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.context import AsyncClientContext
from prefect.exceptions import Abort, ObjectNotFound
from prefect.flow_engine import run_flow_async
from prefect.settings import get_current_settings, temporary_settings
from prefect.states import Cancelled, Crashed, Scheduled
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from p3s_prefect.agent.quick_retry import retry_quickly
from p3s_prefect.core.errors import P3sError, ServiceError

FLOWS = "p3s_prefect.flows."
"""Where the flows are that it runs."""
RESUMING = "Resuming"
"""The name of the state of a run that waits for another worker to go on with it."""

# Each poll is one request, which costs the server 5 ms; half of it is what a run waits on average.
_POLL_S = 0.25
# A worker needs a moment between taking a run and saying where it runs.
_SUBMITTING_S = 30.0
# What takes its worker down with it must not do so for ever.
_MOST_RUNS = 5
_UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


class _Interrupted(Abort):
    """A flow was interrupted here; Prefect's engine ends without a state then."""


class P3sWorkerResult(BaseWorkerResult):
    """How a run ended for its worker: its own state says the rest."""


class P3sWorker(BaseWorker[BaseJobConfiguration, BaseVariables, P3sWorkerResult]):
    """Runs flows of p3s-prefect in its own process."""

    type = "p3s"
    job_configuration = BaseJobConfiguration
    _description = "Runs the flows of p3s-prefect in a warm process beside a station. Other flows need a process pool."
    _display_name = "p3s"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Nothing is slow to start here, so nothing is taken before its time.
        super().__init__(*args, **{**kwargs, "prefetch_seconds": kwargs.get("prefetch_seconds") or 0})
        self._runs: dict[uuid.UUID, asyncio.Task[Any]] = {}
        self._cancelled: set[uuid.UUID] = set()
        self._identity = _identity()

    async def start(
        self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
    ) -> None:
        """Starts polling; as often as Prefect's settings say, if they say so, else several times a second."""
        chosen = "query_seconds" in get_current_settings().worker.model_fields_set
        with temporary_settings({} if chosen else {"worker.query_seconds": _POLL_S}):
            # One client for everything here: another one for each run would take 50 ms of a core.
            async with AsyncClientContext() as context:
                retry_quickly(context.client)
                await super().start(run_once=run_once, with_healthcheck=with_healthcheck, printer=printer)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> P3sWorkerResult:
        """Runs a flow run here, or refuses it in words."""
        if task_status is not None:
            task_status.started(self._identity)
        try:
            flow = await self._flow_of(flow_run)
        except P3sError as refusal:
            await self._propose_crashed_state(flow_run, str(refusal))
        else:
            await self._run_here(flow_run, flow)
        return P3sWorkerResult(identifier=self._identity, status_code=0)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """As its base does; and looks whether somebody cancels what runs here."""
        if self._runs:
            await self._look_for_cancelled()
        return await super().get_and_submit_flow_runs()

    async def sync_with_backend(self) -> None:
        """As its base does; and sees to runs whose worker is gone."""
        await super().sync_with_backend()
        if self._work_pool is not None:
            await self._see_to_orphans()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _flow_of(self, flow_run: FlowRun) -> Flow[..., Any]:
        """Raises `ServiceError` for what does not run here."""
        entrypoint = None
        if flow_run.deployment_id is not None:
            entrypoint = (await self.client.read_deployment(flow_run.deployment_id)).entrypoint
        return find_flow(entrypoint)

    async def _run_here(self, flow_run: FlowRun, flow: Flow[..., Any]) -> None:
        running = asyncio.create_task(
            run_flow_async(_interruptible(flow), flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
        )
        self._runs[flow_run.id] = running
        try:
            await running
        except (_Interrupted, asyncio.CancelledError):
            # This worker may be about to end: what is said now must be said all the same.
            with anyio.CancelScope(shield=True):
                running.cancel()
                await asyncio.wait([running])
                await self._interrupted(flow_run.id)
            if not self._is_cancelled(flow_run.id):
                raise asyncio.CancelledError from None
        except Abort:
            self._logger.info("flow run %s may not run: somebody else has it, or it was cancelled", flow_run.id)
        except Exception:  # its state tells
            self._logger.debug("flow run %s ended with an error", flow_run.id, exc_info=True)
        finally:
            self._runs.pop(flow_run.id, None)
            self._cancelled.discard(flow_run.id)

    def _is_cancelled(self, flow_run_id: uuid.UUID) -> bool:
        return flow_run_id in self._cancelled

    async def _interrupted(self, flow_run_id: uuid.UUID) -> None:
        state: State[Any] = Scheduled(name=RESUMING, message="its worker has stopped")
        if self._is_cancelled(flow_run_id):
            state = Cancelled(message="what it asked the station for goes on; the run that records it cancels that")
        await self._set(flow_run_id, state)

    async def _look_for_cancelled(self) -> None:
        for found in await self._read([StateType.CANCELLING], ids=list(self._runs)):
            if found.id in self._runs and found.id not in self._cancelled:
                self._cancelled.add(found.id)
                self._runs[found.id].cancel()

    async def _see_to_orphans(self) -> None:
        """Runs of this pool whose worker is gone go back to the queue; nothing hangs at Running."""
        under_way = [run for run in await self._read(_UNDER_WAY) if not self._is_mine(run)]
        if not under_way:
            return
        alone = await self._is_alone()
        for run in under_way:
            if self._is_orphan(run, alone):
                self._logger.info("flow run %s has lost its worker %s", run.id, run.infrastructure_pid)
                await self._set(run.id, _after_loss(run))

    def _is_mine(self, run: FlowRun) -> bool:
        return run.id in self._runs or run.id in self._submitting_flow_run_ids

    def _is_orphan(self, run: FlowRun, alone: bool) -> bool:
        if run.infrastructure_pid is None:
            return run.state is None or run.state.timestamp < datetime.now(UTC) - timedelta(seconds=_SUBMITTING_S)
        host, _, _ = run.infrastructure_pid.partition(" ")
        return not _lives(run.infrastructure_pid) if host == socket.gethostname() else alone

    async def _is_alone(self) -> bool:
        """Whether no other worker of this pool has been heard of lately."""
        workers = await self.client.read_workers_for_work_pool(self._work_pool_name)
        return not any(found.status is WorkerStatus.ONLINE and found.name != self.name for found in workers)

    async def _read(self, kinds: Collection[StateType], ids: list[uuid.UUID] | None = None) -> list[FlowRun]:
        return await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds))),
                id=None if ids is None else FlowRunFilterId(any_=ids),
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )

    async def _set(self, flow_run_id: uuid.UUID, state: State[Any]) -> None:
        try:
            await self.client.set_flow_run_state(flow_run_id, state, force=True)
        except ObjectNotFound:
            self._logger.debug("flow run %s was deleted", flow_run_id)


def find_flow(entrypoint: str | None) -> Flow[..., Any]:
    """The flow of this package that a deployment names, in module form.

    Raises:
        ServiceError: it names another flow, or one that does not belong into a shared process.
    """
    module, _, name = (entrypoint or "").rpartition(".")
    if not module.startswith(FLOWS):
        raise _refusal(f"this pool runs only flows of p3s-prefect, and not {entrypoint or 'a flow without deployment'}")
    try:
        flow = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _refusal(f"p3s-prefect has no flow {entrypoint}") from error
    if not isinstance(flow, Flow) or not flow.isasync:
        raise _refusal(f"{entrypoint} does not run in a process that it shares with others")
    return flow


def _refusal(what: str) -> ServiceError:
    return ServiceError(what, fix="Deploy it to a process pool: `prefect work-pool create NAME --type process`.")


def _interruptible(flow: Flow[..., Any]) -> Flow[..., Any]:
    """The same flow; when it is interrupted, Prefect's engine ends without a state: its worker knows which."""
    own = flow.fn

    @functools.wraps(own)
    async def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return await own(*args, **kwargs)
        except asyncio.CancelledError as interrupted:
            raise _Interrupted from interrupted

    found = copy.copy(flow)
    found.fn = run
    return found


def _after_loss(run: FlowRun) -> State[Any]:
    if run.state is not None and run.state.type is StateType.CANCELLING:
        return Cancelled(message="its worker is gone")
    if run.run_count >= _MOST_RUNS:
        return Crashed(message=f"its worker was lost {run.run_count} times")
    return Scheduled(name=RESUMING, message="its worker was lost")


def _identity() -> str:
    """Host, process and its start: no other process is ever called so."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def _lives(identity: str) -> bool:
    try:
        _, pid, begun = identity.split(" ")
        return f"{psutil.Process(int(pid)).create_time():.2f}" == begun
    except (ValueError, psutil.NoSuchProcess):
        return False
