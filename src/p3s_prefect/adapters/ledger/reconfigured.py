"""What was open when the experiment file changed: nothing of a new configuration goes into an old collection (V23)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.arrivals import Collection, add_sub_job, open_pass
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    job,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.core.admission import Admission
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.records import Transition
from p3s_prefect.core.states import StageState

_CONFIGURATION = run_collection.c.configuration_id
_REASON = "the configuration changed before it ran"


def retire(
    connection: Connection,
    collections: Mapping[str, Collection],
    admission: Callable[[str, str, DataId], Admission],
    by_hand: Callable[[str], Admission],
    now: float,
) -> int:
    """Cancels what is open under another configuration than today's, and lets its units in again, in a new pass.

    A unit of a pipeline that is no longer there is only cancelled. `admission` tells how a unit begins, from pipeline,
    stream and data id; `by_hand` how one does that somebody has asked for, whose deadlines count from now on. Nothing
    may be with a pilot; what waits for the store is processed again too. Returns the number of sub-jobs that were
    cancelled.
    """

    def begins(row: Row[Any]) -> Admission:
        # What chance had left out before it was asked for stays left out, with its number.
        if row.asked_at is not None and row.u == 0:
            return by_hand(row.pipeline)
        return admission(row.pipeline, row.stream, DataId.parse(row.data_id))

    outdated = [row for row in connection.execute(_open()) if not _is_current(row, collections)]
    for row in outdated:
        _cancel(connection, row.id, now)
        if row.pipeline in collections:
            _let_in_again(connection, row, collections[row.pipeline], begins, now)
    move_on(connection, collections, now)
    return len(outdated)


def move_on(connection: Connection, collections: Mapping[str, Collection], now: float) -> frozenset[str]:
    """Sees to it that nothing more goes into a pass of another configuration than today's; what is open stays there.

    The passes of open groups end. The next unit opens another; where the group itself has stages, it is opened now, so
    that they are of today too. Returns the configurations of which something is open.
    """
    for row in connection.execute(_open_passes()).all():
        if not _is_current(row, collections):
            connection.execute(update(production_pass).where(production_pass.c.id == row.id).values(is_open=False))
            if row.pipeline in collections and _has_group_stages(collections[row.pipeline]):
                open_pass(connection, row.job_id, date.fromisoformat(row.day), collections[row.pipeline], now)
    return frozenset(connection.scalars(_open_configurations()))


def _has_group_stages(collection: Collection) -> bool:
    return any(stage["per"] == "group" for stage in collection.content["pipeline"]["stages"].values())


def configuration_of(connection: Connection, collection: str) -> str:
    """The number of the configuration that stands behind a run collection."""
    query = select(run_collection.c.configuration_id).where(run_collection.c.name == collection)
    return str(connection.scalars(query).one())


def _open_passes() -> Any:
    return (
        select(production_pass.c.id, job.c.id.label("job_id"), job.c.pipeline, data_group.c.day, _CONFIGURATION)
        .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(data_group.c.is_open, production_pass.c.is_open)
        .order_by(production_pass.c.id)
    )


def _open_configurations() -> Any:
    # The passes first, of which there are few: of the sub-jobs there may be a million.
    passes = select(sub_job.c.pass_id).where(sub_job.c.settled_at.is_(None)).distinct().subquery()
    return (
        select(_CONFIGURATION)
        .distinct()
        .join(production_pass, production_pass.c.run_collection == run_collection.c.name)
        .join(passes, passes.c.pass_id == production_pass.c.id)
    )


def _open() -> Any:
    return (
        select(
            sub_job,
            job.c.pipeline,
            production_pass.c.job_id,
            _CONFIGURATION,
            data_group.c.id.label("group_id"),
            data_group.c.data_id.label("group_name"),
            data_group.c.day,
            arrival.c.stream,
        )
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .outerjoin(arrival, arrival.c.id == sub_job.c.arrival_id)
        .where(sub_job.c.settled_at.is_(None))
        .order_by(sub_job.c.id)
    )


def _is_current(row: Row[Any], collections: Mapping[str, Collection]) -> bool:
    return row.pipeline in collections and collections[row.pipeline].configuration_id == row.configuration_id


def _cancel(connection: Connection, sub_job_id: int, now: float) -> None:
    states = connection.execute(select(stage_run.c.id, stage_run.c.state).where(stage_run.c.sub_job_id == sub_job_id))
    changes = [
        Transition(stage_run_id=found.id, old=StageState(found.state), new=StageState.CANCELLED, reason=_REASON)
        for found in states.all()
        if not StageState(found.state).is_terminal
    ]
    execution.apply(connection, changes, now)
    # Of what waits for the store only: nothing else runs.
    of_sub_job = select(stage_run.c.id).where(stage_run.c.sub_job_id == sub_job_id).scalar_subquery()
    running = update(attempt).where(attempt.c.state == "running", attempt.c.stage_run_id.in_(of_sub_job))
    connection.execute(running.values(state="stopped", reason=_REASON, ended_at=now))


def _let_in_again(
    connection: Connection,
    row: Row[Any],
    collection: Collection,
    begins: Callable[[Row[Any]], Admission],
    now: float,
) -> None:
    """Opens a pass for the unit, or for the group that closed; the group closes again by its rule, and then counts."""
    pass_id = open_pass(connection, row.job_id, date.fromisoformat(row.day), collection, now)
    connection.execute(
        update(data_group).where(data_group.c.id == row.group_id).values(is_open=True, last_arrival_at=now)
    )
    if row.per == "unit":
        add_sub_job(
            connection,
            pass_id,
            _no_more_than(begins(row), _let_in_with(connection, row.id)),
            data_id=DataId.parse(row.data_id),
            group=DataId.parse(row.group_name),
            arrival_id=row.arrival_id,
            taken_at=row.taken_at,
            arrived_at=now,
            asked_at=None if row.asked_at is None else now,
        )


def _let_in_with(connection: Connection, sub_job_id: int) -> float:
    """The probability with which overload, if there was any, had let a unit in."""
    return float(connection.scalar(select(func.max(stage_run.c.q)).where(stage_run.c.sub_job_id == sub_job_id)) or 1.0)


def _no_more_than(found: Admission, q: float) -> Admission:
    """It begins in the new pass with no larger a probability than it had in the old one: others were left out there."""
    return replace(found, stages=tuple(replace(stage, q=min(stage.q, q)) for stage in found.stages))
