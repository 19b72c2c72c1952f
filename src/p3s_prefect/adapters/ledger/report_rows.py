"""What a report's scope selects in the ledger: statements, and the passes that they meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal, null, or_, select

from p3s_prefect.adapters.ledger.functions import PlaceIn
from p3s_prefect.adapters.ledger.sampled import IS_SAMPLED
from p3s_prefect.adapters.ledger.schema import (
    attempt,
    configuration,
    data_group,
    job,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.reports import Scope, utc
from p3s_prefect.core.states import SubJobState

Rows = Select[*tuple[Any, ...]]
# Expressions: to group by a plain column, SQLite walks through all of the history in that column's order.
_PASS = (sub_job.c.pass_id + 0).label("pass_id")
_DATA_ID = sub_job.c.data_id + ""
# Few enough parameters for every database, enough rows to make the statement's own cost vanish.
PAGE = 1000
# Nothing settles before it arrives, unless the station's clock was set back in between.
_CLOCK_MARGIN_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass, as far as reports need it."""

    pipeline: str
    number: int
    deadlines_s: Mapping[tuple[str, str | None], float]
    """Deadline by (``unit`` or ``group``, stage) as its configuration has it; the longest of all where stage is
    None."""


def sub_job_counts(scope: Scope) -> Rows:
    """Number of sub-jobs by pass, per, part and state."""
    keys = (_PASS, sub_job.c.per, sub_job.c.state, *_parts(scope.by))
    query = select(*keys, *_no_part(scope.by), null().label("stage"), literal(-1).label("position"))
    return _within(query.add_columns(func.count().label("seen")), scope).group_by(*keys)


def stage_counts(scope: Scope) -> Rows:
    """Number of stage runs by pass, per, part, stage and state; of those that stand for others, the number and the
    sums of q, 1/q and 1/q**2."""
    q = case((IS_SAMPLED, stage_run.c.q))
    keys = (_PASS, sub_job.c.per, stage_run.c.stage, stage_run.c.state, *_parts(scope.by))
    query = select(
        *keys,
        *_no_part(scope.by),
        func.max(stage_run.c.position).label("position"),
        func.count().label("seen"),
        func.count(q).label("sampled"),
        func.sum(q).label("q"),
        func.sum(1 / q).label("weight"),
        func.sum(1 / (q * q)).label("square"),
    )
    return _within(query, scope).join(stage_run, stage_run.c.sub_job_id == sub_job.c.id).group_by(*keys)


def repeated(scope: Scope, pipeline: str) -> Rows:
    """Of the units in several passes: how many they are, how often they come again, and how often done again."""
    done = func.sum(case((sub_job.c.state == SubJobState.DONE, 1), else_=0))
    each = select(func.count().label("times"), done.label("done"))
    several = (
        _within(each, scope)
        .where(sub_job.c.per == "unit", job.c.pipeline == pipeline)
        .group_by(_DATA_ID)
        .having(func.count() > 1)
        .subquery()
    )
    again = case((several.c.done > 1, several.c.done - 1), else_=0)
    sums = (func.coalesce(func.sum(several.c.times - 1), 0), func.coalesce(func.sum(again), 0))
    return select(func.count(), *sums).select_from(several)


def sub_jobs(scope: Scope) -> Rows:
    """The sub-jobs themselves."""
    query = select(
        sub_job.c.id,
        sub_job.c.pass_id,
        sub_job.c.per,
        *_parts(scope.by),
        *_no_part(scope.by),
        sub_job.c.state,
        sub_job.c.taken_at,
        sub_job.c.arrived_at,
        sub_job.c.asked_at,
    )
    return _within(query, scope)


def published(sub_job_ids: Collection[int]) -> Rows:
    """The attempts that published a stage of these sub-jobs."""
    return (
        select(
            stage_run.c.sub_job_id,
            stage_run.c.stage,
            stage_run.c.queued_at,
            attempt.c.started_at,
            attempt.c.ended_at,
            attempt.c.published_at,
            attempt.c.steps,
        )
        .join(attempt, attempt.c.stage_run_id == stage_run.c.id)
        .where(stage_run.c.sub_job_id.in_(sub_job_ids), attempt.c.state == "done")
    )


def passes(connection: Connection, ids: Collection[int]) -> dict[int, Pass]:
    """These passes by their ids, with the deadlines of the configurations that they ran under."""
    found: dict[int, Pass] = {}
    known: dict[str, Mapping[tuple[str, str | None], float]] = {}
    in_order = sorted(ids)
    query = (
        select(production_pass.c.id, production_pass.c.number, job.c.pipeline, run_collection.c.configuration_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
    )
    for start in range(0, len(in_order), PAGE):
        rows = connection.execute(query.where(production_pass.c.id.in_(in_order[start : start + PAGE])))
        for row in rows.all():
            if row.configuration_id not in known:
                known[row.configuration_id] = _deadlines(connection, row.configuration_id)
            deadlines_s = known[row.configuration_id]
            found[row.id] = Pass(pipeline=row.pipeline, number=row.number, deadlines_s=deadlines_s)
    return found


def nothing(connection: Connection, scope: Scope) -> NoSuchRecord:
    """Nothing is in the scope: which of its conditions is to blame, and what there is instead."""
    if scope.group is not None and not _has(connection, data_group.c.data_id == scope.group):
        newest = connection.scalars(select(data_group.c.data_id).order_by(data_group.c.id.desc()).limit(3)).all()
        return NoSuchRecord(f"no group {scope.group}", fix=_instead("The newest are: ", newest))
    if scope.day is not None and not _has(connection, data_group.c.day == scope.day):
        days = select(data_group.c.day).distinct().order_by(data_group.c.day.desc()).limit(5)
        return NoSuchRecord(
            f"no group opened on the processing day {scope.day}",
            fix=_instead("The latest are: ", connection.scalars(days).all()),
        )
    first, last = connection.execute(select(func.min(sub_job.c.arrived_at), func.max(sub_job.c.arrived_at))).one()
    there = [] if first is None else [f"{utc(first)} to {utc(last)}; give --since and --until"]
    return NoSuchRecord(f"nothing was processed of {scope}", fix=_instead("What there is arrived from ", there))


def _instead(words: str, there: Collection[str]) -> str:
    return f"{words}{', '.join(there)}." if there else "Nothing was processed here yet: `p3s up` starts the station."


def _has(connection: Connection, condition: ColumnElement[bool]) -> bool:
    return connection.scalar(select(data_group.c.id).where(condition).limit(1)) is not None


def _deadlines(connection: Connection, configuration_id: str) -> dict[tuple[str, str | None], float]:
    content = connection.execute(
        select(configuration.c.content).where(configuration.c.id == configuration_id)
    ).scalar_one()
    deadlines: dict[tuple[str, str | None], float] = {}
    for name, stage in content.get("pipeline", {}).get("stages", {}).items():
        if stage.get("deadline_s") is not None:
            per, deadline_s = stage["per"], float(stage["deadline_s"])
            deadlines[per, name] = deadline_s
            deadlines[per, None] = max(deadline_s, deadlines.get((per, None), 0.0))
    return deadlines


def _no_part(dimension: str | None) -> tuple[ColumnElement[str], ...]:
    """What stands for the part where nothing is split: constants are not grouped by."""
    return (literal("").label("part"),) if dimension is None else ()


def _parts(dimension: str | None) -> tuple[ColumnElement[str], ...]:
    """Value of a dimension in a sub-job's data id, empty where it has none; nothing if no dimension is given."""
    if dimension is None:
        return ()
    padded = " " + sub_job.c.data_id + " "
    start = PlaceIn(padded, f" {dimension}=")
    rest = func.substr(padded, start + len(dimension) + 2)
    return (case((start == 0, ""), else_=func.substr(rest, 1, PlaceIn(rest, " ") - 1)).label("part"),)


def _within(query: Rows, scope: Scope) -> Rows:
    """The sub-jobs of a scope, joined with their passes and jobs."""
    query = (
        query.select_from(sub_job)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
    )
    if scope.group is not None or scope.day is not None:
        query = query.join(data_group, data_group.c.id == job.c.group_id)
    if scope.group is not None:
        query = query.where(data_group.c.data_id == scope.group)
    if scope.day is not None:
        query = query.where(data_group.c.day == scope.day)
    if scope.pipeline is not None:
        query = query.where(job.c.pipeline == scope.pipeline)
    if scope.until is not None:
        query = query.where(sub_job.c.arrived_at < scope.until)
    if scope.since is not None:
        # There is no index on the arrival, but one on the settling, which leaves out what lies far back.
        recent = or_(sub_job.c.settled_at.is_(None), sub_job.c.settled_at >= scope.since - _CLOCK_MARGIN_S)
        query = query.where(sub_job.c.arrived_at >= scope.since, recent)
    return query
