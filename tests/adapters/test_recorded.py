"""What the ledger gives to a simulation: arrivals, closings, attempts of the newest pass, service times (P21)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ledger_rows import T0, Rows, StoredBytes
from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import journal, overrides, recorded, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.incidents import GroupClosing
from p3s_prefect.core.loads import SeenUnit
from p3s_prefect.core.overrides import OverrideKind, Target
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.states import StageState

_GROUP = ["run"]


@pytest.fixture
def rows(ledger: Ledger) -> Iterator[Rows]:
    """Rows in a transaction on a new ledger."""
    with ledger.transaction() as connection:
        yield Rows(connection, StoredBytes())


def _arrive(rows: Rows, data_id: str, *, at: float, verdict: str = "taken", age_s: float = 1.0) -> None:
    mtime_ns = round((at - age_s) * 1e9)
    rows.arrival(data_id.replace(" ", "-"), verdict=verdict, at=at, data_id=data_id, mtime_ns=mtime_ns)


def _read(connection: Connection, **scope: object) -> recorded.Recorded:
    return recorded.recorded(connection, Scope(**scope), _GROUP)  # type: ignore[arg-type]


def test_units_come_with_their_times_in_order(rows: Rows) -> None:
    """P21: ignored ones too, as other rules may take them; none that was refused, and none that comes twice."""
    for number, verdict in enumerate(("taken", "ignored", "same", "conflict", "refused")):
        _arrive(rows, f"run=1 subrun={number}", at=T0 + 5 - number, verdict=verdict)
    _arrive(rows, "run=10 subrun=0", at=T0, age_s=-3600.0)
    found = _read(rows.connection, group="run=1")
    assert found.units == (
        SeenUnit(at=T0 + 4, taken_at=T0 + 3, stream="camera", data_id=DataId.of(run=1, subrun=1)),
        SeenUnit(at=T0 + 5, taken_at=T0 + 4, stream="camera", data_id=DataId.of(run=1, subrun=0)),
    )
    (ahead, *_) = _read(rows.connection, since=T0).units
    assert (ahead.data_id, ahead.taken_at) == (DataId.of(run=10, subrun=0), T0)
    assert len(_read(rows.connection, since=T0 + 4, until=T0 + 5).units) == 1


def test_groups_are_chosen_by_day_and_close_when_they_closed(rows: Rows) -> None:
    """P21, P22."""
    rows.group("run=1")
    _arrive(rows, "run=1 subrun=0", at=T0)
    _arrive(rows, "run=2 subrun=0", at=T0)
    for run, at in ((1, T0 - 50), (1, T0 + 9), (2, T0 + 8)):
        journal.write(rows.connection, at, "group.closed", f"run={run}", reason="marker")
    found = _read(rows.connection, day="20270115")
    assert [unit.data_id for unit in found.units] == [DataId.of(run=1, subrun=0)]
    assert found.closings == (GroupClosing(at=T0 + 9, group=DataId.of(run=1)),)


def test_attempts_are_those_of_the_newest_pass(rows: Rows) -> None:
    """P21: what was open before is counted, and what still runs has no service time."""
    group = rows.group("run=1")
    first = rows.production_pass(group, "dqm")
    again = {"number": 1, "run_collection": f"TestCam/dqm/{group}/pass0", "is_open": True, "opened_at": T0}
    second = rows.add(schema.production_pass, job_id=1, **again)
    for number, (pass_id, state) in enumerate(((first, "failed"), (second, "done"))):
        unit = rows.unit(pass_id, "run=1 subrun=0", state=state, at=T0)
        rows.attempt(rows.stage(unit, "quick", state=state), state=state, steps={"work": 1.0 + number})
    other = rows.unit(rows.production_pass(group, "deep"), "run=1 subrun=0", state="arrived", at=T0 - 9)
    rows.attempt(rows.stage(other, "look", state="running"), state="running")
    _arrive(rows, "run=1 subrun=0", at=T0)
    _arrive(rows, "run=1 subrun=1", at=T0 + 60)
    for subrun, at in enumerate((T0 - 1, T0 + 1, T0 + 2, T0 + 61)):
        _arrive(rows, f"run=2 subrun={subrun}", at=at)
    found = _read(rows.connection, group="run=1")
    assert found.beside == 2
    (one,) = found.attempts
    assert (one.pipeline, one.stage, one.state, one.run_state) == ("dqm", "quick", "done", StageState.DONE)
    assert one.ended_at - one.started_at == pytest.approx(2.2)
    assert found.open_before == 1
    assert recorded.measured(rows.connection) == (one,)


def test_what_people_set_and_asked_for_meanwhile_is_told(rows: Rows) -> None:
    """P21, S9: a pause that was in force, and none that was over before or came after."""
    _arrive(rows, "run=1 subrun=0", at=T0)
    _arrive(rows, "run=1 subrun=1", at=T0 + 60)
    target = Target(pipeline="dqm")
    for kind, set_at, expires_at in (("drain", -90, -30), ("pause", -20, 20), ("hold", 30, None), ("limit", 90, None)):
        overrides.set_override(
            rows.connection,
            kind=OverrideKind(kind),
            target=target,
            by="shifter",
            why="",
            now=T0 + set_at,
            value=2 if kind == "limit" else None,
            expires_at=None if expires_at is None else T0 + expires_at,
        )
    by_hand = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=0", at=T0 + 5)
    rows.connection.execute(schema.sub_job.update().where(schema.sub_job.c.id == by_hand).values(asked_at=T0 + 5))
    found = _read(rows.connection, since=T0)
    assert (found.overrides, found.asked) == (("pause", "hold"), 1)


def test_what_is_not_there_says_what_is(rows: Rows) -> None:
    """S8."""
    with pytest.raises(NoSuchRecord, match="Nothing was processed here yet"):
        _read(rows.connection, since=T0)
    rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=0")
    with pytest.raises(NoSuchRecord, match="no group run=3"):
        _read(rows.connection, group="run=3")
