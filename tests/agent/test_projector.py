"""The projector against a real Prefect server: what stands there afterwards is what the ledger says, once each."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Any

import httpx
import pytest
from ledger_rows import PNG, T0
from prefect_servers import PrefectProcess
from recorded_books import Books, finish, retry
from sqlalchemy import update

from p3s_prefect.adapters.ledger import agent_cursor, schema
from p3s_prefect.adapters.ledger.agent_cursor import Cursor
from p3s_prefect.agent import task_runs
from p3s_prefect.agent.events import task_run_events
from p3s_prefect.agent.record import PassRecord
from p3s_prefect.agent.server import PrefectServer
from p3s_prefect.core.errors import ServiceError

pytestmark = pytest.mark.sockets

DONE = {"quick": "done", "later": "done"}


async def follow(books: Books, server: PrefectServer) -> Cursor:
    """Records all that the journal has, as a new agent would."""
    projector = books.projector(server)
    cursor = projector._open()
    while (moved := await projector.step(cursor)) is not None:
        cursor = moved
    return cursor


def everything(prefect: PrefectProcess, books: Books) -> dict[str, Any]:
    """All that stands in Prefect about a ledger, with its histories, but for the moments of recording."""
    found = {}
    for name, run in prefect.flow_runs(books.name).items():
        tasks = prefect.task_runs(run)
        found[name] = {
            "state": (run["state_type"], run["state_name"], run["state"]["message"]),
            "parameters": run["parameters"],
            "tasks": {
                task_name: (task["id"], task["start_time"], task["end_time"], prefect.states(task), prefect.logs(task))
                for task_name, task in tasks.items()
            },
            "artifacts": {
                key: (artifact["type"], artifact["data"]) for key, artifact in prefect.artifacts(run).items()
            },
            "edges": prefect.edges(run),
        }
    return found


async def test_what_the_ledger_says_stands_in_prefect(
    books: Books, server: PrefectServer, prefect: PrefectProcess
) -> None:
    """S2, V21: a flow run for the pass, task runs with real times and dependencies, table, pictures, logs, reasons."""
    with books.writing() as rows:
        unit = books.unit(rows, 0, {"quick": "done", "later": "failed"}, reasons={"later": "exit code 3"})
        attempt_id = rows.attempt(unit.runs["quick"], number=1)
        rows.product(attempt_id, "Noise")
        rows.product(attempt_id, "Huge", content=PNG + bytes(100_000))
        books.unit(rows, 1, {"quick": "prescaled", "later": "prescaled"}, reasons={"quick": "u is not below q"})
        books.close_group(rows, {"total": "blocked"})
    await follow(books, server)
    found = everything(prefect, books)["dqm run=1 pass 0"]
    assert found["state"] == (
        "FAILED",
        "Failed",
        "quick: 1 done, 1 prescaled; later: 1 failed, 1 prescaled; total: 1 blocked",
    )
    assert found["parameters"]["group"] == "run=1"
    _, started, ended, states, logs = found["tasks"]["later subrun=0"]
    assert (started, ended) == ("2027-01-15T08:00:02Z", "2027-01-15T08:00:03.200000Z")
    assert states == [("RUNNING", "Running"), ("FAILED", "Failed")]
    assert logs == ["all well", "later subrun=0: exit code 3"]
    assert found["tasks"]["quick subrun=1"][3] == [("COMPLETED", "Prescaled")]
    assert found["tasks"]["total"][3] == [("CANCELLED", "Blocked")]
    assert {("later subrun=0", "total"), ("later subrun=1", "total")} <= found["edges"]
    kind, rows_shown = found["artifacts"]["dqm-units"]
    assert (kind, len(rows_shown)) == ("table", 5)
    picture = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert found["artifacts"]["dqm-quick-camera-noise"] == ("image", picture)
    assert set(found["artifacts"]) == {"dqm-units", "dqm-quick-camera-noise"}


async def test_only_pictures_that_are_named_are_shown(
    books: Books, server: PrefectServer, prefect: PrefectProcess
) -> None:
    """S2, V18 (pictures): by their titles, where the experiment file names any."""
    books.declare(pictures=["Noise"])
    with books.writing() as rows:
        attempt_id = rows.attempt(books.unit(rows, 0, {"quick": "done", "later": "done"}).runs["quick"], number=1)
        rows.product(attempt_id, "Noise")
        rows.product(attempt_id, "Pedestal")
    await follow(books, server)
    found = everything(prefect, books)["dqm run=1 pass 0"]
    assert set(found["artifacts"]) == {"dqm-units", "dqm-quick-camera-noise"}


async def test_recorded_again_it_adds_nothing(books: Books, server: PrefectServer, prefect: PrefectProcess) -> None:
    """V21: an agent that starts anew, and one that has lost its place, record everything once."""
    with books.writing() as rows:
        unit = books.unit(rows, 0, {"quick": "failed", "later": "waiting"}, reasons={"quick": "exit code 3"})
        books.unit(rows, 1, DONE)
    await follow(books, server)
    with books.writing() as rows:
        retry(rows, unit, "quick", at=T0 + 60)
    await follow(books, server)
    with books.writing() as rows:
        finish(rows, unit, "quick", at=T0 + 61, number=1)
        books.close_group(rows, {"total": "running"})
    await follow(books, server)
    before = everything(prefect, books)
    tries = before["dqm run=1 pass 0"]["tasks"]
    assert tries["quick subrun=0 (try 2)"][3] == [
        ("SCHEDULED", "AwaitingRetry"),
        ("RUNNING", "Retrying"),
        ("COMPLETED", "Completed"),
    ]
    server.forget()
    with books.writing() as rows:
        rows.connection.execute(update(schema.agent_cursor).values(number=0))
    await follow(books, server)
    assert everything(prefect, books) == before


class Killed(Exception):
    """The agent is gone in the middle of its work."""


async def test_killed_after_any_request_it_goes_on_where_it_was(
    books: Books, server: PrefectServer, prefect: PrefectProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V21: whatever the server has done by then is done once; nothing that the agent knew is needed."""
    with books.writing() as rows:
        books.unit(rows, 0, {"quick": "failed", "later": "blocked"}, reasons={"quick": "exit code 3"})
        unit = books.unit(rows, 1, {"quick": "done"})
        rows.product(rows.attempt(unit.runs["quick"], number=1, at=T0 + 5), "Noise")
        books.close_group(rows, {"total": "blocked"})
    post, left = server.post, 0

    async def dying(path: str, content: Any) -> Any:
        nonlocal left
        answer = await post(path, content)
        left -= 1
        if left < 0:
            raise Killed
        return answer

    monkeypatch.setattr(server, "post", dying)
    for requests in range(100):
        left = requests
        server.forget()
        try:
            await follow(books, server)
            break
        except Killed:
            assert _cursor(books) == 0
    assert requests >= 8
    found = everything(prefect, books)
    assert list(found) == ["dqm run=1 pass 0"]
    (only,) = found.values()
    assert only["state"][0] == "FAILED"
    assert {name: run[3][-1][1] for name, run in only["tasks"].items()} == {
        "quick subrun=0": "Failed",
        "later subrun=0": "Blocked",
        "quick subrun=1": "Completed",
        "quick subrun=1 (try 2)": "Completed",
        "total": "Blocked",
    }
    assert only["tasks"]["quick subrun=0"][4] == ["all well", "quick subrun=0: exit code 3"]
    assert set(only["artifacts"]) == {"dqm-units", "dqm-quick-camera-noise"}


async def test_lines_of_the_journal_come_in_portions(
    books: Books, server: PrefectServer, prefect: PrefectProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V21: however the journal is cut, the record is the same, and the cursor stands at its end."""
    monkeypatch.setattr("p3s_prefect.agent.projector._MOST_LINES", 2)
    with books.writing() as rows:
        for subrun in range(3):
            books.unit(rows, subrun, DONE)
        books.close_group(rows, {"total": "done"})
    cursor = await follow(books, server)
    with books.ledger.reading() as connection:
        assert cursor.number == agent_cursor.newest_number(connection)
    found = everything(prefect, books)["dqm run=1 pass 0"]
    assert found["state"][0] == "COMPLETED"
    assert len(found["tasks"]) == 7


async def test_a_group_that_becomes_large_is_folded(
    books: Books, server: PrefectServer, prefect: PrefectProcess
) -> None:
    """S2, V18 (record_units): units recorded one by one make place for their stages; what failed stays."""
    books.declare(record_units=3)
    with books.writing() as rows:
        books.unit(rows, 0, {"quick": "failed", "later": "blocked"})
        for subrun in (1, 2):
            books.unit(rows, subrun, DONE)
    await follow(books, server)
    (run,) = prefect.flow_runs(books.name).values()
    assert len(prefect.task_runs(run)) == 6
    with books.writing() as rows:
        books.unit(rows, 3, DONE)
    await follow(books, server)
    assert set(prefect.task_runs(run)) == {"quick", "later", "quick subrun=0"}
    with books.writing() as rows:
        books.close_group(rows, {"total": "done"})
    await follow(books, server)
    found = everything(prefect, books)["dqm run=1 pass 0"]
    assert set(found["tasks"]) == {"quick", "later", "total", "quick subrun=0"}
    assert found["tasks"]["quick"][3][-1] == ("FAILED", "Failed")
    assert len(found["artifacts"]["dqm-units"][1]) == 9


async def test_what_somebody_cancels_in_prefect_is_not_taken_back(
    books: Books, server: PrefectServer, prefect: PrefectProcess
) -> None:
    """S2: it is a command, and answered elsewhere; what becomes of the pass is told when it has settled."""
    with books.writing() as rows:
        books.unit(rows, 0, {"quick": "running", "later": "waiting"})
    await follow(books, server)
    (run,) = prefect.flow_runs(books.name).values()
    asked = {"state": {"type": "CANCELLING"}, "force": True}
    prefect.ask(f"/flow_runs/{run['id']}/set_state", asked)
    with books.writing() as rows:
        books.unit(rows, 1, {"quick": "running", "later": "waiting"})
    await follow(books, server)
    assert next(iter(prefect.flow_runs(books.name).values()))["state_type"] == "CANCELLING"


async def test_an_event_that_is_not_recorded_is_noticed(books: Books, server: PrefectServer) -> None:
    """V21: the server accepts events before it records them, and drops some without a word."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
    record = PassRecord(books.facts(), site=uuid.uuid4(), experiment=books.name, most_units=64)
    # A flow run that does not exist: the server's recorder gives up.
    flow_run_id, task_run = uuid.uuid4(), record.task_runs()[0]
    lost = [(flow_run_id, "nowhere", task_run)]
    with pytest.raises(ServiceError, match="did not record them"):
        await task_runs.send(server, lost, patience_s=1.0)
    sent = task_run_events(flow_run_id, "nowhere", task_run)
    assert [server.is_recorded(event["id"]) for event in sent] == [False, False]


async def test_what_the_server_refuses_for_good_keeps_nothing_else_back(
    books: Books,
    server: PrefectServer,
    prefect: PrefectProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """V21: after some tries the rest is recorded; the log names what was left out."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
    projector = books.projector(server)
    monkeypatch.setattr("p3s_prefect.agent.projector._FIRST_PAUSE_S", 0.01)
    write = projector._record.write

    async def refusing(passes: Any) -> None:
        if passes[0].facts.unit_count == 1:
            await server.post("/flow_runs/", {"nonsense": True})
        await write(passes)

    monkeypatch.setattr(projector._record, "write", refusing)
    running = asyncio.create_task(projector.run())
    try:
        await _until(lambda: _cursor(books) > 0)
        assert "left out of the record: dqm run=1 pass 0" in caplog.text
        with books.writing() as rows:
            books.unit(rows, 1, DONE)
        await _until(lambda: bool(prefect.flow_runs(books.name)))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_wrong_key_leaves_nothing_out(
    books: Books, server: PrefectServer, prefect: PrefectProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V21: however often the server says so; the health rows tell it."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
    projector = books.projector(server)
    post, asked = server.post, 0

    async def locked(path: str, content: Any) -> Any:
        nonlocal asked
        asked += 1
        request = httpx.Request("POST", f"{prefect.api}{path}")
        raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(401, request=request))

    monkeypatch.setattr(server, "post", locked)
    monkeypatch.setattr("p3s_prefect.agent.projector._LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr("p3s_prefect.agent.projector._FORGIVEN_S", -1.0)
    running = asyncio.create_task(projector.run())
    try:
        await _until(lambda: asked > 5)
        assert _facts(books).problem == "Prefect answers 401 to /api/flows/"
        monkeypatch.setattr(server, "post", post)
        await _until(lambda: _facts(books).behind == 0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(prefect.flow_runs(books.name)) == 1


async def test_a_server_that_is_not_there_loses_nothing(
    books: Books, server: PrefectServer, prefect: PrefectProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V21: the cursor stays where it was; what lasts is told in the health rows."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
    projector = books.projector(server)
    post = server.post

    async def gone(path: str, content: Any) -> Any:
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(server, "post", gone)
    monkeypatch.setattr("p3s_prefect.agent.projector._FORGIVEN_S", -1.0)
    running = asyncio.create_task(projector.run())
    try:
        await _until(lambda: "ConnectError" in _facts(books).problem)
        assert (_cursor(books), _facts(books).behind) == (0, 3)
        monkeypatch.setattr(server, "post", post)
        await _until(lambda: _facts(books).behind == 0)
        assert _facts(books).problem == ""
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(prefect.flow_runs(books.name)) == 1


def _facts(books: Books) -> Any:
    with books.ledger.reading() as connection:
        return agent_cursor.record_facts(connection, T0)


def _cursor(books: Books) -> int:
    with books.ledger.reading() as connection:
        return connection.scalar(schema.agent_cursor.select().with_only_columns(schema.agent_cursor.c.number)) or 0


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)
