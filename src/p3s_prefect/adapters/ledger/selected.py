"""The sub-jobs that a selection of units asks for, and what became of them: the books of the plain road."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from p3s_prefect.adapters.ledger.execution import sub_job_fact, sub_job_rows
from p3s_prefect.adapters.ledger.schema import arrival, attempt, job, production_pass, stage_run, sub_job
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.records import Arrival, SubJobFact, Verdict
from p3s_prefect.core.states import StageState

# SQLite takes 32,766 parameters in a statement.
_MOST_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class SelectedStage:
    """A stage run as it is now."""

    stage_run_id: int
    data_id: str
    pipeline: str
    stage: str
    state: StageState
    reason: str
    seconds: float | None
    """How long its last attempt ran; None if none has ended."""
    attempt_id: int | None
    """Its last attempt."""
    collection: str


def newest_passes(connection: Connection, units: Iterable[DataId], pipelines: Collection[str]) -> set[int]:
    """The newest pass of each of these units in each pipeline (all, if none is named)."""
    query = sub_job_rows().where(sub_job.c.per == "unit").order_by(production_pass.c.number)
    if pipelines:
        query = query.where(job.c.pipeline.in_(pipelines))
    found: dict[tuple[str, str], int] = {}
    names = (str(unit) for unit in units)
    while some := list(islice(names, _MOST_AT_ONCE)):
        for row in connection.execute(query.where(sub_job.c.data_id.in_(some))):
            found[row.data_id, row.pipeline] = row.pass_id
    return set(found.values())


def sub_jobs(connection: Connection, pass_ids: Iterable[int], units: Collection[DataId] = ()) -> list[SubJobFact]:
    """Of these passes: the sub-jobs of `units`, whatever else is open, and those of the groups; units go first."""
    wanted = {str(unit) for unit in units}
    query = sub_job_rows().order_by(sub_job.c.per.desc(), sub_job.c.id)
    pages = [connection.execute(query.where(sub_job.c.pass_id == pass_id)).all() for pass_id in sorted(pass_ids)]
    rows = chain.from_iterable(pages)
    chosen = [row for row in rows if row.settled_at is None or row.per == "group" or row.data_id in wanted]
    return [sub_job_fact(connection, row) for row in chosen]


def one_sub_job(connection: Connection, sub_job_id: int) -> SubJobFact:
    """A sub-job by its id."""
    return sub_job_fact(connection, connection.execute(sub_job_rows().where(sub_job.c.id == sub_job_id)).one())


def verdict(connection: Connection, seen: Arrival) -> tuple[Verdict, str]:
    """What became of an arrival, and why."""
    same = [arrival.c.stream == seen.stream, arrival.c.key == seen.identity.key]
    same += [arrival.c.size == seen.identity.size, arrival.c.mtime_ns == seen.identity.mtime_ns]
    same += [arrival.c.etag == seen.identity.etag]
    row = connection.execute(select(arrival.c.verdict, arrival.c.reason).where(*same)).one()
    return Verdict(row.verdict), row.reason


def of_units(connection: Connection, units: Collection[DataId], pipelines: Collection[str]) -> list[SelectedStage]:
    """The stage runs of these units and of their groups, in the newest pass of each; in the order of their ids."""
    wanted = {str(unit) for unit in units}
    found: list[SelectedStage] = []
    for pass_id in sorted(newest_passes(connection, units, pipelines)):
        rows = connection.execute(_stages().where(production_pass.c.id == pass_id))
        found += [_stage(row) for row in rows if row.per == "group" or row.data_id in wanted]
    return found


def stages(connection: Connection, stage_run_ids: Iterable[int]) -> list[SelectedStage]:
    """These stage runs as they are now, in the order of their ids."""
    found: list[SelectedStage] = []
    ids = iter(stage_run_ids)
    while some := list(islice(ids, _MOST_AT_ONCE)):
        found += [_stage(row) for row in connection.execute(_stages().where(stage_run.c.id.in_(some)))]
    return found


def _stages() -> Select[Any]:
    earlier = attempt.alias()
    last = select(func.max(earlier.c.id)).where(earlier.c.stage_run_id == stage_run.c.id).scalar_subquery()
    return (
        select(
            stage_run.c.id.label("stage_run_id"),
            sub_job.c.data_id,
            sub_job.c.per,
            job.c.pipeline,
            stage_run.c.stage,
            stage_run.c.state,
            stage_run.c.reason,
            (attempt.c.ended_at - attempt.c.started_at).label("seconds"),
            attempt.c.id.label("attempt_id"),
            production_pass.c.run_collection.label("collection"),
        )
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .outerjoin(attempt, attempt.c.id == last)
        .order_by(stage_run.c.id)
    )


def _stage(row: Row[Any]) -> SelectedStage:
    return SelectedStage(
        stage_run_id=row.stage_run_id,
        data_id=row.data_id,
        pipeline=row.pipeline,
        stage=row.stage,
        state=StageState(row.state),
        reason=row.reason,
        seconds=row.seconds,
        attempt_id=row.attempt_id,
        collection=row.collection,
    )
