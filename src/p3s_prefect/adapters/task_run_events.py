"""How Prefect is told that a task run has another state: its server takes the states of tasks from events alone.

The form is semi-internal: it is that of `prefect.utilities.engine.emit_task_run_state_change_event` in 3.8, and tests
compare the two. A server records an event once, by its id; of a task run's states it keeps the newest by time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

# The server refuses events of more than 1.5 MB; a reason is read by people.
_LONGEST_MESSAGE = 10_000


@dataclass(frozen=True, kw_only=True)
class ToldState:
    """A state of a task run. `at` is its time in ISO 8601; `id` is what it is known by for good."""

    id: UUID
    kind: str
    name: str
    at: str
    message: str
    data: Mapping[str, Any] | None = None
    """Where its result is, as Prefect says it."""


def task_run_event(
    *,
    task_run_id: UUID,
    name: str,
    run_count: int,
    tags: Collection[str],
    flow_run_id: UUID,
    flow_run_name: str,
    before: ToldState | None,
    state: ToldState,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """The event that a task run of a flow run came from one state (None if it is new) to another.

    `fields` are those of the task run, by the names of Prefect's API.
    """
    return {
        "id": str(state.id),
        "occurred": state.at,
        "event": f"prefect.task-run.{state.name}",
        "payload": {
            "intended": {"from": before.kind if before else None, "to": state.kind},
            "initial_state": _told(before) if before else None,
            "validated_state": _told(state) | {"data": state.data},
            "task_run": dict(fields),
        },
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run_id}",
            "prefect.resource.name": name,
            "prefect.run-count": str(run_count),
            "prefect.state-message": state.message[:_LONGEST_MESSAGE],
            "prefect.state-name": state.name,
            "prefect.state-timestamp": state.at,
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
            *({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in sorted(tags)),
        ],
    }


def _told(state: ToldState) -> dict[str, Any]:
    return {
        "type": state.kind,
        "name": state.name,
        "message": state.message[:_LONGEST_MESSAGE],
        "state_details": {},
    }
