"""Writing the record of passes to a Prefect server. All of it may be repeated, and adds nothing then."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from p3s_prefect.adapters.pass_artifacts import ArtifactRecord, pictures, table
from p3s_prefect.agent import task_runs
from p3s_prefect.agent.events import moment
from p3s_prefect.agent.record import FlowRunRecord, PassRecord, TaskRunRecord
from p3s_prefect.agent.recorded_flows import RecordedFlows
from p3s_prefect.agent.server import PrefectServer, any_of
from p3s_prefect.agent.shown import log_lines
from p3s_prefect.agent.states import TERMINAL, Kind
from p3s_prefect.core.ports import ObjectStore

_CANCELLING = "CANCELLING"


class PrefectRecord:
    """The record of a site on one Prefect server."""

    def __init__(
        self,
        server: PrefectServer,
        store: ObjectStore,
        flows: RecordedFlows | None = None,
        *,
        pictures: Collection[str] | None = None,
    ) -> None:
        """`pictures` are the titles of the products that are shown; None means all."""
        self._server = server
        self._store = store
        self._flows = flows
        self._pictures = pictures

    def forget(self) -> None:
        """Takes nothing for granted that was written: it may be another server now, or one with an older database."""
        self._server.forget()
        if self._flows is not None:
            self._flows.forget()

    async def ping(self) -> None:
        """Asks whether the server is there.

        Raises:
            httpx.HTTPError: it is not.
        """
        await self._server.get("/health")

    async def write(self, passes: Sequence[PassRecord]) -> None:
        """Brings everything that Prefect shows of some passes up to date.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses.
            ServiceError: it took states of task runs, and did not record them.
        """
        begun = [await self._begin(record) for record in passes]
        await task_runs.send(
            self._server, [(run.id, run.record.name, task_run) for run in begun for task_run in run.task_runs]
        )
        for run in begun:
            await self._complete(run)

    async def _begin(self, record: PassRecord) -> _Begun:
        wanted = record.flow_run()
        flow = await self._server.post("/flows/", {"name": wanted.flow, "tags": ["p3s"]})
        # Asked for each time, as somebody may have removed it. In this state no worker takes it.
        content: dict[str, Any] = {
            "flow_id": flow["id"],
            "name": wanted.name,
            "idempotency_key": wanted.idempotency_key,
            "tags": list(wanted.tags),
            "parameters": dict(wanted.parameters),
            "labels": dict(wanted.labels),
            "state": {"type": Kind.RUNNING, "name": "Running"},
        }
        if self._flows is not None:
            content["deployment_id"] = await self._flows.deployment(flow["id"], wanted.flow)
        return _Begun(record, wanted, await self._server.post("/flow_runs/", content))

    async def _complete(self, run: _Begun) -> None:
        folded = f"folded {run.id}"
        if run.of.is_large and not self._server.is_recorded(folded):
            await task_runs.fold(self._server, run.id)
            self._server.remember(folded)
        for task_run in run.task_runs:
            if task_run.log_key is not None:
                await self._write_log(run.id, task_run)
        await self._write_artifacts(run.id, [table(run.of.facts), *pictures(run.of.facts, self._store, self._pictures)])
        if run.state_differs:
            told = {"type": run.record.state.kind, "name": run.record.state.name, "message": run.record.state.message}
            await self._server.post(f"/flow_runs/{run.id}/set_state", {"state": told, "force": True})

    async def _write_log(self, flow_run_id: uuid.UUID, task_run: TaskRunRecord) -> None:
        written = f"log {task_run.id}"
        if self._server.is_recorded(written):
            return
        chosen = {"logs": {"task_run_id": any_of([task_run.id])}, "limit": 1}
        if not await self._server.post("/logs/filter", chosen):
            of = {"flow_run_id": str(flow_run_id), "task_run_id": str(task_run.id), "name": task_run.task_key}
            ended_at = task_run.states[-1].at
            lines = [
                # In their order, also where they are sorted by time.
                of | {"level": level, "message": line, "timestamp": moment(ended_at + place * 1e-6)}
                for place, (level, line) in enumerate(log_lines(task_run, self._store))
            ]
            await self._server.post("/logs/", lines)
        self._server.remember(written)

    async def _write_artifacts(self, flow_run_id: uuid.UUID, records: Iterable[ArtifactRecord]) -> None:
        for record in records:
            chosen = {"flow_run_id": any_of([flow_run_id]), "key": {"any_": [record.key]}}
            told = {"data": record.data, "description": record.description}
            there = await self._server.post("/artifacts/filter", {"artifacts": chosen, "limit": 1})
            if there:
                await self._server.patch(f"/artifacts/{there[0]['id']}", told)
            else:
                of = {"key": record.key, "type": record.kind, "flow_run_id": str(flow_run_id)}
                await self._server.post("/artifacts/", of | told)


class _Begun:
    """A pass whose flow run is there."""

    def __init__(self, of: PassRecord, record: FlowRunRecord, answer: dict[str, Any]) -> None:
        self.of = of
        self.record = record
        self.id = uuid.UUID(answer["id"])
        self._is_now = answer["state"]
        reopened = self._is_now["type"] in TERMINAL and record.state.kind not in TERMINAL
        self.task_runs = of.task_runs(reopened=reopened)

    @property
    def state_differs(self) -> bool:
        """Whether the flow run has another state than it should."""
        wanted, is_now = self.record.state, self._is_now
        if wanted.kind not in TERMINAL:
            # What somebody cancelled in Prefect is not taken back here: it is a command.
            return is_now["type"] not in (Kind.RUNNING, _CANCELLING, Kind.CANCELLED)
        return (is_now["type"], is_now["name"], is_now["message"] or "") != (wanted.kind, wanted.name, wanted.message)
