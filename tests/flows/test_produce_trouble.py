"""The plain road when things go wrong: workers that are killed, productions that are stopped, and second tries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from batches import Batch, when
from test_produce import UNIT, produce

pytestmark = pytest.mark.sockets


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_states_are_right_after_a_worker_was_killed(dask_address: str, tmp_path: Path) -> None:
    """S2: what had ended well on a killed worker, and is asked for again by Dask, is done once and shown so."""
    batch = Batch.of(tmp_path / "home", {0: "a", 1: "b", 2: "stuck"})

    def others_are_done() -> bool:
        there = batch.hangs
        return there and all(batch.states()[UNIT.format(n), "later"] == "done" for n in (0, 1))

    def kill_both() -> None:
        one = batch.worker()
        for worker in psutil.Process(one.ppid()).children():
            if "spawn_main" in " ".join(worker.cmdline()):
                worker.kill()

    with when(others_are_done, kill_both):
        ended = produce(batch, dask_address)
    assert ended.state.is_completed(), ended.state
    assert set(ended.names().values()) == {"Completed"}
    assert batch.attempts("quick", UNIT.format(0)) == ["done"]
    assert batch.attempts("quick", UNIT.format(2)) == ["lost", "done"]


def test_a_unit_that_always_kills_its_worker_fails_and_the_flow_ends(dask_address: str, tmp_path: Path) -> None:
    """S2: the third loss is its own failure, in the ledger and in Prefect, with the reason; others are done."""
    batch = Batch.of(tmp_path / "home", {0: "murder", 1: "a"})
    ended = produce(batch, dask_address)
    assert ended.state.is_failed()
    assert ended.state.message.startswith("1 stage runs failed")
    assert batch.attempts("quick", UNIT.format(0)) == ["lost", "lost", "lost"]
    assert batch.states()[UNIT.format(0), "quick"] == "failed"
    assert batch.states()[UNIT.format(1), "later"] == "done"
    state = ended.tasks[f"quick {UNIT.format(0)}"].state
    assert state.name == "Failed"
    assert "its pilot was lost" in state.message


def test_what_dask_gives_up_is_ended_in_prefect_too(
    dask_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: where Dask does not try again, the task is shown as crashed, and not as running for ever."""
    import distributed

    from p3s_prefect.tasks import cluster

    monkeypatch.setattr(cluster, "_let_the_books_decide", _give_up_at_once)
    batch = Batch.of(tmp_path / "home", {0: "murder"})
    ended = produce(batch, dask_address)
    with distributed.Client(dask_address, set_as_default=False) as client:
        client.run_on_scheduler(_give_up_late)
    crashed = ended.tasks[f"quick {UNIT.format(0)}"].state
    assert crashed.name == "Crashed"
    assert "Dask gave it up: KilledWorker" in crashed.message
    assert batch.attempts("quick") == ["lost"]
    assert "have not ended" in ended.state.message


def _give_up_at_once(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 0


def _give_up_late(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 3


def test_states_are_right_where_nothing_arrives_that_workers_tell(
    dask_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: the connection by which workers tell the states of tasks is broken; the flow tells them before it ends."""
    import distributed

    from p3s_prefect.tasks import ends

    monkeypatch.setattr(ends, "_PATIENCE_S", 0.5)
    batch = Batch.of(tmp_path / "home", {0: "a", 1: "fail"})
    with distributed.Client(dask_address, set_as_default=False) as client:
        client.run(_hush)
        try:
            ended = produce(batch, dask_address)
        finally:
            client.run(_speak)
    assert ended.names() == {
        f"quick {UNIT.format(0)}": "Completed",
        f"later {UNIT.format(0)}": "Completed",
        f"quick {UNIT.format(1)}": "Failed",
        f"later {UNIT.format(1)}": "NotReady",
        "total run=1": "Completed",
    }
    first, second = ended.tasks[f"quick {UNIT.format(0)}"], ended.tasks[f"later {UNIT.format(0)}"]
    assert {found.id for found in second.task_inputs["wait_for"]} == {first.id}
    assert "/bin/sh exited with 3" in ended.tasks[f"quick {UNIT.format(1)}"].state.message


def _hush() -> None:
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker

    EventsWorker.set_client_override(NullEventsClient)


def _speak() -> None:
    from prefect.events.worker import EventsWorker

    EventsWorker.set_client_override(None)


def test_what_has_failed_is_tried_anew_by_the_next_production(dask_address: str, tmp_path: Path) -> None:
    """S2, B3: a new attempt in the same pass; what it had blocked goes on, and what was done is not done again."""
    batch = Batch.of(tmp_path / "home", {0: "flaky", 1: "a"}, retries=0)
    first = produce(batch, dask_address)
    assert first.state.is_failed()
    assert batch.states()[UNIT.format(0), "later"] == "blocked"
    again = produce(batch, dask_address)
    assert again.state.is_completed(), again.state
    assert batch.attempts("quick", UNIT.format(0)) == ["failed", "done"]
    assert batch.attempts("quick", UNIT.format(1)) == ["done"]
    assert batch.states()[UNIT.format(0), "later"] == "done"
    assert again.names()[f"quick {UNIT.format(0)}"] == "Completed"
    assert again.names()[f"quick {UNIT.format(1)}"] == "Cached"


def test_groups_do_not_wait_for_each_other(dask_address: str, tmp_path: Path) -> None:
    """P22: the totals of a group are made when its own units have ended, whatever other groups do."""
    batch = Batch.of(tmp_path / "home", {0: "stuck"})
    other = batch.path / "incoming/r002_0000.txt"
    other.write_text("a\n")

    def other_is_done() -> bool:
        return batch.hangs and batch.states().get(("run=2", "total")) == "done"

    with when(other_is_done, lambda: batch.worker().kill()):
        ended = produce(batch, dask_address)
    assert ended.state.is_completed(), ended.state


def test_a_cancelled_flow_run_stops_its_payloads(prefect_api: str, dask_address: str, tmp_path: Path) -> None:
    """S2: what ran is stopped and queued again; Prefect shows the run as cancelled, and no process is left."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelling

    batch = Batch.of(tmp_path / "home", {0: "hang", 1: "hang", 2: "a"})

    def cancel() -> None:
        running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(flow_run_filter=running):
                client.set_flow_run_state(run.id, Cancelling())

    def both_hang() -> bool:
        return batch.hangs and batch.attempts("quick", UNIT.format(1)) == ["running"]

    with when(both_hang, cancel):
        ended = produce(batch, dask_address)
    assert ended.state.is_cancelled(), ended.state
    assert is_gone(int((batch.path / "hangs").read_text()))
    assert batch.attempts("quick", UNIT.format(0)) == ["stopped"]
    assert batch.states()[UNIT.format(0), "quick"] == "queued"
    assert ended.names()[f"quick {UNIT.format(0)}"] == "Cancelled"


def test_a_cluster_of_a_station_is_refused(dask_address: str, tmp_path: Path) -> None:
    """B9: the flow says whose it is, and what to do; nothing was begun."""
    import distributed

    from p3s_prefect.adapters.cluster_users import ClusterUser, note_user
    from p3s_prefect.core.errors import ServiceError

    batch = Batch.of(tmp_path / "home", {0: "a"})
    station = ClusterUser.here("station", "nightwatch")
    with distributed.Client(dask_address, set_as_default=False) as client:
        assert client.run_on_scheduler(note_user, user=station, client=client.id) is None
        error = produce(batch, dask_address).state.result(raise_on_failure=False)
    assert isinstance(error, ServiceError)
    assert "is used by the station 'nightwatch'" in str(error)
    assert "p3s down" in str(error)
    assert not (batch.path / "ledger.db").exists()
    # The station has gone: its note counts no more.
    assert produce(batch, dask_address).state.is_completed()


def test_a_scheduler_that_is_not_there_is_said_at_once(prefect_api: str, tmp_path: Path) -> None:
    """S8: with its address, before anything is begun."""
    from p3s_prefect.core.errors import NoScheduler

    batch = Batch.of(tmp_path / "home", {0: "a"})
    error = produce(batch, "tcp://127.0.0.1:9").state.result(raise_on_failure=False)
    assert isinstance(error, NoScheduler)
    assert "tcp://127.0.0.1:9" in str(error)
    assert not (batch.path / "ledger.db").exists()
