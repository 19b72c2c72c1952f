"""The events that record task runs have the form of Prefect's own: it is semi-internal, and pinned."""

from __future__ import annotations

import inspect
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.events.utilities import emit_event
from prefect.server.events.schemas.events import Event
from prefect.server.services.task_run_recorder import db_recordable_task_run_from_event
from prefect.utilities import engine

from p3s_prefect.agent.events import task_run_events
from p3s_prefect.agent.record import TaskRunRecord
from p3s_prefect.agent.states import Kind, RecordedState

PARENT, FLOW_RUN = uuid.UUID(int=3), uuid.UUID(int=4)
RECORD = TaskRunRecord(
    id=uuid.UUID(int=5),
    name="quick subrun=3",
    task_key="dqm/quick",
    dynamic_key="12-0",
    tags=("stage:quick", "per:unit"),
    parents=(PARENT,),
    expected_at=1_800_000_000.25,
    started_at=1_800_000_001.0,
    ended_at=1_800_000_002.5,
    busy_s=1.5,
    run_count=1,
    labels={"p3s.attempt": 0},
    states=(
        RecordedState(kind=Kind.RUNNING, name="Running", at=1_800_000_000.5),
        RecordedState(kind=Kind.FAILED, name="TimedOut", at=1_800_000_002.5, message="step work was killed"),
    ),
)


def events() -> list[dict[str, Any]]:
    return task_run_events(FLOW_RUN, "dqm run=1 pass 0", RECORD)


def test_the_pinned_version_is_installed() -> None:
    """S2: another version is taken only after these tests have been run with it."""
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"prefect=={prefect.__version__}" in constraints


def test_the_form_is_that_of_prefects_own_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: the same keys, where Prefect writes them, in event, resource, payload and its parts."""
    emitted: list[dict[str, Any]] = []

    def note(**words: Any) -> None:
        inspect.signature(emit_event).bind(**words)
        emitted.append(words)

    assert engine.emit_event is emit_event
    monkeypatch.setattr(engine, "emit_event", note)
    moment = datetime.fromtimestamp(RECORD.states[1].at, UTC)
    run = TaskRun(
        id=RECORD.id,
        name=RECORD.name,
        task_key=RECORD.task_key,
        dynamic_key=RECORD.dynamic_key,
        tags=list(RECORD.tags),
        expected_start_time=moment,
        start_time=moment,
        end_time=moment,
    )
    before, after = (State(type=StateType(s.kind), name=s.name, message=s.message) for s in RECORD.states)
    engine.emit_task_run_state_change_event(run, before, after)
    (own,), ours = emitted, events()[1]
    own.pop("follows")
    assert set(ours) - {"related"} == set(own) - {"related"}
    assert ours["event"] == own["event"] == "prefect.task-run.TimedOut"
    assert set(ours["resource"]) == set(own["resource"])
    assert ours["resource"]["prefect.orchestration"] == own["resource"]["prefect.orchestration"]
    for part in ("intended", "initial_state", "validated_state"):
        assert set(ours["payload"][part]) == set(own["payload"][part]), part
    assert set(ours["payload"]["task_run"]) <= set(own["payload"]["task_run"])
    assert [tag for tag in ours["related"] if tag["prefect.resource.role"] == "tag"] == own["related"]


def test_the_servers_recorder_reads_what_is_meant() -> None:
    """V21: real times, parents and states, as they go into the server's tables."""
    received = Event.model_validate(events()[1]).receive()
    run, columns = db_recordable_task_run_from_event(received)
    assert (run.id, run.flow_run_id) == (RECORD.id, FLOW_RUN)
    assert columns["start_time"].timestamp() == RECORD.started_at
    assert columns["end_time"].timestamp() == RECORD.ended_at
    assert columns["expected_start_time"].timestamp() == RECORD.expected_at
    assert columns["total_run_time"].total_seconds() == RECORD.busy_s
    assert columns["state_timestamp"].timestamp() == RECORD.states[1].at
    assert (columns["state_type"], columns["state_name"]) == ("FAILED", "TimedOut")
    assert [str(found.id) for found in run.task_inputs["wait_for"]] == [str(PARENT)]
    assert run.state.message == "step work was killed"
