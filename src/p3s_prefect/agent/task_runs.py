"""Recording task runs, and making sure that they were."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from p3s_prefect.agent.events import task_run_events
from p3s_prefect.agent.record import TaskRunRecord
from p3s_prefect.agent.server import PrefectServer, any_of, portions
from p3s_prefect.agent.states import Kind
from p3s_prefect.core.errors import ServiceError

# The most that a server's answer holds.
_PAGE = 200
# A server keeps at most 10,000 events that it has not recorded, and drops what comes then without a word; each task
# run has at most two or three of them.
_MOST_AT_ONCE = 400
_LOOK_EVERY_S = 0.1
# With Prefect's own settings, a server that has much to do was 45 s late.
_PATIENCE_S = 120.0

FoundTaskRun = tuple[uuid.UUID, str, TaskRunRecord]
"""Id and name of the flow run, and the task run."""


async def send(server: PrefectServer, found: Iterable[FoundTaskRun], patience_s: float = _PATIENCE_S) -> None:
    """Sends what is new of these task runs, and waits until it is recorded.

    An event that the server has accepted is not recorded yet: if it is killed then, the event is lost.

    Raises:
        ServiceError: the server took the events, and did not record them.
    """
    new = [events for each in found if (events := _new(server, *each))]
    for some in portions(new, _MOST_AT_ONCE):
        await server.post("/events", [event for events in some for event in events])
        await _until_recorded(server, [events[-1] for events in some], patience_s)
        server.remember(*(event["id"] for events in some for event in events))


async def fold(server: PrefectServer, flow_run_id: uuid.UUID) -> None:
    """Takes away the units of a flow run that were recorded one by one before its group became large.

    What failed stays, with the tries that followed.
    """
    left, offset = [], 0
    while page := await server.post(
        "/task_runs/filter",
        {
            "flow_runs": {"id": any_of([flow_run_id])},
            "task_runs": {"tags": {"all_": ["per:unit"]}},
            "limit": _PAGE,
            "offset": offset,
        },
    ):
        left += [task_run["id"] for task_run in page if _is_ordinary(task_run)]
        offset += len(page)
    for task_run_id in left:
        await server.delete(f"/task_runs/{task_run_id}")


def _is_ordinary(task_run: dict[str, Any]) -> bool:
    is_first = str(task_run["dynamic_key"]).endswith("-0")
    return is_first and task_run["state_type"] not in (Kind.FAILED, Kind.CRASHED)


def _new(
    server: PrefectServer, flow_run_id: uuid.UUID, flow_run_name: str, task_run: TaskRunRecord
) -> list[dict[str, Any]]:
    events = task_run_events(flow_run_id, flow_run_name, task_run)
    return [event for event in events if not server.is_recorded(event["id"])]


async def _until_recorded(server: PrefectServer, last: Sequence[dict[str, Any]], patience_s: float) -> None:
    missing = {event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run."): event for event in last}
    until = time.monotonic() + patience_s
    while True:
        for ids in portions(list(missing), _PAGE):
            page = await server.post("/task_runs/filter", {"task_runs": {"id": any_of(ids)}, "limit": _PAGE})
            for task_run in page:
                if _is_in(task_run, missing[task_run["id"]]):
                    del missing[task_run["id"]]
        if not missing:
            return
        if time.monotonic() > until:
            raise ServiceError(
                f"the Prefect server took the states of {len(missing)} task runs, and did not record them",
                fix="It is tried again. The server's log says why.",
            )
        await asyncio.sleep(_LOOK_EVERY_S)


def _is_in(task_run: dict[str, Any], event: dict[str, Any]) -> bool:
    """Whether a task run has the state of an event, or a later one."""
    is_now = task_run["state"]
    if task_run["state_id"] == event["id"] or is_now is None:
        return bool(task_run["state_id"] == event["id"])
    return datetime.fromisoformat(is_now["timestamp"]) >= datetime.fromisoformat(event["occurred"])
