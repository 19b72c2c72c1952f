"""Coverage and latency, against the same numbers computed by pandas from the tables themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import report_rows
from ledger_rows import T0, Rows, StoredBytes
from postgresql import Server
from query_plans import walked_through
from sqlalchemy import Connection, event, select

from p3s_prefect.adapters.ledger import reports, schema, views
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.coverage import CoverageRow
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.latency import LatencyRow
from p3s_prefect.core.phases import PhaseKind, phases
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.states import TERMINAL

Fill = Callable[[Callable[[Rows], None]], None]
_TERMINAL = sorted(str(state) for state in TERMINAL)
_KEY = ["pipeline", "number", "per", "part", "stage"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full_ledger(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Only read, and so made once on each database."""
    url = f"sqlite:///{tmp_path_factory.mktemp('reports')}/ledger.db"
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        url = server.url(server.create())
    with closing(Ledger(url)) as ledger:
        ledger.migrate()
        with ledger.transaction() as connection:
            report_rows.write(Rows(connection, StoredBytes()))
        yield ledger


@pytest.fixture
def connection(full_ledger: Ledger) -> Iterator[Connection]:
    with full_ledger.reading() as found:
        yield found


def _table(connection: Connection, table: Any) -> pd.DataFrame:
    return pd.DataFrame([row._mapping for row in connection.execute(select(table))])


def _stages(connection: Connection, by: str | None = None) -> pd.DataFrame:
    """Every stage run with all that it belongs to, and the attempt that published it, if one has."""
    passes = _table(connection, schema.production_pass).rename(columns={"id": "pass_id"})
    jobs = _table(connection, schema.job).rename(columns={"id": "job_id"})
    groups = _table(connection, schema.data_group).rename(columns={"id": "group_id", "data_id": "group"})
    units = _table(connection, schema.sub_job).rename(columns={"id": "sub_job_id", "state": "unit_state"})
    runs = _table(connection, schema.stage_run).rename(columns={"id": "stage_run_id"})
    tries = _table(connection, schema.attempt).query("state == 'done'").drop(columns=["state", "number", "reason"])
    found = runs.drop(columns="settled_at").merge(units, on="sub_job_id").merge(passes[["pass_id", "job_id", "number"]])
    found = found.merge(jobs, on="job_id").merge(groups[["group_id", "group", "day"]], on="group_id")
    found = found.merge(tries.drop(columns="id"), on="stage_run_id", how="left")
    found["part"] = "" if by is None else found["data_id"].str.extract(rf"\b{by}=(\w+)")[0].fillna("")
    return found


def _by_key(rows: tuple[CoverageRow, ...]) -> dict[tuple[Any, ...], CoverageRow]:
    return {(row.pipeline, row.pass_number, row.per, row.part or "", row.stage): row for row in rows}


def _expected_counts(table: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, int]]:
    """How many of each key are in which state; open is what is in no terminal one."""
    found = table.groupby([*_KEY, "state"], dropna=False).size().unstack(fill_value=0)
    counts = found.reindex(columns=_TERMINAL, fill_value=0)
    counts.insert(0, "seen", found.sum(axis=1))
    counts.insert(1, "open", counts["seen"] - counts[_TERMINAL].sum(axis=1))
    return {(*key[:-1], None if pd.isna(key[-1]) else key[-1]): row for key, row in counts.to_dict("index").items()}


@pytest.mark.parametrize("by", [None, "part", "subrun", "run"])
@pytest.mark.parametrize(
    ("scope", "chosen"),
    [
        (Scope(), "pipeline == pipeline"),
        (Scope(group="run=2"), "group == 'run=2'"),
        (Scope(pipeline="dqm", day="20270115"), "pipeline == 'dqm' and day == '20270115'"),
        (Scope(since=T0 + 10_100, until=T0 + 20_000), f"{T0 + 10_100} <= arrived_at < {T0 + 20_000}"),
    ],
)
def test_coverage_counts_what_the_tables_hold(
    connection: Connection, scope: Scope, chosen: str, by: str | None
) -> None:
    """P7: sub-jobs and stages, by pass and part; seen is the sum of the states."""
    found = reports.coverage(connection, replace(scope, by=by))
    table = _stages(connection, by).query(chosen)
    rows = _by_key(found.rows)
    units = table.drop_duplicates("sub_job_id").assign(stage=None, state=lambda units: units["unit_state"])
    expected = _expected_counts(table) | _expected_counts(units)
    assert {key: {name: getattr(row, name) for name in expected[key]} for key, row in rows.items()} == expected
    # What chance left out, and was done on standby, stands for no others.
    standby = table.query("state == 'done' and u >= q").groupby(_KEY).size().to_dict()
    assert {key: row.on_standby for key, row in rows.items() if row.on_standby} == standby
    sampled = table.query("state == 'done' and u < q").groupby(_KEY)["q"]
    effective = sampled.agg(lambda q: (1 / q).sum() ** 2 / (1 / q**2).sum())
    weighted = pd.DataFrame({"mean_q": sampled.mean(), "effective": effective}).to_dict("index")
    for key, row in rows.items():
        told = {"mean_q": row.mean_q, "effective": row.effective}
        assert told == (pytest.approx(weighted[key]) if key in weighted else {"mean_q": None, "effective": None})
    assert all(row.balances and row.seen == row.open + row.settled for row in found.rows)
    assert found.unbalanced == ()


def test_coverage_says_which_units_are_in_several_passes(connection: Connection) -> None:
    """P7: a unit that goes on in a new pass is counted in both, and once in the number of units."""
    table = _stages(connection).query("per == 'unit'").drop_duplicates("sub_job_id")
    for units in reports.coverage(connection, Scope()).units:
        own = table[table["pipeline"] == units.pipeline]
        assert units.units == own["data_id"].nunique() == 240
        assert units.in_several_passes == (own["data_id"].value_counts() > 1).sum() > 0
        assert units.done == own.query("unit_state == 'done'")["data_id"].nunique()


def test_rows_come_in_the_order_of_the_work(connection: Connection) -> None:
    """P7: sub-jobs before their stages, stages in their order, parts as numbers, the group's own stages last."""
    found = reports.coverage(connection, Scope(group="run=1", pipeline="dqm", by="subrun")).rows
    assert [row.stage for row in found[:4]] == [None, "quick", "deep", "plots"]
    assert [row.part for row in found if row.stage == "quick" and row.pass_number == 0] == [str(n) for n in range(120)]
    in_first = [row for row in found if row.pass_number == 0]
    assert [(row.per, row.part, row.stage) for row in in_first[-2:]] == [
        ("group", None, None),
        ("group", None, "totals"),
    ]


def test_the_whole_agrees_with_the_account(connection: Connection) -> None:
    """P7: the report of everything has the counts of `p3s status`."""
    found = [row for row in reports.coverage(connection, Scope()).rows if row.stage is not None]
    for account in views.account(connection):
        own = [row for row in found if (row.pipeline, row.stage) == (account.pipeline, account.stage)]
        for name in ("seen", "open", *_TERMINAL):
            assert sum(getattr(row, name) for row in own) == getattr(account, name)


def _latencies(connection: Connection, scope: Scope) -> dict[tuple[Any, ...], LatencyRow]:
    rows = reports.latency(connection, scope).rows
    accounts = [row.account for row in rows]
    return dict(zip(_by_key(tuple(accounts)), rows, strict=True))


def _check_spread(found: Any, seconds: pd.Series) -> None:
    told = (found.count, found.mean_s, found.p50_s, found.p95_s, found.p99_s, found.longest_s)
    expected = (*seconds.quantile([0.5, 0.95, 0.99]), seconds.max())
    assert told == pytest.approx((len(seconds), seconds.mean(), *expected), abs=1e-6)


@pytest.mark.parametrize("by", [None, "part"])
def test_latency_of_stages_is_that_of_the_tables(connection: Connection, by: str | None) -> None:
    """V24: percentiles of the whole, and the share in time, of what is done and of all that was due."""
    rows = _latencies(connection, Scope(by=by))
    table = _stages(connection, by)
    table["latency"] = table["published_at"] - table["taken_at"]
    for key, group in table.groupby(_KEY):
        row, done = rows[key], group.query("state == 'done'")
        if not len(done):
            assert (row.total, row.phases, row.curve) == (None, (), ())
            continue
        _check_spread(row.total, done["latency"])
        due = len(done) + group["state"].isin(["shed", "expired", "failed", "blocked"]).sum()
        deadline = report_rows.DEADLINES.get(key[-1])
        if deadline is None:
            assert (row.deadlines_s, row.in_time, row.in_time_of_done, row.in_time_of_due) == ((), None, None, None)
        else:
            in_time = int((done["latency"] <= deadline).sum())
            assert (row.deadlines_s, row.in_time) == ((deadline,), in_time)
            assert row.in_time_of_done == pytest.approx(in_time / len(done))
            assert row.in_time_of_due == pytest.approx(in_time / due)


def test_phases_of_a_stage_are_the_stretches_between_its_milestones(connection: Connection) -> None:
    """V24: taken, arrived, queued, started, each step, published; 0 where clocks disagree."""
    rows = _latencies(connection, Scope())
    table = _stages(connection).query("state == 'done'")
    for key, done in table.groupby(_KEY):
        steps = [{step["step"]: step["ended_at"] - step["started_at"] for step in found} for found in done["steps"]]
        by_step = pd.DataFrame(steps, index=done.index)
        expected = {
            "waited for arrival": done["arrived_at"] - done["taken_at"],
            "earlier stages and tries": done["queued_at"] - done["arrived_at"],
            "waited for a slot": done["started_at"] - done["queued_at"],
            **{name: by_step[name] for name in by_step},
            "inputs and outputs": done["ended_at"] - done["started_at"] - by_step.sum(axis=1),
            "published": done["published_at"] - done["ended_at"],
        }
        assert [phase.label for phase in rows[key].phases] == list(expected)
        for phase in rows[key].phases:
            _check_spread(phase.spread, expected[phase.label].clip(lower=0))
    assert (table["started_at"] < table["queued_at"]).any()
    assert (table["arrived_at"] < table["taken_at"]).any()


def test_latency_of_units_reaches_to_their_last_publication(connection: Connection) -> None:
    """V24: a unit is in time if each of its published stages was."""
    rows = _latencies(connection, Scope())
    table = _stages(connection).query("state == 'done' and unit_state == 'done'").copy()
    limits = table["stage"].map(report_rows.DEADLINES).fillna(math.inf)
    table["late"] = table["published_at"] - table["taken_at"] > limits
    for key, own in table.groupby(_KEY[:-1]):
        units = own.groupby("sub_job_id").agg({"taken_at": "first", "published_at": "max", "late": "any"})
        row = rows[*key, None]
        _check_spread(row.total, units["published_at"] - units["taken_at"])
        assert row.in_time == (~units["late"]).sum()
        assert row.deadlines_s == ((30.0,) if key[2] == "unit" else (60.0,))
    assert 0 < table["late"].mean() < 1


def test_the_curve_is_the_distribution_thinned(connection: Connection) -> None:
    """V24: as many points as a picture can show."""
    rows = _latencies(connection, Scope())
    row = rows["dqm", 0, "unit", "", "quick"]
    assert row.account.done < 200
    assert len(row.curve) == row.account.done
    assert list(row.curve) == sorted(row.curve)
    assert row.curve[-1] == row.total.longest_s


def test_one_unit_reads_as_on_its_page(seen_ledger: Ledger, fill: Fill) -> None:
    """V24: the report and `p3s show` divide the time of a unit of one stage and one try alike."""

    def write(rows: Rows) -> None:
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=1")
        rows.attempt(rows.stage(unit, "quick"), steps={"read": 0.5, "fit": 1.0})

    fill(write)
    with seen_ledger.reading() as connection:
        (unit,) = views.units(connection)
        _, row = reports.latency(connection, Scope()).rows
    assert unit.published_at is not None
    shown = phases(replace(unit, settled_at=unit.published_at), now=unit.published_at)
    for kind in PhaseKind:
        on_page = sum(phase.seconds for phase in shown if phase.kind is kind)
        assert sum(p.spread.p50_s for p in row.phases if p.kind is kind) == pytest.approx(on_page, abs=1e-5)


def test_what_was_asked_for_by_hand_counts_from_then(seen_ledger: Ledger, fill: Fill) -> None:
    """V24, B3: as its deadlines do; what was published before it was tried again keeps its own time."""
    again = T0 + 86_400.0

    def write(rows: Rows) -> None:
        rows.connection.execute(
            schema.configuration.insert().values(id="c" * 64, content=report_rows.CONTENT, stored_at=T0)
        )
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=1")
        rows.attempt(rows.stage(unit, "quick"), steps={"read": 0.5})
        rows.attempt(rows.stage(unit, "deep", position=1, at=again), at=again, steps={"fit": 1.0})
        rows.connection.execute(schema.sub_job.update().values(asked_at=again))

    fill(write)
    with seen_ledger.reading() as connection:
        whole, quick, deep = reports.latency(connection, Scope()).rows
        published = connection.scalars(select(schema.attempt.c.published_at).order_by(schema.attempt.c.id)).all()
    assert [(row.total.longest_s, row.in_time) for row in (whole, quick, deep) if row.total is not None] == [
        (published[1] - again, 1),
        (published[0] - T0, 1),
        (published[1] - again, 1),
    ]
    assert sum(phase.spread.longest_s for phase in whole.phases) < 60


def test_what_was_lost_altogether_still_has_its_deadline(seen_ledger: Ledger, fill: Fill) -> None:
    """V24: nothing done is nothing in time, and not an empty row."""

    def write(rows: Rows) -> None:
        rows.connection.execute(
            schema.configuration.insert().values(id="c" * 64, content=report_rows.CONTENT, stored_at=T0)
        )
        pass_id = rows.production_pass(rows.group("run=1"), "dqm")
        for subrun in range(3):
            rows.stage(rows.unit(pass_id, f"run=1 subrun={subrun}", state="expired"), "quick", state="expired")

    fill(write)
    with seen_ledger.reading() as connection:
        whole, stage = reports.latency(connection, Scope()).rows
    assert (stage.deadlines_s, stage.in_time, stage.total) == ((12.0,), 0, None)
    assert (stage.in_time_of_done, stage.in_time_of_due) == (None, 0.0)
    assert whole.in_time_of_due == 0.0


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        (Scope(group="run=7"), r"no group run=7\n  The newest are: run=2, run=1\."),
        (Scope(day="20200101"), r"day 20200101\n  The latest are: 20270115\."),
        (Scope(since=T0 + 10**6), r"from 2027-01-26 .*\n  What there is arrived from 2027-01-15 .* to 2027-01-15"),
        (Scope(pipeline="none"), r"nothing was processed of none\n  What there is arrived"),
    ],
)
def test_a_scope_with_nothing_in_it_says_what_there_is(connection: Connection, scope: Scope, says: str) -> None:
    """S8."""
    for report in (reports.coverage, reports.latency):
        with pytest.raises(NoSuchRecord, match=says):
            report(connection, scope)


def test_an_empty_ledger_says_so(seen_ledger: Ledger) -> None:
    """P7, S8: in place of an empty table."""
    with seen_ledger.reading() as connection, pytest.raises(NoSuchRecord, match="Nothing was processed here yet"):
        reports.coverage(connection, Scope())


def test_a_clock_that_was_set_back_hides_nothing(seen_ledger: Ledger, fill: Fill) -> None:
    """P7: what settled, by the clock, hours before it arrived is counted."""

    def write(rows: Rows) -> None:
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=1")
        rows.connection.execute(schema.sub_job.update().values(settled_at=T0 - 3 * 3600))
        rows.stage(unit, "quick")

    fill(write)
    with seen_ledger.reading() as connection:
        assert reports.coverage(connection, Scope(since=T0)).rows[0].seen == 1


def test_a_recent_period_is_found_by_index(connection: Connection) -> None:
    """P7: a report of the last day does not walk through the years before it."""
    asked: list[tuple[str, Any]] = []
    event.listen(connection, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
    for scope in (Scope(since=T0 + 20_300), Scope(group="run=2")):
        reports.latency(connection, scope)
    statements = [found for found in asked if found[0].startswith("SELECT")]
    assert len(statements) >= 10
    for statement, parameters in statements:
        big = ("SCAN sub_job", "SCAN stage_run", "SCAN attempt")
        assert not [step for step in walked_through(connection, statement, parameters) if step.startswith(big)]
