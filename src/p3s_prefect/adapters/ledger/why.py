"""What the ledger knows about one data id, gathered for an explanation (see `core.why`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select

from p3s_prefect.adapters.ledger.archiving import archives_of
from p3s_prefect.adapters.ledger.open_stages import open_stage_runs
from p3s_prefect.adapters.ledger.overrides import stops_since
from p3s_prefect.adapters.ledger.schema import arrival, data_group, job, production_pass, stage_run, sub_job
from p3s_prefect.adapters.ledger.views import as_arrival, select_units, with_coverage, with_stages
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.records import Verdict
from p3s_prefect.core.states import TERMINAL, StageState
from p3s_prefect.core.views import ArrivalRow, GroupRow, UnitRow
from p3s_prefect.core.why_facts import Awaited, Case, Queued, StationCase, SubJobCase

# How far back a name is looked for that was never taken: what is older, nobody asks about as if it were to come.
_RECENT_ARRIVALS = 10_000
_RECENT_UNITS = 2_000
_MOST_NEAR = 3
_BEGUN = (StageState.RUNNING, StageState.DONE, StageState.FAILED)


def case_of(
    connection: Connection,
    data_id: DataId,
    *,
    group: DataId,
    files: Collection[str],
    controls: Controls,
    station: StationCase,
    at: float,
    standing: frozenset[str] = frozenset(),
    pipeline: str | None = None,
    pass_number: int | None = None,
) -> Case:
    """All that is known about a unit or group; in its newest passes, or in the one that is asked for.

    `group` is the one that it is or belongs to, `files` are the names under which its file could have come,
    and `standing` the streams in whose directory it stands.

    Raises:
        NoSuchRecord: it is there, but not in that pipeline or pass.
    """
    rows = connection.execute(
        select_units().where(sub_job.c.data_id == str(data_id)).order_by(production_pass.c.number.desc())
    ).all()
    chosen = _chosen(rows, pipeline, pass_number)
    if rows and not chosen:
        raise _not_there(data_id, rows)
    sub_jobs = _sub_jobs(connection, rows, chosen)
    arrivals = _arrivals(connection, data_id, files)
    is_queued = any(stage.state == StageState.QUEUED for one in sub_jobs for stage in one.unit.stages)
    is_expired = any(stage.state == StageState.EXPIRED for one in sub_jobs for stage in one.unit.stages)
    return Case(
        at=at,
        data_id=data_id,
        group=_group(connection, group),
        sub_jobs=sub_jobs,
        arrivals=arrivals,
        standing=standing,
        archives=archives_of(connection, str(data_id)),
        near=() if rows or arrivals else _near(connection, data_id),
        queue=_queue(connection) if is_queued else (),
        running=_running(connection),
        controls=controls,
        stops=stops_since(connection, min(one.unit.arrived_at for one in sub_jobs)) if is_expired else (),
        station=station,
    )


# --- the unit or group ----------------------------------------------------------------------------------------------


def _chosen(rows: Sequence[Row[Any]], pipeline: str | None, pass_number: int | None) -> list[Row[Any]]:
    """Of each pipeline, and of a group that is a unit too of both, the newest pass or the one that is asked for."""
    newest: dict[tuple[str, str], Row[Any]] = {}
    for row in rows:
        if pipeline in (None, row.pipeline) and pass_number in (None, row.pass_number):
            newest.setdefault((row.pipeline, row.per), row)
    return sorted(newest.values(), key=lambda row: (row.pipeline, row.per == "group"))


def _not_there(data_id: DataId, rows: Sequence[Row[Any]]) -> NoSuchRecord:
    there = sorted({f"pipeline {row.pipeline}, pass {row.pass_number}" for row in rows})
    return NoSuchRecord(f"{data_id} is not in that pipeline and pass", fix=f"It is in: {'; '.join(there)}.")


def _sub_jobs(connection: Connection, rows: Sequence[Row[Any]], chosen: Sequence[Row[Any]]) -> tuple[SubJobCase, ...]:
    streams = _streams(connection, [row.arrival_id for row in chosen if row.arrival_id is not None])
    return tuple(
        SubJobCase(
            unit=unit,
            u=row.u,
            stream=streams.get(row.arrival_id),
            others=tuple(
                (other.pass_number, other.state)
                for other in rows
                if (other.pipeline, other.per) == (row.pipeline, row.per) and other.id != row.id
            ),
            awaited=_awaited(connection, row) if _is_waiting_group(unit) else (),
        )
        for row, unit in zip(chosen, with_stages(connection, chosen), strict=True)
    )


def _streams(connection: Connection, arrival_ids: Sequence[int]) -> dict[int | None, str]:
    rows = connection.execute(select(arrival.c.id, arrival.c.stream).where(arrival.c.id.in_(arrival_ids)))
    return {row.id: row.stream for row in rows}


def _is_waiting_group(unit: UnitRow) -> bool:
    return unit.per == "group" and any(stage.state == StageState.WAITING for stage in unit.stages)


def _awaited(connection: Connection, row: Row[Any]) -> tuple[Awaited, ...]:
    """What is open of the units of a group's sub-job: those of its pass, and of the earlier ones of its job."""
    own = production_pass.alias()
    passes = (
        select(production_pass.c.id)
        .join(own, own.c.job_id == production_pass.c.job_id)
        .where(own.c.id == row.pass_id, production_pass.c.number <= own.c.number)
    )
    found = connection.execute(
        open_stage_runs(sub_job.c.data_id, stage_run.c.stage, stage_run.c.state)
        .where(sub_job.c.per == "unit", sub_job.c.pass_id.in_(passes), stage_run.c.state.not_in(TERMINAL))
        .order_by(sub_job.c.id, stage_run.c.position)
    )
    return tuple(Awaited(**one._mapping) for one in found)


def _group(connection: Connection, group: DataId) -> GroupRow | None:
    rows = connection.execute(select(data_group).where(data_group.c.data_id == str(group))).all()
    return with_coverage(connection, rows)[0] if rows else None


# --- files ----------------------------------------------------------------------------------------------------------


def _arrivals(connection: Connection, data_id: DataId, files: Collection[str]) -> tuple[ArrivalRow, ...]:
    """The files of this unit; those that were refused have no data id, and are known by their names."""
    taken = connection.execute(select(arrival).where(arrival.c.data_id == str(data_id)).order_by(arrival.c.id)).all()
    return tuple(map(as_arrival, [*taken, *(_refused(connection, files) if files else ())]))


def _refused(connection: Connection, files: Collection[str]) -> Sequence[Row[Any]]:
    recent = select(func.coalesce(func.max(arrival.c.id), 0) - _RECENT_ARRIVALS).scalar_subquery()
    same = (or_(arrival.c.key == file, arrival.c.key.endswith(f"/{file}", autoescape=True)) for file in files)
    query = select(arrival).where(arrival.c.id > recent, arrival.c.verdict == Verdict.REFUSED, or_(*same))
    return connection.execute(query.order_by(arrival.c.id)).all()


def _near(connection: Connection, data_id: DataId) -> tuple[str, ...]:
    newest = select(sub_job.c.data_id).order_by(sub_job.c.id.desc()).limit(_RECENT_UNITS)
    known = list(dict.fromkeys(connection.scalars(newest)))
    return tuple(get_close_matches(str(data_id), known, n=_MOST_NEAR, cutoff=0.8))


# --- everything that is open ----------------------------------------------------------------------------------------


def _queue(connection: Connection) -> tuple[Queued, ...]:
    other = stage_run.alias()
    tried = or_(other.c.state.in_(_BEGUN), other.c.failures > 0, other.c.losses > 0)
    begun = select(other.c.id).where(other.c.sub_job_id == sub_job.c.id, tried).exists()
    rows = connection.execute(
        open_stage_runs(
            stage_run.c.id,
            stage_run.c.sub_job_id,
            stage_run.c.stage,
            job.c.pipeline,
            sub_job.c.per,
            sub_job.c.data_id,
            func.coalesce(sub_job.c.asked_at, sub_job.c.taken_at).label("taken_at"),
            data_group.c.data_id.label("group"),
            or_(sub_job.c.per == "group", begun).label("begun"),
            sub_job.c.u,
            stage_run.c.q,
            sub_job.c.asked_at.is_not(None).label("is_asked"),
        )
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(stage_run.c.state == StageState.QUEUED)
    )
    return tuple(Queued(**row._mapping) for row in rows)


def _running(connection: Connection) -> dict[str, int]:
    query = open_stage_runs(job.c.pipeline, func.count().label("number")).where(stage_run.c.state == StageState.RUNNING)
    found: defaultdict[str, int] = defaultdict(int)
    for row in connection.execute(query.group_by(job.c.pipeline)):
        found[row.pipeline] = row.number
    return dict(found)
