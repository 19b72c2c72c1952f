"""What is to stand in Prefect about a pass, computed from the ledger alone."""

from __future__ import annotations

import uuid

import pytest
from ledger_rows import T0
from recorded_books import STAGES, Books, finish, lose, retry

from p3s_prefect.adapters.ledger.projection import read_pass
from p3s_prefect.adapters.pass_artifacts import table
from p3s_prefect.agent.record import PassRecord, TaskRunRecord, event_id
from p3s_prefect.agent.states import Kind

SITE = uuid.UUID(int=7)
DONE = {"quick": "done", "later": "done"}


def record(books: Books, *, most_units: int = 64, site: uuid.UUID = SITE) -> PassRecord:
    return PassRecord(books.facts(most_units=most_units), site=site, experiment=books.name, most_units=most_units)


def named(record: PassRecord) -> dict[str, TaskRunRecord]:
    found = record.task_runs()
    assert len({run.id for run in found}) == len(found)
    assert len({(run.task_key, run.dynamic_key) for run in found}) == len(found)
    return {run.name: run for run in found}


def arrows(record: PassRecord) -> set[tuple[str, str]]:
    runs = named(record)
    names = {run.id: name for name, run in runs.items()}
    return {(names[parent], name) for name, run in runs.items() for parent in run.parents}


def test_a_small_group_is_recorded_unit_by_unit_with_its_dag(books: Books) -> None:
    """S2: each stage of each unit, the group's own behind all of them, with the times of the ledger."""
    with books.writing() as rows:
        for subrun in (0, 1):
            books.unit(rows, subrun, DONE)
        books.close_group(rows, {"total": "done"})
    found = record(books)
    assert arrows(found) == {
        ("quick subrun=0", "later subrun=0"),
        ("quick subrun=1", "later subrun=1"),
        ("later subrun=0", "total"),
        ("later subrun=1", "total"),
    }
    quick = named(found)["quick subrun=1"]
    assert (quick.expected_at, quick.started_at, quick.ended_at) == pytest.approx(
        (T0 + 1.25, T0 + 2, T0 + 3.2), abs=1e-4
    )
    assert [state.name for state in quick.states] == ["Running", "Completed"]
    flow_run = found.flow_run()
    assert flow_run.name == "dqm run=1 pass 0"
    assert (flow_run.state.kind, flow_run.state.message) == (
        Kind.COMPLETED,
        "quick: 2 done; later: 2 done; total: 1 done",
    )


def test_what_is_computed_again_is_the_same_and_another_ledger_has_other_ids(books: Books) -> None:
    """V21: once each, also where several sites share a server."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
    ids = [[event_id(run, state) for run in record(books).task_runs() for state in run.states] for _ in range(2)]
    assert ids[0] == ids[1]
    other = record(books, site=uuid.UUID(int=8))
    assert not {run.id for run in other.task_runs()} & {run.id for run in record(books).task_runs()}
    assert other.flow_run().idempotency_key != record(books).flow_run().idempotency_key


def test_each_try_is_a_task_run_behind_the_one_before(books: Books) -> None:
    """S2: retrying is seen while it is waited for, and afterwards; what follows hangs on the try that counted."""
    with books.writing() as rows:
        unit = books.unit(rows, 0, {"quick": "failed", "later": "waiting"}, reasons={"quick": "exit code 3"})
        retry(rows, unit, "quick", at=T0 + 60)
    waiting = named(record(books))
    assert waiting["quick subrun=0"].states[-1].name == "Failed"
    assert waiting["quick subrun=0"].states[-1].message == "exit code 3"
    assert waiting["quick subrun=0"].log_key is not None
    assert [state.name for state in waiting["quick subrun=0 (try 2)"].states] == ["AwaitingRetry"]
    with books.writing() as rows:
        finish(rows, unit, "quick", at=T0 + 61, number=1)
    again = named(record(books))
    assert again["quick subrun=0 (try 2)"].id == waiting["quick subrun=0 (try 2)"].id
    assert [state.name for state in again["quick subrun=0 (try 2)"].states] == ["Retrying", "Completed"]
    assert {("quick subrun=0", "quick subrun=0 (try 2)"), ("quick subrun=0 (try 2)", "later subrun=0")} <= arrows(
        record(books)
    )


def test_what_was_left_out_has_its_reason(books: Books) -> None:
    """S2: skipped with the reason; a pass in which nothing failed has not failed."""
    reason = "u = 0.8 is not below q = 0.1"
    with books.writing() as rows:
        books.unit(rows, 0, {"quick": "prescaled", "later": "prescaled"}, reasons={"quick": reason})
        books.unit(rows, 1, {"quick": "shed", "later": "shed"})
        books.close_group(rows, {"total": "done"})
    runs = named(record(books))
    assert [(state.name, state.message) for state in runs["quick subrun=0"].states] == [("Prescaled", reason)]
    assert runs["quick subrun=1"].states[-1].kind is Kind.CANCELLED
    assert runs["quick subrun=1"].started_at is not None  # or the graph would not show it
    assert record(books).flow_run().state.kind is Kind.COMPLETED


@pytest.mark.parametrize("most_units", [1, 64])
def test_what_was_cancelled_half_way_is_no_success(books: Books, most_units: int) -> None:
    """S2: the pass that somebody cancelled is shown so, though some units had been done; a failure goes before."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
        books.unit(rows, 1, {"quick": "done", "later": "cancelled"})
        books.close_group(rows, {"total": "cancelled"})
    found = record(books, most_units=most_units)
    assert (found.flow_run().state.kind, found.flow_run().state.name) == (Kind.CANCELLED, "Cancelled")
    assert found.flow_run().state.message == "quick: 2 done; later: 1 cancelled, 1 done; total: 1 cancelled"
    if most_units == 1:
        assert named(found)["later"].states[-1].kind is Kind.CANCELLED
        assert named(found)["quick"].states[-1].kind is Kind.COMPLETED
    with books.writing() as rows:
        books.unit(rows, 2, {"quick": "failed", "later": "blocked"})
    assert record(books).flow_run().state.kind is Kind.FAILED


def test_a_large_group_is_recorded_by_stage_and_what_failed_by_itself(books: Books) -> None:
    """S2, V18 (record_units): one task run a stage with the numbers, and one for each unit that failed."""
    with books.writing() as rows:
        for subrun in range(5):
            books.unit(rows, subrun, DONE)
        books.unit(rows, 5, {"quick": "failed", "later": "blocked"})
        books.close_group(rows, {"total": "done"})
    found = record(books, most_units=5)
    runs = named(found)
    assert set(runs) == {"quick", "later", "total", "quick subrun=5"}
    assert (runs["quick"].states[-1].kind, runs["quick"].states[-1].message) == (Kind.FAILED, "5 done, 1 failed")
    assert runs["later"].states[-1].message == "5 done, 1 blocked"
    assert runs["quick"].busy_s == pytest.approx(6 * 1.2, abs=1e-4)
    assert arrows(found) == {("quick", "later"), ("later", "total")}
    assert found.flow_run().state.kind is Kind.FAILED
    assert set(named(record(books, most_units=6))) > {"quick subrun=0"}


def test_a_large_group_shows_what_was_lost_with_its_pilots_and_what_expired(books: Books) -> None:
    """S2, V18 (record_units): they failed too, though no payload did."""
    with books.writing() as rows:
        for subrun in range(3):
            books.unit(rows, subrun, DONE)
        lost = books.unit(rows, 3, {"quick": "running", "later": "blocked"})
        lose(rows, lost, "quick", at=T0 + 20, times=3)
        books.unit(rows, 4, {"quick": "expired", "later": "blocked"})
        books.close_group(rows, {"total": "done"})
    runs = named(record(books, most_units=4))
    assert set(runs) == {
        *("quick", "later", "total"),
        *("quick subrun=3", "quick subrun=3 (try 2)", "quick subrun=3 (try 3)"),
        "quick subrun=4",
    }
    assert runs["quick subrun=3 (try 3)"].states[-1].name == "PilotLost"
    assert runs["quick subrun=4"].states[-1].name == "Expired"


def test_what_was_lost_just_now_is_among_the_units_that_a_large_group_shows(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2, V18 (record_units): also where so many failed before that not all of them can be looked at."""
    monkeypatch.setattr("p3s_prefect.adapters.ledger.projection.MOST_ROWS", 2 * len(STAGES))
    with books.writing() as rows:
        lost = books.unit(rows, 0, {"quick": "running", "later": "waiting"})
        lose(rows, lost, "quick", at=T0 + 20, times=3)
        for subrun in range(1, 5):
            books.unit(rows, subrun, {"quick": "failed", "later": "blocked"})
    with books.ledger.reading() as connection:
        facts = read_pass(connection, books.pass_id, most_units=3, touched=frozenset([lost.id]))
    assert [unit.data_id for unit in facts.units] == ["run=1 subrun=0", "run=1 subrun=4"]


def test_a_stage_of_a_large_group_runs_as_long_as_units_may_come(books: Books) -> None:
    """S2: it has not ended because all that are there have; and it goes on when something is tried again."""
    with books.writing() as rows:
        units = [books.unit(rows, subrun, DONE) for subrun in range(2)]
        units.append(books.unit(rows, 2, {"quick": "failed", "later": "blocked"}))
    assert [state.name for state in named(record(books, most_units=1))["quick"].states] == ["Running"]
    with books.writing() as rows:
        books.close_group(rows, {"total": "done"})
    ended = named(record(books, most_units=1))["quick"]
    assert ended.states[-1].name == "Failed"
    with books.writing() as rows:
        retry(rows, units[2], "quick", at=T0 + 600)
    (again,) = [run for run in record(books, most_units=1).task_runs(reopened=True) if run.name == "quick"]
    assert again.states[-1].name == "Retrying"
    assert again.states[-1].at == T0 + 600 > ended.states[-1].at


def test_the_table_has_what_went_wrong_first(books: Books) -> None:
    """S2: unit, stage, state and times of all, with the reason."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
        books.unit(rows, 1, {"quick": "failed", "later": "blocked"}, reasons={"quick": "exit code 3"})
    shown = table(record(books).facts)
    assert [(row["unit"], row["stage"], row["state"]) for row in shown.data] == [
        ("run=1 subrun=1", "quick", "failed"),
        ("run=1 subrun=1", "later", "blocked"),
        ("run=1 subrun=0", "quick", "done"),
        ("run=1 subrun=0", "later", "done"),
    ]
    first = shown.data[0]
    assert (first["started"], first["seconds"], first["why"]) == ("2027-01-15 08:00:02.000", 1.2, "exit code 3")
    assert "quick: 1 done, 1 failed" in shown.description
