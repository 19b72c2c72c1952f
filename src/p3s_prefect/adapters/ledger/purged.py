"""Arrived files that may be removed, as far as the ledger knows; and noting that they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, exists, func, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    dataset,
    job,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.core.records import Verdict

_PAGE = 500


def taken_files(connection: Connection, stream: str, after: int = 0) -> Sequence[Row[Any]]:
    """The next files of a stream that were taken and not removed, in the order in which they came."""
    query = select(arrival).where(
        arrival.c.stream == stream,
        arrival.c.verdict == Verdict.TAKEN,
        arrival.c.purged_at.is_(None),
        arrival.c.id > after,
    )
    return connection.execute(query.order_by(arrival.c.id).limit(_PAGE)).all()


def taken_file(connection: Connection, arrival_id: int) -> Row[Any] | None:
    """A file that was taken and not removed, as it stands now."""
    query = select(arrival).where(arrival.c.id == arrival_id, arrival.c.verdict == Verdict.TAKEN)
    return connection.execute(query.where(arrival.c.purged_at.is_(None))).one_or_none()


def made_from(connection: Connection, arrival_id: int) -> tuple[tuple[str, ...], bool]:
    """States of the newest sub-job in each pipeline that took a file; and whether its group is open in one of them."""
    rows = connection.execute(
        select(job.c.id.label("job_id"), sub_job.c.state, data_group.c.is_open)
        .join(production_pass, production_pass.c.job_id == job.c.id)
        .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(sub_job.c.arrival_id == arrival_id)
        .order_by(production_pass.c.number)
    ).all()
    newest = {row.job_id: row.state for row in rows}
    return tuple(newest.values()), any(row.is_open for row in rows)


def has_damage(connection: Connection, arrival_id: int) -> bool:
    """Whether a result that was made from a file, by itself, is damaged and was not made anew."""
    newer = dataset.alias()
    same = (newer.c.dataset_type == dataset.c.dataset_type, newer.c.data_id == dataset.c.data_id)
    made_anew = exists().where(*same, newer.c.id > dataset.c.id, newer.c.damage.is_(None))
    query = (
        select(dataset.c.id)
        .join(attempt, attempt.c.id == dataset.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(sub_job.c.arrival_id == arrival_id, dataset.c.damage.is_not(None), ~made_anew)
    )
    return connection.scalar(query.limit(1)) is not None


def objects_with(connection: Connection, sha256: str, size: int) -> list[str]:
    """Keys of datasets with these bytes."""
    same = (dataset.c.sha256 == sha256, dataset.c.size == size, dataset.c.damage.is_(None))
    return list(connection.scalars(select(dataset.c.key).where(*same)))


def note_purged(connection: Connection, row: Any, *, by: str, now: float) -> None:
    """A file was removed. It stays known; what reads it from now on reads its copy, where that is a file."""
    values: dict[str, Any] = {"purged_at": now}
    if row.is_file_copy:
        values["path"] = row.copy
    connection.execute(update(arrival).where(arrival.c.id == row.arrival_id).values(values))
    journal.write(connection, now, "arrival.purged", row.data_id, path=row.path, copy=row.copy, by=by)


def count_purged(connection: Connection) -> int:
    """How many files were removed so far."""
    query = select(func.count()).select_from(arrival).where(arrival.c.purged_at.is_not(None))
    return connection.scalar(query) or 0
