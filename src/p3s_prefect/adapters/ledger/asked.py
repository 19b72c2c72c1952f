"""Work that is asked for by hand: what can be tried again, what can be cancelled, and what can be processed anew (B3).

A retry stays in its pass and touches only what failed, and what waited for it. What is processed anew goes into a new
pass, so that earlier ones stay as they are (B2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, exists, func, or_, select, update

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.arrivals import Collection as Named
from p3s_prefect.adapters.ledger.arrivals import add_sub_job, open_pass
from p3s_prefect.adapters.ledger.open_stages import open_stage_runs
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    dataset,
    job,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.adapters.ledger.statements import JOB, NEWEST_PASS
from p3s_prefect.adapters.ledger.views import select_units, stands_by, with_stages
from p3s_prefect.core.admission import Admission
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.overrides import Target
from p3s_prefect.core.records import SubJobFact, Transition, Verdict
from p3s_prefect.core.retry import MISSING, Which
from p3s_prefect.core.states import TERMINAL, StageState, SubJobState
from p3s_prefect.core.views import UnitRow


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which sub-jobs are meant: all that agree with everything that is given."""

    pass_id: int | None = None
    target: Target = field(default_factory=Target)
    units: frozenset[str] = frozenset()
    """Data ids; none are all, and the groups' own sub-jobs too."""
    pipelines: frozenset[str] | None = None
    """None are all; a class may have no pipelines."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sub-job with the configuration under which it ran."""

    fact: SubJobFact
    configuration_id: str


@dataclass(frozen=True, kw_only=True)
class LetIn:
    """What was let in anew: units stand before groups."""

    facts: tuple[SubJobFact, ...]
    pass_number: int | None
    """None if there was nothing to let in."""
    from_standby: tuple[SubJobFact, ...]
    """What is under way, but stood by; from now on it is queued as what was let in."""
    left: Counter[SubJobState]
    """States of the units that were not let in, but for those."""


def failed(connection: Connection, scope: Scope) -> list[Found]:
    """Sub-jobs with a stage that failed or was blocked, of each unit the newest; units stand before groups."""
    bad = [StageState.FAILED, StageState.BLOCKED]
    return _found(connection, _with_stages(scope, bad).where(~_is_outdated()))


def still_open(connection: Connection, scope: Scope) -> list[Found]:
    """Sub-jobs of which something is open; units stand before groups."""
    return _found(connection, _select(scope).where(sub_job.c.settled_at.is_(None)))


def open_stages(connection: Connection, scope: Scope) -> Counter[StageState]:
    """How many of its stage runs are open, by state."""
    of_stage = () if scope.target.stage is None else (stage_run.c.stage == scope.target.stage,)
    query = (
        open_stage_runs(stage_run.c.state, func.count())
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(stage_run.c.state.not_in(TERMINAL), *_conditions(scope), *of_stage)
        .group_by(stage_run.c.state)
    )
    return Counter({StageState(state): number for state, number in connection.execute(query)})


def newest(connection: Connection, scope: Scope) -> list[int]:
    """The numbers of the sub-jobs that stand for their units and groups now; where units are named, of these alone."""
    query = _select(scope).where(~_is_outdated())
    if scope.units:
        query = query.where(sub_job.c.per == "unit")
    return [row.id for row in connection.execute(query)]


def take_back(connection: Connection, fact: SubJobFact, changes: Sequence[Transition], now: float) -> SubJobFact:
    """Lets a sub-job go on by these changes, and returns it as it is then; its deadlines count from now on."""
    execution.apply(connection, changes, now)
    connection.execute(update(sub_job).where(sub_job.c.id == fact.id).values(asked_at=now))
    row = connection.execute(_select(Scope()).where(sub_job.c.id == fact.id)).one()
    return execution.sub_job_fact(connection, row)


def check_data(connection: Connection, group: DataId, units: Collection[DataId]) -> None:
    """Refuses groups and units that the ledger has never seen.

    Raises:
        NoSuchRecord: there is none of that name.
    """
    if connection.scalar(select(data_group.c.id).where(data_group.c.data_id == str(group))) is None:
        raise NoSuchRecord(f"this ledger has no group {group}", fix="`p3s list groups` shows what there is.")
    for unit in units:
        if connection.scalar(select(arrival.c.id).where(arrival.c.data_id == str(unit), _IS_THERE).limit(1)) is None:
            raise NoSuchRecord(f"this ledger has no unit {unit}", fix="`p3s list units` shows what there is.")


def let_in(
    connection: Connection,
    *,
    group: DataId,
    units: Collection[DataId],
    which: Which,
    collection: Named,
    admission: Admission,
    of_group: Admission | None,
    now: float,
) -> LetIn:
    """Lets units in by hand, those that are missing or all; their deadlines count from now on.

    They join the pass that is open for further units, or open one. Each unit begins as `admission` says. Where the
    group has closed, its own stages come into being too, as `of_group` says. What stands by does so no more.
    """
    awake = _take_from_standby(connection, admission.pipeline, group, units, now)
    home = connection.execute(select(data_group).where(data_group.c.data_id == str(group))).one()
    job_id = connection.scalar(JOB, {"group": home.id, "pipeline_": admission.pipeline})
    wanted, left = [], Counter[SubJobState]()
    for row in _arrived(connection, home.id, units):
        state = _state_if_left(connection, job_id, row, which)
        if state is None:
            wanted.append(row)
        else:
            left[state] += 1
    left[SubJobState.ARRIVED] -= sum(fact.per == "unit" for fact in awake)
    left = +left
    if not wanted:
        return LetIn(facts=(), pass_number=None, from_standby=awake, left=left)
    if job_id is None:
        job_id = add(connection, job, group_id=home.id, pipeline=admission.pipeline)
    _end_pass_with(connection, job_id, wanted)
    pass_id = open_pass(connection, job_id, date.fromisoformat(home.day), collection, now)
    facts = [_let_in_unit(connection, pass_id, admission, row, group, now) for row in wanted]
    facts += _let_in_group(connection, pass_id, of_group, home, group, now)
    number = connection.scalar(select(production_pass.c.number).where(production_pass.c.id == pass_id))
    return LetIn(facts=tuple(facts), pass_number=number, from_standby=awake, left=left)


def follow(connection: Connection, sub_job_ids: Iterable[int]) -> tuple[list[int], int]:
    """In which sub-jobs these are processed now, and how many of them have not ended.

    What is cancelled as the configuration has changed goes on in a later pass; a group's own stages do as soon as the
    group has closed again.
    """
    later, its_pass, its_run = sub_job.alias(), production_pass.alias(), stage_run.alias()
    is_cancelled = exists().where(its_run.c.sub_job_id == sub_job.c.id, its_run.c.state == StageState.CANCELLED)
    newest = (
        select(func.max(later.c.id))
        .join(its_pass, its_pass.c.id == later.c.pass_id)
        .where(later.c.data_id == sub_job.c.data_id, later.c.per == sub_job.c.per)
        .where(its_pass.c.job_id == production_pass.c.job_id)
        .scalar_subquery()
    )
    query = (
        select(sub_job.c.id, case((is_cancelled, newest), else_=sub_job.c.id).label("newest"))
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .order_by(sub_job.c.id)
    )
    pages = (connection.execute(query.where(sub_job.c.id.in_(some))) for some in _pages(sub_job_ids))
    numbers = sorted({int(row.newest) for page in pages for row in page})
    comes_again = and_(sub_job.c.per == "group", is_cancelled, data_group.c.is_open)
    still_open = (
        select(func.count())
        .select_from(sub_job)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(or_(sub_job.c.settled_at.is_(None), comes_again))
    )
    return numbers, sum(connection.scalar(still_open.where(sub_job.c.id.in_(some))) or 0 for some in _pages(numbers))


def outcome(connection: Connection, sub_job_ids: Iterable[int]) -> tuple[UnitRow, ...]:
    """These sub-jobs as they are now."""
    found: list[UnitRow] = []
    for some in _pages(sub_job_ids):
        rows = connection.execute(select_units().where(sub_job.c.id.in_(some)).order_by(sub_job.c.id)).all()
        found += with_stages(connection, rows)
    return tuple(found)


# --- inside ---------------------------------------------------------------------------------------------------------

# SQLite takes 32,766 parameters in a statement.
_MOST_AT_ONCE = 10_000
_IS_THERE = arrival.c.verdict.in_([Verdict.TAKEN.value, Verdict.IGNORED.value])


def _pages(numbers: Iterable[int]) -> Iterator[list[int]]:
    left = iter(numbers)
    while some := list(islice(left, _MOST_AT_ONCE)):
        yield some


def _select(scope: Scope) -> Select[Any]:
    query = (
        execution.sub_job_rows()
        .add_columns(run_collection.c.configuration_id)
        .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
        .order_by(sub_job.c.per.desc(), sub_job.c.id)
    )
    return query.where(*_conditions(scope))


def _conditions(scope: Scope) -> list[ColumnElement[bool]]:
    target = scope.target
    found: list[ColumnElement[bool]] = []
    if scope.pass_id is not None:
        found.append(sub_job.c.pass_id == scope.pass_id)
    if scope.pipelines is not None:
        found.append(job.c.pipeline.in_(scope.pipelines))
    if target.pipeline is not None:
        found.append(job.c.pipeline == target.pipeline)
    if target.group is not None:
        found.append(data_group.c.data_id == str(target.group))
    if target.unit is not None:
        found += [sub_job.c.data_id == str(target.unit), sub_job.c.per == "unit"]
    if scope.units:
        found += [(sub_job.c.data_id.in_(scope.units)) | (sub_job.c.per == "group")]
    return found


def _with_stages(scope: Scope, states: Collection[StageState]) -> Select[Any]:
    of_it = (stage_run.c.sub_job_id == sub_job.c.id, stage_run.c.state.in_(states))
    return _select(scope).where(exists().where(*of_it))


def _is_outdated() -> ColumnElement[bool]:
    """Whether a later pass of the job has the same unit or group."""
    later, its_pass, own = sub_job.alias(), production_pass.alias(), production_pass
    return exists().where(
        later.c.data_id == sub_job.c.data_id,
        later.c.per == sub_job.c.per,
        later.c.id > sub_job.c.id,
        its_pass.c.id == later.c.pass_id,
        its_pass.c.job_id == own.c.job_id,
    )


def _found(connection: Connection, query: Select[Any]) -> list[Found]:
    return [
        Found(fact=execution.sub_job_fact(connection, row), configuration_id=row.configuration_id)
        for row in connection.execute(query).all()
    ]


def _arrived(connection: Connection, group_id: int, units: Collection[DataId]) -> list[Row[Any]]:
    """What arrived of a group, or as these units; of each one file."""
    query = select(arrival).where(_IS_THERE).order_by(arrival.c.id)
    if units:
        query = query.where(arrival.c.data_id.in_([str(unit) for unit in units]))
    else:
        of_group = (
            select(sub_job.c.arrival_id)
            .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
            .join(job, job.c.id == production_pass.c.job_id)
            .where(job.c.group_id == group_id)
        )
        query = query.where(arrival.c.id.in_(of_group))
    return list({row.data_id: row for row in connection.execute(query)}.values())


def _take_from_standby(
    connection: Connection, pipeline: str, group: DataId, units: Collection[DataId], now: float
) -> tuple[SubJobFact, ...]:
    scope = Scope(target=Target(pipeline=pipeline, group=group), units=frozenset(map(str, units)))
    query = _select(scope).where(stands_by())
    facts = [replace(one.fact, taken_at=now, is_asked=True) for one in _found(connection, query)]
    for some in _pages(fact.id for fact in facts):
        connection.execute(update(sub_job).where(sub_job.c.id.in_(some)).values(asked_at=now))
        # It told that overload has left it out, by which it waits no more.
        queued = (stage_run.c.sub_job_id.in_(some), stage_run.c.state == StageState.QUEUED)
        connection.execute(update(stage_run).where(*queued).values(reason=""))
    return tuple(facts)


def _state_if_left(connection: Connection, job_id: int | None, row: Row[Any], which: Which) -> SubJobState | None:
    """The state of a unit that is left as it is; None of one that is let in."""
    found = connection.execute(
        select(sub_job.c.id, sub_job.c.state)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .where(production_pass.c.job_id == job_id, sub_job.c.data_id == row.data_id, sub_job.c.per == "unit")
        .order_by(sub_job.c.id.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    if found.state in (SubJobState.EXPECTED, SubJobState.ARRIVED):
        return SubJobState.ARRIVED
    is_let_in = which is Which.ALL or found.state in MISSING or _is_damaged(connection, found.id)
    return None if is_let_in else SubJobState(found.state)


def _is_damaged(connection: Connection, sub_job_id: int) -> bool:
    """Whether something that it has published is not in the store any more."""
    query = (
        select(dataset.c.id)
        .join(attempt, attempt.c.id == dataset.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .where(stage_run.c.sub_job_id == sub_job_id, dataset.c.damage.is_not(None))
    )
    return connection.scalar(query.limit(1)) is not None


def _end_pass_with(connection: Connection, job_id: int, wanted: Sequence[Row[Any]]) -> None:
    """A unit stands once in a pass: the open one takes nothing more, if it has one of these."""
    row = connection.execute(NEWEST_PASS, {"job": job_id}).one_or_none()
    if row is None or not row.is_open:
        return
    names = [found.data_id for found in wanted]
    of_pass = (sub_job.c.pass_id == row.id, sub_job.c.per == "unit", sub_job.c.data_id.in_(names))
    if connection.scalar(select(sub_job.c.id).where(*of_pass).limit(1)) is not None:
        _close(connection, row.id)


def _close(connection: Connection, pass_id: int) -> None:
    connection.execute(update(production_pass).where(production_pass.c.id == pass_id).values(is_open=False))


def _let_in_unit(
    connection: Connection, pass_id: int, admission: Admission, row: Row[Any], group: DataId, now: float
) -> SubJobFact:
    return add_sub_job(
        connection,
        pass_id,
        admission,
        data_id=DataId.parse(row.data_id),
        group=group,
        arrival_id=row.id,
        taken_at=min(row.mtime_ns / 1e9, row.arrived_at),
        arrived_at=now,
        asked_at=now,
    )


def _let_in_group(
    connection: Connection, pass_id: int, admission: Admission | None, home: Row[Any], group: DataId, now: float
) -> list[SubJobFact]:
    """The group's own stages, where it has closed; where it is open, they come when it closes."""
    if home.is_open:
        return []
    _close(connection, pass_id)
    if admission is None:
        return []
    fact = add_sub_job(
        connection,
        pass_id,
        admission,
        data_id=group,
        group=group,
        arrival_id=None,
        taken_at=now,
        arrived_at=now,
        asked_at=now,
    )
    return [replace(fact, earlier_passes=execution.earlier_passes(connection, pass_id))]
