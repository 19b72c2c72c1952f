"""Task runs as events: how Prefect's own engine reports them, and the one way to record their real times."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from p3s_prefect.adapters.task_run_events import ToldState, task_run_event
from p3s_prefect.agent.record import TaskRunRecord, event_id


def task_run_events(flow_run_id: uuid.UUID, flow_run_name: str, task_run: TaskRunRecord) -> list[dict[str, Any]]:
    """One event for each of the states of a task run."""
    states = [
        ToldState(
            id=event_id(task_run, state), kind=state.kind, name=state.name, at=moment(state.at), message=state.message
        )
        for state in task_run.states
    ]
    return [
        task_run_event(
            task_run_id=task_run.id,
            name=task_run.name,
            run_count=task_run.run_count,
            tags=task_run.tags,
            flow_run_id=flow_run_id,
            flow_run_name=flow_run_name,
            before=before,
            state=state,
            fields=_fields(task_run),
        )
        for before, state in zip([None, *states], states, strict=False)
    ]


def moment(at: float) -> str:
    """UTC in seconds since 1970 as Prefect writes it."""
    return datetime.fromtimestamp(at, tz=UTC).isoformat()


def _fields(task_run: TaskRunRecord) -> dict[str, Any]:
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
