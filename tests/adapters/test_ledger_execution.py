"""Stage runs and attempts: the account (P7), publication (V13), and what a new station finds (B10)."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from builders import NOW, QUICK, arrival, contents, kill_at_random, manifest, pipeline, sha256, take, take_and_start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, func, select

from p3s_prefect.adapters.ledger import execution, schema
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.commit_record import read_commit_record
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import Conflict, NoSuchRecord
from p3s_prefect.core.records import PublishedObject, StageReport, StepTime, Transition
from p3s_prefect.core.states import MOVES, StageState, SubJobState, sub_job_state

S = StageState
CHAIN = pipeline({"first": [], "last": ["first"]})

# How each kind of end leaves the attempt, and where its stage run may go.
ENDS: dict[S, list[str]] = {
    S.QUEUED: ["failed", "lost", "stopped"],
    S.FAILED: ["failed", "lost"],
    S.EXPIRED: ["expired"],
}

# Every second move goes this way: at random, few stage runs would ever run, and fail, and be tried again.
FORWARD = {S.WAITING: S.QUEUED, S.HELD: S.QUEUED, S.QUEUED: S.RUNNING, S.RUNNING: S.FAILED}


# --- P7: the account ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """One step of a history: which stage run, where to, and how."""

    place: int
    choice: int
    is_stale: bool


HISTORIES = st.lists(
    st.builds(
        Move, place=st.integers(0, 3), choice=st.integers(0, 20), is_stale=st.integers(0, 7).map(lambda n: n == 0)
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES)
def test_any_legal_history_keeps_the_account(new_ledger: Callable[[], Ledger], history: list[Move]) -> None:
    """P7: after each transaction, each sub-job's state is what core makes of its stages, and nothing is lost."""
    ledger = new_ledger()
    with ledger.transaction() as connection:
        for subrun in range(2):
            take(connection, arrival(subrun), {"dqm": CHAIN})
    for move in history:
        with ledger.reading() as connection:
            runs = connection.execute(select(schema.stage_run).order_by(schema.stage_run.c.id)).all()
        run = runs[move.place]
        if move.is_stale:
            _check_refused(ledger, run.id, S(run.state))
        elif (new := _next_state(S(run.state), move.choice)) is not None:
            with ledger.transaction() as connection:
                _go(connection, run.id, S(run.state), new, move.choice)
        with ledger.reading() as connection:
            _check_account(connection)


def _next_state(old: S, choice: int) -> S | None:
    if choice % 2 and old in FORWARD:
        return FORWARD[old]
    possible = sorted(MOVES[old] - {S.CANCELLED} if old is S.RUNNING else MOVES[old])
    return possible[choice % len(possible)] if possible else None


def _go(connection: Connection, stage_run_id: int, old: S, new: S, choice: int) -> None:
    if old is S.QUEUED and new is S.RUNNING:
        execution.start(connection, stage_run_id, NOW)
        return
    if old is not S.RUNNING:
        execution.apply(connection, [Transition(stage_run_id=stage_run_id, old=old, new=new)], NOW)
        return
    opened = _running_attempt(connection, stage_run_id)
    if new is S.DONE:
        execution.publish(connection, manifest(opened, made=[opened.stage], run_id=f"e{opened.id}"), NOW)
    else:
        ended_as = ENDS[new][choice % len(ENDS[new])]
        execution.give_up(
            connection,
            attempt_id=opened.id,
            stage_run_id=stage_run_id,
            ended_as=ended_as,  # type: ignore[arg-type]
            next_state=new,
            reason="it was so",
            now=NOW,
        )


def _running_attempt(connection: Connection, stage_run_id: int) -> execution.Attempt:
    row = connection.execute(
        select(schema.attempt, schema.stage_run.c.stage, schema.sub_job.c.data_id)
        .join(schema.stage_run, schema.stage_run.c.id == schema.attempt.c.stage_run_id)
        .join(schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id)
        .where(schema.attempt.c.stage_run_id == stage_run_id, schema.attempt.c.state == "running")
    ).one()
    return execution.Attempt(
        id=row.id,
        number=row.number,
        stage_run_id=stage_run_id,
        stage=row.stage,
        pipeline="dqm",
        per="unit",
        data_id=DataId.parse(row.data_id),
        taken_at=NOW,
        job_id=1,
        pass_number=0,
        arrival_id=None,
        collection=connection.scalars(select(schema.run_collection.c.name)).one(),
        prefix=row.prefix,
    )


def _check_refused(ledger: Ledger, stage_run_id: int, state: S) -> None:
    """Someone who takes it to be in another state is refused, and with it all that they did in the transaction."""
    with ledger.reading() as connection:
        before = contents(connection)
    wrong = next(other for other in (S.QUEUED, S.WAITING) if other is not state)
    stale = Transition(stage_run_id=stage_run_id, old=wrong, new=S.CANCELLED)
    others = [
        Transition(stage_run_id=row[0], old=S.WAITING, new=S.CANCELLED)
        for row in before["stage_run"]
        if row[4] == "waiting" and row[0] != stage_run_id
    ]
    with pytest.raises(Conflict), ledger.transaction() as connection:
        execution.apply(connection, [*others, stale], NOW)
    with ledger.reading() as connection:
        assert contents(connection) == before


def _check_account(connection: Connection) -> None:
    sub_jobs = connection.execute(select(schema.sub_job)).all()
    assert len(sub_jobs) == 2
    open_ids = {fact.id for fact in execution.open_sub_jobs(connection)}
    for row in sub_jobs:
        runs = connection.execute(
            select(schema.stage_run)
            .where(schema.stage_run.c.sub_job_id == row.id)
            .order_by(schema.stage_run.c.position)
        ).all()
        states = [S(run.state) for run in runs]
        assert len(states) == 2
        assert SubJobState(row.state) is sub_job_state(states)
        assert (row.settled_at is None) == (row.state == "arrived") == (row.id in open_ids)
        assert all((run.settled_at is not None) == S(run.state).is_terminal for run in runs)
    _check_attempts(connection)


def _check_attempts(connection: Connection) -> None:
    for run in connection.execute(select(schema.stage_run)).all():
        attempts = connection.execute(
            select(schema.attempt).where(schema.attempt.c.stage_run_id == run.id).order_by(schema.attempt.c.number)
        ).all()
        ends = Counter(attempt.state for attempt in attempts)
        assert [attempt.number for attempt in attempts] == list(range(len(attempts)))
        assert (ends["running"], ends["done"]) == (int(run.state == "running"), int(run.state == "done"))
        assert (run.failures, run.losses) == (ends["failed"], ends["lost"])
        assert execution.counts(connection, run.id) == (run.failures, run.losses)


def test_a_retry_opens_a_settled_sub_job_again(ledger: Ledger) -> None:
    """P7, B3: else a station that starts anew would never see it."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
        _give_up(connection, opened, next_state=S.FAILED)
        assert execution.open_sub_jobs(connection) == []
        execution.apply(connection, [Transition(stage_run_id=opened.stage_run_id, old=S.FAILED, new=S.QUEUED)], NOW)
        (fact,) = execution.open_sub_jobs(connection)
        again = execution.start(connection, opened.stage_run_id, NOW)
    assert fact.stages[0].state is S.QUEUED
    assert (again.number, again.prefix.endswith("attempt1")) == (1, True)


@pytest.mark.parametrize(
    ("old", "new"), [(S.DONE, S.QUEUED), (S.WAITING, S.RUNNING), (S.QUEUED, S.DONE), (S.EXPIRED, S.QUEUED)]
)
def test_a_move_that_cannot_be_is_refused(ledger: Ledger, old: S, new: S) -> None:
    """P7."""
    with ledger.transaction() as connection:
        (fact,) = take(connection, arrival(1)).sub_jobs
    move = Transition(stage_run_id=fact.stages[0].id, old=old, new=new)
    with pytest.raises(Conflict, match="cannot go"), ledger.transaction() as connection:
        execution.apply(connection, [move], NOW)


def test_a_stage_run_is_started_once(ledger: Ledger) -> None:
    """B10."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
    with pytest.raises(Conflict, match="no longer queued"), ledger.transaction() as connection:
        execution.start(connection, opened.stage_run_id, NOW)
    with pytest.raises(NoSuchRecord), ledger.transaction() as connection:
        execution.start(connection, 99, NOW)
    with ledger.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.attempt)) == 1


def test_the_reason_and_the_report_of_an_attempt_without_results_are_kept(ledger: Ledger) -> None:
    """P7: whatever its log printed."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
        report = StageReport(
            attempt_id=opened.id,
            stage_run_id=opened.stage_run_id,
            execution="e1",
            pilot="here:1",
            started_at=NOW + 1,
            ended_at=NOW + 2,
            log=PublishedObject(key="x/log.txt", size=1, sha256=sha256(b"x")),
            steps=(StepTime(step="work", started_at=NOW + 1, ended_at=NOW + 2),),
        )
        _give_up(connection, opened, next_state=S.FAILED, reason="é\x00 DROP TABLE", report=report)
        row = connection.execute(select(schema.attempt)).one()
        reasons = connection.scalars(select(schema.stage_run.c.reason)).all()
    # PostgreSQL holds every character but this one.
    kept = row.reason.replace("\N{REPLACEMENT CHARACTER}", "\0")
    assert (row.state, kept, row.log_key, row.pilot) == ("failed", "é\x00 DROP TABLE", "x/log.txt", "here:1")
    assert row.steps == [{"step": "work", "started_at": NOW + 1, "ended_at": NOW + 2}]
    assert reasons == [row.reason]


# --- V13: publication -----------------------------------------------------------------------------------------------


def _give_up(connection: Connection, opened: execution.Attempt, **fields: Any) -> None:
    values: dict[str, Any] = {"ended_as": "failed", "next_state": S.QUEUED, "reason": "exit 1", "now": NOW}
    execution.give_up(connection, attempt_id=opened.id, stage_run_id=opened.stage_run_id, **values | fields)


class PulledPlug(Exception):
    pass


@contextmanager
def _plug_pulled(kind: str, number: int) -> Iterator[list[str]]:
    """Raises at the statement of this number, before or after the database has run it; yields what was run."""
    run: list[str] = []

    def pull(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        run.append(statement)
        if len(run) == number:
            raise PulledPlug

    event.listen(Engine, kind, pull)
    try:
        yield run
    finally:
        event.remove(Engine, kind, pull)


@pytest.mark.parametrize("kind", ["before_cursor_execute", "after_cursor_execute"])
def test_a_publication_that_fails_at_any_statement_leaves_nothing_of_it(ledger: Ledger, kind: str) -> None:
    """V13: then, repeated, it leaves everything."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
    found = manifest(opened)
    with ledger.reading() as connection:
        before = contents(connection)
    number = 0
    while True:
        number += 1
        with _plug_pulled(kind, number) as statements:
            try:
                with ledger.transaction() as connection:
                    execution.publish(connection, found, NOW)
            except PulledPlug:
                pass
            else:
                break
        with ledger.reading() as connection:
            assert contents(connection) == before
    assert len(statements) > 10
    _check_published(ledger)


def _check_published(ledger: Ledger) -> None:
    with ledger.reading() as connection:
        found = contents(connection)
        values = {row.name: (row.value, row.unit) for row in connection.execute(select(schema.summary_value)).all()}
    counts = {name: len(found[name]) for name in ("dataset", "lineage", "product", "summary_value")}
    assert counts == {"dataset": 1, "lineage": 1, "product": 1, "summary_value": 2}
    assert values == {"noise": (4.2, "ADC"), "label": ("good", "")}
    with ledger.reading() as connection:
        assert connection.scalars(select(schema.stage_run.c.state)).all() == ["done"]
        assert connection.scalars(select(schema.sub_job.c.state)).all() == ["done"]
        assert connection.scalars(select(schema.attempt.c.state)).all() == ["done"]
        assert connection.scalars(select(schema.arrival.c.sha256)).all() == [sha256(b"raw")]


def test_publishing_again_changes_nothing(ledger: Ledger) -> None:
    """V13."""
    with ledger.transaction() as connection:
        found = manifest(take_and_start(connection))
        execution.publish(connection, found, NOW)
        before = contents(connection)
    with ledger.transaction() as connection:
        execution.publish(connection, found, NOW + 5)
        assert contents(connection) == before


def test_a_publication_refused_inside_a_batch_leaves_the_others(ledger: Ledger) -> None:
    """V13: a conflict rejects only its own unit."""
    with ledger.transaction() as connection:
        late, good = take_and_start(connection, 1), take_and_start(connection, 2)
        _give_up(connection, late)
    with ledger.transaction() as connection:
        with pytest.raises(Conflict, match="its results came too late"), connection.begin_nested():
            execution.publish(connection, manifest(late), NOW)
        with connection.begin_nested():
            execution.publish(connection, manifest(good), NOW)
    with ledger.reading() as connection:
        assert connection.scalars(select(schema.dataset.c.data_id)).all() == ["run=1 subrun=2"]


def test_what_was_given_up_is_published_no_more_and_given_up_once(ledger: Ledger) -> None:
    """V13, P12: a pilot that was taken for lost comes back."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
        _give_up(connection, opened, ended_as="lost")
        before = contents(connection)
    with pytest.raises(Conflict, match="lost"), ledger.transaction() as connection:
        execution.publish(connection, manifest(opened), NOW)
    with pytest.raises(Conflict, match="not running"), ledger.transaction() as connection:
        _give_up(connection, opened)
    with ledger.reading() as connection:
        assert contents(connection) == before


def test_a_second_execution_of_a_published_attempt_is_refused(ledger: Ledger) -> None:
    """V13: Dask may run an order twice."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
        execution.publish(connection, manifest(opened, run_id="e1"), NOW)
        before = contents(connection)
    with pytest.raises(Conflict, match="came too late"), ledger.transaction() as connection:
        execution.publish(connection, manifest(opened, run_id="e2"), NOW)
    with ledger.reading() as connection:
        assert contents(connection) == before


def test_a_dataset_is_published_by_one_attempt_only(ledger: Ledger) -> None:
    """V13: even when the second attempt is in good order."""
    with ledger.transaction() as connection:
        taken = take(connection, arrival(1), {"dqm": pipeline({"a": [], "b": []})})
        a, b = (execution.start(connection, stage.id, NOW) for stage in taken.sub_jobs[0].stages)
        execution.publish(connection, manifest(a, made=["noise"]), NOW)
        before = contents(connection)
    with pytest.raises(Conflict, match="noise is already in test/dqm"), ledger.transaction() as connection:
        execution.publish(connection, manifest(b, made=["other", "noise"]), NOW)
    with ledger.reading() as connection:
        assert contents(connection) == before


def test_what_this_ledger_never_opened_is_not_published(ledger: Ledger) -> None:
    """V13: a manifest in the store of another ledger."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection)
    with pytest.raises(NoSuchRecord, match="no attempt 99"), ledger.transaction() as connection:
        execution.publish(connection, manifest(opened, attempt_id=99), NOW)


def test_readers_see_all_of_a_publication_or_nothing_while_publishers_are_killed(ledger: Ledger) -> None:
    """V13: kill -9 of a publishing process at random moments."""
    chance = random.Random(13)
    within_s = 0.2 if ledger.is_server else 0.02
    with ledger.transaction() as connection:
        for subrun in range(400):
            take(connection, arrival(subrun))
    kills, published = 0, 0
    while kills < 20 or not published:
        kill_at_random(lambda begun: _publish_all(ledger.url, begun), chance, within_s=within_s)
        kills += 1
        with ledger.reading() as connection:
            _check_each_is_whole(connection)
            published = connection.scalar(select(func.count()).select_from(schema.dataset)) or 0
        if not published:
            # On a busy machine none gets so far in that time.
            within_s *= 1.2
    with ledger.reading() as connection:
        assert len(execution.interrupted(connection)) > 0


def _publish_all(url: str, begun: Callable[[], None]) -> None:
    with closing(Ledger(url)) as ledger:
        for _ in range(1000):
            with ledger.transaction() as connection:
                waiting = connection.scalar(
                    select(schema.stage_run.c.id).where(schema.stage_run.c.state == "queued").limit(1)
                )
                if waiting is None:
                    signal.pause()
                opened = execution.start(connection, waiting, NOW)
            begun()
            with ledger.transaction() as connection:
                execution.publish(connection, manifest(opened), NOW)


def _check_each_is_whole(connection: Connection) -> None:
    def counted(table: Any) -> Counter[int]:
        return Counter(connection.scalars(select(table.c.attempt_id)).all())

    done = connection.scalars(select(schema.attempt.c.id).where(schema.attempt.c.state == "done")).all()
    for table, each in ((schema.dataset, 1), (schema.lineage, 1), (schema.product, 1), (schema.summary_value, 2)):
        assert counted(table) == Counter(dict.fromkeys(done, each))
    settled = connection.scalars(select(schema.sub_job.c.id).where(schema.sub_job.c.state == "done")).all()
    assert len(settled) == len(done)


# --- B10: after a crash ---------------------------------------------------------------------------------------------


def test_a_new_station_finds_what_was_running_and_what_is_open(ledger: Ledger) -> None:
    """B10."""
    with ledger.transaction() as connection:
        running, done, failed = (take_and_start(connection, subrun) for subrun in (1, 2, 3))
        execution.publish(connection, manifest(done), NOW)
        _give_up(connection, failed, next_state=S.FAILED)
        take(connection, arrival(4), {"dqm": QUICK})
    with closing(Ledger(ledger.url)) as again, again.reading() as connection:
        found = execution.interrupted(connection)
        open_now = execution.open_sub_jobs(connection)
    assert [(one.attempt_id, one.stage_run_id, one.prefix) for one in found] == [
        (running.id, running.stage_run_id, running.prefix)
    ]
    assert [(str(fact.data_id), fact.stages[0].state) for fact in open_now] == [
        ("run=1 subrun=1", S.RUNNING),
        ("run=1 subrun=4", S.QUEUED),
    ]


def test_what_waits_for_the_store_is_neither_interrupted_nor_ended(ledger: Ledger) -> None:
    """P13: it is published as ever, given up as ever, and then waits no more."""
    with ledger.transaction() as connection:
        known, unknown, lost = (take_and_start(connection, subrun) for subrun in (1, 2, 3))
        for opened in (known, lost):
            execution.wait(connection, opened.id, NOW + 5, execution="e1", pilot="there:7")
        execution.wait_unknown(connection, unknown.id, NOW + 6)
    with ledger.reading() as connection:
        assert execution.interrupted(connection) == []
        found = execution.waiting(connection)
    assert [(one.attempt_id, one.stage_run_id, one.since, one.pilot) for one in found] == [
        (known.id, known.stage_run_id, NOW + 5, "there:7"),
        (unknown.id, unknown.stage_run_id, NOW + 6, None),
        (lost.id, lost.stage_run_id, NOW + 5, "there:7"),
    ]
    with ledger.transaction() as connection:
        execution.publish(connection, manifest(known), NOW + 9)
        _give_up(connection, lost, next_state=S.QUEUED)
    with ledger.transaction() as connection:
        assert [one.attempt_id for one in execution.waiting(connection)] == [unknown.id]
        with pytest.raises(Conflict):
            execution.wait(connection, known.id, NOW, execution="e1", pilot="there:7")
        row = connection.execute(select(schema.attempt).where(schema.attempt.c.id == known.id)).one()
        assert (row.state, row.reason, row.published_at) == ("done", "", NOW + 9)
        execution.wait_no_more(connection)
        assert [one.attempt_id for one in execution.interrupted(connection)] == [unknown.id]


def test_a_commit_record_is_owed_until_it_is_noted_and_is_always_the_same(ledger: Ledger) -> None:
    """V13."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection, 1)
        assert execution.unrecorded(connection) == []
        execution.publish(connection, manifest(opened), NOW)
        assert execution.unrecorded(connection) == [opened.id]
        record = commit_record(connection, opened.id)
        execution.mark_recorded(connection, [opened.id])
        assert execution.unrecorded(connection) == []
        assert commit_record(connection, opened.id) == record
    assert (record.sub_job.data_id, record.place) == ("run=1 subrun=1", f"{opened.prefix}/e1")
    assert read_commit_record(record.content()) == record
