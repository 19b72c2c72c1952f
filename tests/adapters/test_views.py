"""What the ledger shows, against rows in a real database."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
from ledger_rows import T0, Rows
from query_plans import walked_through
from sqlalchemy import event, update

from p3s_prefect.adapters.ledger import result_views, schema, views
from p3s_prefect.adapters.ledger.asked import Scope, open_stages
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.overrides import Target
from p3s_prefect.core.states import TERMINAL, StageState, SubJobState, sub_job_state
from p3s_prefect.core.views import ACTIVITIES

Fill = Callable[[Callable[[Rows], None]], None]
# From the newest row until there are enough; the index of what is open holds just that.
_WALKED_BACK = {f"SCAN {name}" for name in ("sub_job", "attempt", "production_pass", "data_group")} | {
    "SCAN sub_job USING INDEX ix_sub_job_open"
}


def _runs(rows: Rows) -> None:
    """Two runs of three units; in the second, one unit fails and one still runs."""
    for run, states in ((1, ("done", "done", "done")), (2, ("done", "failed", "arrived"))):
        group = rows.group(f"run={run}", at=T0 + 100 * run, is_open=run == 2, arrivals=3)
        pass_id = rows.production_pass(group, "dqm")
        for subrun, state in enumerate(states):
            at = T0 + 100 * run + 10 * subrun
            unit = rows.unit(pass_id, f"run={run} subrun={subrun}", state=state, at=at)
            stage_state = "running" if state == "arrived" else state
            reason = "quick: exited with 3" if state == "failed" else ""
            stage = rows.stage(unit, "quick", state=stage_state, reason=reason, at=at)
            attempt = rows.attempt(stage, state=stage_state, reason=reason, at=at)
            if state == "done":
                rows.product(attempt, "Pedestal")
                rows.summary(attempt, "noise", 4.0 + subrun, "ADC")
        if run == 1:
            whole = rows.unit(pass_id, "run=1", per="group", at=T0 + 150)
            rows.product(rows.attempt(rows.stage(whole, "totals", at=T0 + 150), at=T0 + 150), "Run totals")


def test_account_counts_each_thing_once_in_one_query(seen_ledger: Ledger, fill: Fill) -> None:
    """P7: for each pipeline and stage, seen is the sum of its states; sub-jobs too; from one query each."""
    chance = random.Random(7)
    kinds = [*(str(state) for state in sorted(TERMINAL)), "running", "queued", "waiting", "held"]
    drawn: Counter[tuple[str, str, str]] = Counter()

    def write(rows: Rows) -> None:
        for pipeline in ("alerts", "dqm"):
            for run in range(2):
                group = rows.group(f"{pipeline}={run}")
                pass_id = rows.production_pass(group, pipeline)
                for subrun in range(60):
                    unit = rows.unit(
                        pass_id, f"{pipeline}={run} subrun={subrun}", state=chance.choice(list(SubJobState))
                    )
                    for position, stage in enumerate(("second", "first")):
                        state = chance.choice(kinds)
                        drawn[pipeline, stage, state] += 1
                        rows.stage(unit, stage, state=state, position=1 - position)

    fill(write)
    statements: list[str] = []
    with seen_ledger.reading() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        account = views.account(connection)
        sub_jobs = views.sub_job_account(connection)
    assert len([statement for statement in statements if statement != "BEGIN"]) == 2
    assert [(row.pipeline, row.stage) for row in account] == [
        ("alerts", "first"),
        ("alerts", "second"),
        ("dqm", "first"),
        ("dqm", "second"),
    ]
    for row in account:
        counted = {state: getattr(row, state) for state in sorted(TERMINAL)}
        assert counted == {state: drawn[row.pipeline, row.stage, state] for state in counted}
        assert row.seen == row.open + sum(counted.values()) == 120
    assert all(row.balances and row.seen == 120 and row.stage is None for row in sub_jobs)


def test_account_of_one_group_and_one_pipeline(seen_ledger: Ledger, fill: Fill) -> None:
    """P7."""
    fill(_runs)
    with seen_ledger.reading() as connection:
        (row,) = views.account(connection, group="run=2")
        assert (row.seen, row.done, row.failed, row.open) == (3, 1, 1, 1)
        assert views.account(connection, pipeline="other") == ()


def test_units_newest_first_by_page_and_filter(seen_ledger: Ledger, fill: Fill) -> None:
    fill(_runs)
    with seen_ledger.reading() as connection:
        every = views.units(connection)
        assert [row.data_id for row in every[:3]] == ["run=2 subrun=2", "run=2 subrun=1", "run=2 subrun=0"]
        first = views.units(connection, limit=3)
        rest = views.units(connection, limit=100, before=first[-1].id)
        assert (*first, *rest) == every
        assert [row.data_id for row in views.units(connection, state="failed")] == ["run=2 subrun=1"]
        assert [row.data_id for row in views.units(connection, state="open")] == ["run=2 subrun=2"]
        assert {row.group for row in views.units(connection, group="run=1")} == {"run=1"}
        assert views.units(connection, pipeline="other") == ()


def test_what_overload_left_out_and_is_open_stands_by(seen_ledger: Ledger, fill: Fill) -> None:
    """B12: it can be listed; not what was let in, was settled, or was asked for by hand, nor a group's stages."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "dqm")
        for part, (state, u, q) in enumerate([("queued", 0.9, 0.5), ("queued", 0.4, 0.5), ("shed", 0.9, 0.5)]):
            unit = rows.unit(pass_id, f"run=1 part={part}", state="shed" if state == "shed" else "arrived", u=u)
            rows.stage(unit, "quick", state=state, q=q)
        later = rows.unit(pass_id, "run=1 part=3", state="arrived", u=0.9)
        rows.stage(later, "quick", state="done", q=1.0)
        rows.stage(later, "full", state="waiting", q=0.5, position=1)
        asked = rows.unit(pass_id, "run=1 part=4", state="arrived", u=0.9)
        rows.connection.execute(update(schema.sub_job).where(schema.sub_job.c.id == asked).values(asked_at=T0))
        rows.stage(asked, "quick", state="queued", q=0.5)
        rows.stage(rows.unit(pass_id, "run=1", per="group", state="arrived", u=0.0), "total", state="waiting")

    fill(write)
    with seen_ledger.reading() as connection:
        views.check_filters(connection, [], state="standby")
        standing_by = [row.data_id for row in views.units(connection, state="standby")]
        assert standing_by == ["run=1 part=3", "run=1 part=0"]
        assert len(views.units(connection, state="open")) == 5


def test_open_units_are_listed_by_what_they_do(seen_ledger: Ledger, fill: Fill) -> None:
    """By the word that the lists show, whichever states its stages are in: each open unit has one."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "dqm")
        for part, states in enumerate(product(StageState, repeat=2)):
            unit = rows.unit(pass_id, f"run=1 part={part}", state=sub_job_state(states).value)
            for position, state in enumerate(states):
                rows.stage(unit, f"s{position}", state=state, position=position)

    fill(write)
    with seen_ledger.reading() as connection:
        every = views.units(connection, state="open", limit=1000)
        for activity in ACTIVITIES:
            views.check_filters(connection, [], state=activity)
            expected = tuple(unit for unit in every if unit.activity == activity)
            assert views.units(connection, state=activity, limit=1000) == expected != ()
        assert {unit.activity for unit in every} == set(ACTIVITIES)


def test_a_unit_tells_why_and_when(seen_ledger: Ledger, fill: Fill) -> None:
    fill(_runs)
    with seen_ledger.reading() as connection:
        running, failed, done = views.units(connection, limit=3)
    assert failed.reason == "quick: exited with 3"
    assert done.reason == ""
    assert (running.activity, running.settled_at, running.started_at) == ("running", None, None)
    at = T0 + 200
    times = (done.taken_at, done.arrived_at, done.queued_at, done.started_at, done.ended_at, done.published_at)
    assert times == pytest.approx((at, at + 0.25, at + 0.25, at + 1.0, at + 2.2, at + 2.3))


def test_a_page_costs_the_same_however_long_the_history(seen_ledger: Ledger, fill: Fill) -> None:
    """What a page lists is found by indexes, or by walking back from the newest row; nothing else is walked through."""
    fill(_runs)
    asked: list[tuple[str, object]] = []
    with seen_ledger.reading() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
        views.units(connection)
        views.units(connection, state="open")
        views.units(connection, state="standby")
        views.units(connection, state="held")
        views.units(connection, group="run=1")
        for target in (Target(), Target(pipeline="dqm", stage="quick"), Target(group=DataId.of(run=1))):
            open_stages(connection, Scope(target=target))
        views.groups(connection)
        views.outcomes(connection, now=T0 + 250)
        result_views.group_or_unit(connection, "run=1")
        result_views.group_work(connection, "run=1")
        result_views.latest_products(connection)
        result_views.trends(connection)
        result_views.unit(connection, "run=1 subrun=2")
    with seen_ledger.reading() as connection:
        for statement, parameters in asked:
            walked = walked_through(connection, statement, parameters) if parameters else ()
            back = _WALKED_BACK if "LIMIT" in statement else set()
            assert set(walked) <= back, statement


def test_groups_state_their_coverage(seen_ledger: Ledger, fill: Fill) -> None:
    """P22: coverage counts the units, not the group's own stages."""
    fill(_runs)
    with seen_ledger.reading() as connection:
        second, first = views.groups(connection)
        assert views.groups(connection, is_open=True) == (second,)
        assert result_views.group(connection, "run=1") == first
    assert (first.coverage[0].done, first.coverage[0].seen) == (3, 3)
    coverage = second.coverage[0]
    assert (coverage.done, coverage.open, coverage.lost, coverage.seen) == (1, 1, 1, 3)


def test_latest_products_are_those_of_the_latest_data(seen_ledger: Ledger, fill: Fill) -> None:
    """P17: reprocessing old data does not take the place of what is going on now."""

    def write(rows: Rows) -> None:
        _runs(rows)
        old = rows.group("run=0", at=T0)
        unit = rows.unit(rows.production_pass(old, "dqm"), "run=0 subrun=0", at=T0)
        rows.product(rows.attempt(rows.stage(unit, "quick")), "Pedestal")

    fill(write)
    with seen_ledger.reading() as connection:
        latest = result_views.latest_products(connection)
        of_group = result_views.group_products(connection, "run=1")
    assert [(row.title, row.data_id) for row in latest] == [("Pedestal", "run=2 subrun=0"), ("Run totals", "run=1")]
    assert [row.title for row in of_group] == ["Run totals"]


def test_products_of_a_group_stay_when_many_units_follow(
    seen_ledger: Ledger, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P17."""
    monkeypatch.setattr(result_views, "RECENT_ATTEMPTS", 1)
    fill(_runs)
    with seen_ledger.reading() as connection:
        assert "Run totals" in [row.title for row in result_views.latest_products(connection)]


def test_trends_are_in_the_order_of_the_data(seen_ledger: Ledger, fill: Fill) -> None:
    """P17: a summary value that nobody declared has a trend."""
    fill(_runs)
    with seen_ledger.reading() as connection:
        (trend,) = result_views.trends(connection)
        (short,) = result_views.trends(connection, limit=2)
    assert (trend.name, trend.unit, trend.values) == ("noise", "ADC", (4.0, 5.0, 6.0, 4.0))
    assert short.data_ids == ("run=1 subrun=2", "run=2 subrun=0")


def test_a_unit_in_full(seen_ledger: Ledger, fill: Fill) -> None:
    fill(_runs)
    with seen_ledger.reading() as connection:
        found = result_views.unit(connection, "run=1 subrun=2")
        with pytest.raises(NoSuchRecord, match=r"run=1 subrun=2 in pipeline other"):
            result_views.unit(connection, "run=1 subrun=2", pipeline="other")
        with pytest.raises(NoSuchRecord, match="pass 1"):
            result_views.unit(connection, "run=1 subrun=2", pass_number=1)
    assert [row.title for row in found.products] == ["Pedestal"]
    assert [(row.name, row.value) for row in found.summary] == [("noise", 6.0)]
    assert found.unit.stages[0].attempts[0].steps[0].step == "work"


def test_files_that_were_kept_out(seen_ledger: Ledger, fill: Fill) -> None:
    def write(rows: Rows) -> None:
        rows.arrival("a", verdict="taken")
        rows.arrival("b", verdict="refused", reason="its name fits no pattern")
        rows.arrival("c", verdict="conflict", reason="other bytes", at=T0 - 10_000)

    fill(write)
    with seen_ledger.reading() as connection:
        rows = views.arrivals(connection, verdicts=views.KEPT_OUT)
        counts = views.kept_out(connection, now=T0 + 1)
    assert [(row.key, row.reason) for row in rows] == [("c", "other bytes"), ("b", "its name fits no pattern")]
    assert (counts.refused, counts.conflicts) == (1, 0)


def test_outcomes_count_what_settled_lately(seen_ledger: Ledger, fill: Fill) -> None:
    """P19: what was left out on purpose, what is open and what is long ago do not count."""

    by_hand = "run=1 subrun=3"

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "dqm")
        for number, state in enumerate(("done", "expired", "failed", "done", "prescaled", "arrived")):
            unit = rows.unit(pass_id, f"run=1 subrun={number}", state=state, at=T0 + number)
            rows.stage(unit, "quick", state="running" if state == "arrived" else state, reason=f"reason {number}")
        rows.unit(pass_id, "run=1 subrun=9", state="failed", at=T0 - 3700)
        for number in (6, 7):
            rows.unit(pass_id, f"run=1 subrun={number}", state="shed", at=T0 - number)
        named = schema.sub_job.c.data_id
        rows.connection.execute(update(schema.sub_job).where(named == by_hand).values(asked_at=T0))
        # What is only tried again was chosen by chance.
        rows.connection.execute(update(schema.sub_job).where(named == "run=1 subrun=0").values(asked_at=T0, u=0.4))

    fill(write)
    with seen_ledger.reading() as connection:
        found = views.outcomes(connection, now=T0 + 10)
        later = views.outcomes(connection, now=T0 + 10_000)
    assert (found.done, found.failed, found.expired, found.blocked) == (2, 1, 1, 0)
    assert (found.shed, found.shed_s, later.shed, later.shed_s) == (2, pytest.approx(13.0), 0, math.inf)
    assert (found.by_hand, later.by_hand) == (1, 0)
    assert found.latest == ("done", "failed", "expired", "done")
    assert found.reason == "reason 2"
    assert (later.done, later.lost, later.latest, later.reason) == (0, 0, (), "")


def test_what_selects_nothing_is_refused_with_what_there_is(seen_ledger: Ledger, fill: Fill) -> None:
    fill(_runs)
    with seen_ledger.reading() as connection:
        views.check_filters(connection, ["quality"], state="expected", pipeline="dqm", group="run=1")
        with pytest.raises(NoSuchRecord, match="no group run=77\n  `p3s list groups`"):
            views.check_filters(connection, ["quality"], group="run=77")
        with pytest.raises(BadName, match="prescaled"):
            views.check_filters(connection, [], state="bogus")
        with pytest.raises(BadName, match="Give one of: dqm, quality"):
            views.check_filters(connection, ["quality"], pipeline="nope")


def test_a_group_is_found_in_a_pass_that_it_has(seen_ledger: Ledger, fill: Fill) -> None:
    fill(_runs)
    with seen_ledger.reading() as connection:
        group, work = result_views.group_or_unit(connection, "run=1", pipeline="dqm", pass_number=0)
        assert group is not None
        assert work is not None
        assert (group.data_id, work.unit.per) == ("run=1", "group")
        assert result_views.group_or_unit(connection, "run=2", pipeline="dqm")[1] is None
        for asked in ({"pipeline": "nope"}, {"pass_number": 7}):
            with pytest.raises(NoSuchRecord, match="It is in: pipeline dqm, pass 0"):
                result_views.group_or_unit(connection, "run=2", **asked)  # type: ignore[arg-type]
