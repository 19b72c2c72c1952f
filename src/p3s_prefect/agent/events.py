"""Task runs as events: how Prefect's own engine reports them, and the one way to record their real times.

The form is semi-internal: it is that of `prefect.utilities.engine.emit_task_run_state_change_event` in 3.8, and a test
compares the two. A server records an event once, by its id; of a task run's states it keeps the newest by time.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from p3s_prefect.agent.record import TaskRunRecord, event_id
from p3s_prefect.agent.states import RecordedState

# The server refuses events of more than 1.5 MB; a reason is read by people.
_LONGEST_MESSAGE = 10_000


def task_run_events(flow_run_id: uuid.UUID, flow_run_name: str, task_run: TaskRunRecord) -> list[dict[str, Any]]:
    """One event for each of the states of a task run."""
    before: list[RecordedState | None] = [None, *task_run.states]
    return [
        _event(flow_run_id, flow_run_name, task_run, initial, state)
        for initial, state in zip(before, task_run.states, strict=False)
    ]


def moment(at: float) -> str:
    """UTC in seconds since 1970 as Prefect writes it."""
    return datetime.fromtimestamp(at, tz=UTC).isoformat()


def _event(
    flow_run_id: uuid.UUID,
    flow_run_name: str,
    task_run: TaskRunRecord,
    initial: RecordedState | None,
    state: RecordedState,
) -> dict[str, Any]:
    return {
        "id": str(event_id(task_run, state)),
        "occurred": moment(state.at),
        "event": f"prefect.task-run.{state.name}",
        "payload": {
            "intended": {"from": initial.kind if initial else None, "to": state.kind},
            "initial_state": _state(initial) if initial else None,
            "validated_state": _state(state) | {"data": None},
            "task_run": _task_run(task_run),
        },
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run.id}",
            "prefect.resource.name": task_run.name,
            "prefect.run-count": str(task_run.run_count),
            "prefect.state-message": state.message[:_LONGEST_MESSAGE],
            "prefect.state-name": state.name,
            "prefect.state-timestamp": moment(state.at),
            "prefect.state-type": state.kind,
            # Only such events are recorded as task runs.
            "prefect.orchestration": "client",
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": flow_run_name,
            },
            *(
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
                for tag in sorted(task_run.tags)
            ),
        ],
    }


def _state(state: RecordedState) -> dict[str, Any]:
    return {
        "type": state.kind,
        "name": state.name,
        "message": state.message[:_LONGEST_MESSAGE],
        "state_details": {},
    }


def _task_run(task_run: TaskRunRecord) -> dict[str, Any]:
    times = {
        "expected_start_time": task_run.expected_at,
        "start_time": task_run.started_at,
        "end_time": task_run.ended_at,
    }
    return {
        "name": task_run.name,
        "task_key": task_run.task_key,
        "dynamic_key": task_run.dynamic_key,
        "tags": list(task_run.tags),
        "labels": dict(task_run.labels),
        "task_inputs": {"wait_for": [{"input_type": "task_run", "id": str(parent)} for parent in task_run.parents]},
        "run_count": task_run.run_count,
        "total_run_time": task_run.busy_s,
        # What is not known yet is written as such: a retry takes an end back.
        **{name: None if at is None else moment(at) for name, at in times.items()},
    }
