"""What the projector reads: which passes the journal's new lines touch, and what is to be recorded of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, case, func, or_, select

from p3s_prefect.adapters.ledger.pass_facts import (
    MOST_ROWS,
    PassFacts,
    Picture,
    StageDefinition,
    StageTotal,
    Touched,
)
from p3s_prefect.adapters.ledger.schema import (
    attempt,
    configuration,
    data_group,
    job,
    journal,
    product,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.adapters.ledger.views import select_units, with_stages
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import UnitRow

# A sub-job is written in the transaction of its line in the journal, with the same time.
_SAME_TIME_S = 0.001


def touched(connection: Connection, after: int, limit: int) -> Touched | None:
    """What the next lines of the journal are about, at most `limit` of them; None if there are none."""
    rows = connection.execute(
        select(journal).where(journal.c.number > after).order_by(journal.c.number).limit(limit)
    ).all()
    if not rows:
        return None
    runs = {row.detail["stage_run"]: row.at for row in rows if "stage_run" in row.detail}
    # What came into being has no stage run in its line; what a changed configuration cancels goes on elsewhere.
    born = [row for row in rows if row.kind in ("arrival.taken", "group.closed", "stage.cancelled")]
    passes: dict[int, set[int]] = defaultdict(set)
    for found in [*_of_stage_runs(connection, list(runs)), *_of_data_ids(connection, born)]:
        passes[found.pass_id].add(found.id)
    for pass_id in _newest_passes(connection, [row.subject for row in born if row.kind == "group.closed"]):
        passes[pass_id] |= set()
    return Touched(
        number=rows[-1].number,
        passes={pass_id: frozenset(passes[pass_id]) for pass_id in sorted(passes)},
        changed_at=runs,
    )


def read_pass(
    connection: Connection,
    pass_id: int,
    *,
    most_units: int,
    touched: frozenset[int] = frozenset(),
    changed_at: Mapping[int, float] | None = None,
) -> PassFacts:
    """A pass; of one with more than `most_units` units only those sub-jobs that tell most."""
    row = connection.execute(
        select(
            production_pass,
            job.c.pipeline,
            data_group.c.data_id.label("group"),
            data_group.c.day,
            data_group.c.closed_by,
            configuration.c.content,
        )
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
        .join(configuration, configuration.c.id == run_collection.c.configuration_id)
        .where(production_pass.c.id == pass_id)
    ).one()
    of_pass = (sub_job.c.pass_id == pass_id, sub_job.c.per == "unit")
    count = connection.scalar(select(func.count()).select_from(sub_job).where(*of_pass)) or 0
    stages = _definitions(row.content)
    return PassFacts(
        id=row.id,
        number=row.number,
        pipeline=row.pipeline,
        group=row.group,
        day=row.day,
        collection=row.run_collection,
        is_open=row.is_open,
        opened_at=row.opened_at,
        closed_by=row.closed_by,
        stages=stages,
        unit_count=count,
        totals=_totals(connection, pass_id),
        units=_units(
            connection, pass_id, most=None if count <= most_units else MOST_ROWS // max(1, len(stages)), told=touched
        ),
        touched=touched,
        pictures=_pictures(connection, pass_id, touched),
        changed_at=changed_at or {},
    )


def with_pictures(connection: Connection, facts: PassFacts) -> PassFacts:
    """The same pass, with the latest pictures of the units that it holds."""
    return replace(facts, pictures=_pictures(connection, facts.id, frozenset(unit.id for unit in facts.units)))


# --- inside ---------------------------------------------------------------------------------------------------------


def _of_stage_runs(connection: Connection, ids: Sequence[int]) -> Iterable[Any]:
    query = select(sub_job.c.id, sub_job.c.pass_id).join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
    return connection.execute(query.where(stage_run.c.id.in_(ids))) if ids else ()


def _of_data_ids(connection: Connection, born: Sequence[Any]) -> Iterable[Any]:
    if not born:
        return ()
    since = min(row.at for row in born) - _SAME_TIME_S
    query = select(sub_job.c.id, sub_job.c.pass_id).where(sub_job.c.arrived_at >= since)
    return connection.execute(query.where(sub_job.c.data_id.in_({row.subject for row in born})))


def _newest_passes(connection: Connection, groups: Sequence[str]) -> Iterable[int]:
    if not groups:
        return ()
    return connection.scalars(
        select(func.max(production_pass.c.id))
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(data_group.c.data_id.in_(groups))
        .group_by(job.c.id)
    )


def _definitions(content: Mapping[str, Any]) -> tuple[StageDefinition, ...]:
    stages = content.get("pipeline", {}).get("stages", {})
    return tuple(
        StageDefinition(name=name, per=stage.get("per", "unit"), after=tuple(stage.get("after", ())))
        for name, stage in stages.items()
    )


def _totals(connection: Connection, pass_id: int) -> tuple[StageTotal, ...]:
    of_pass = sub_job.c.pass_id == pass_id
    runs = (
        select(
            stage_run.c.stage,
            stage_run.c.state,
            func.count().label("units"),
            func.min(stage_run.c.queued_at).label("queued_at"),
            func.max(stage_run.c.queued_at).label("queued_last_at"),
            func.max(stage_run.c.settled_at).label("settled_at"),
            func.min(stage_run.c.position).label("position"),
        )
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(of_pass)
        .group_by(stage_run.c.stage, stage_run.c.state)
    )
    states: dict[str, list[Any]] = defaultdict(list)
    for row in sorted(connection.execute(runs), key=lambda row: (row.position, row.stage)):
        states[row.stage].append(row)
    tries = {row.stage: row for row in connection.execute(_tries().where(of_pass))}
    return tuple(_total(stage, rows, tries.get(stage)) for stage, rows in states.items())


def _tries() -> Select[Any]:
    took = attempt.c.ended_at - func.coalesce(attempt.c.started_at, attempt.c.opened_at)
    return (
        select(stage_run.c.stage, func.min(attempt.c.opened_at).label("opened_at"), func.sum(took).label("busy_s"))
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .group_by(stage_run.c.stage)
    )


def _total(stage: str, rows: Sequence[Any], tries: Any) -> StageTotal:
    return StageTotal(
        stage=stage,
        counts={row.state: row.units for row in rows},
        queued_at=min((row.queued_at for row in rows if row.queued_at is not None), default=None),
        queued_last_at=max(
            (
                row.queued_last_at
                for row in rows
                if row.queued_last_at is not None and not StageState(row.state).is_terminal
            ),
            default=None,
        ),
        opened_at=None if tries is None else tries.opened_at,
        settled_at=max((row.settled_at for row in rows if row.settled_at is not None), default=None),
        busy_s=0.0 if tries is None else tries.busy_s or 0.0,
    )


def _units(connection: Connection, pass_id: int, *, most: int | None, told: frozenset[int]) -> tuple[UnitRow, ...]:
    query = select_units().where(sub_job.c.pass_id == pass_id)
    if most is not None:
        # Groups, then what failed just now, then what went wrong before, then what is open, then the newest.
        went_wrong = or_(
            stage_run.c.failures > 0,
            stage_run.c.losses > 0,
            stage_run.c.state.in_([StageState.FAILED, StageState.EXPIRED]),
        )
        failing = select(stage_run.c.sub_job_id).where(stage_run.c.sub_job_id.in_(told), went_wrong)
        bad = sub_job.c.state.in_([StageState.FAILED, StageState.EXPIRED, StageState.BLOCKED])
        rank = case(
            (sub_job.c.per == "group", 0),
            (sub_job.c.id.in_(failing), 1),
            (bad, 2),
            (sub_job.c.settled_at.is_(None), 3),
            else_=4,
        )
        query = query.order_by(rank, sub_job.c.id.desc()).limit(max(1, most))
    rows = connection.execute(query).all()
    return with_stages(connection, sorted(rows, key=lambda row: (row.per == "group", row.id)))


def _pictures(connection: Connection, pass_id: int, touched: frozenset[int]) -> tuple[Picture, ...]:
    if not touched:
        return ()
    rows = connection.execute(
        select(product, sub_job.c.id.label("sub_job_id"), sub_job.c.data_id, sub_job.c.per, stage_run.c.stage)
        .join(attempt, attempt.c.id == product.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(sub_job.c.pass_id == pass_id, sub_job.c.id.in_(touched), func.lower(product.c.file).like("%.png"))
        .order_by(attempt.c.published_at, product.c.id)
    )
    latest = {
        (row.stage, row.category, row.title): Picture(
            sub_job_id=row.sub_job_id,
            stage=row.stage,
            per=row.per,
            data_id=row.data_id,
            category=row.category,
            title=row.title,
            shows=row.shows,
            key=row.key,
            size=row.size,
        )
        for row in rows
    }
    return tuple(latest.values())
