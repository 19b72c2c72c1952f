"""Commit records, made from the ledger; `core.commit_record` says what stands in them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, RowMapping, Table, bindparam, select

from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    configuration,
    data_group,
    dataset,
    job,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.core.commit_record import (
    CommitRecord,
    RecordedArrival,
    RecordedAttempt,
    RecordedCollection,
    RecordedGroup,
    RecordedJob,
    RecordedPass,
    RecordedStage,
    RecordedSubJob,
)


def commit_record(connection: Connection, attempt_id: int) -> CommitRecord:
    """What the store needs to know so that the ledger can be rebuilt from it."""
    row = connection.execute(_RECORD, {"attempt_id_": attempt_id}).one()._mapping
    stages = connection.execute(_STAGES, {"sub_job_id_": row["sub_job__id"]})
    made = connection.execute(_DATASETS, {"attempt_id_": attempt_id})
    parts = {part: _part(row, part, model) for part, (_, model) in _PARTS.items()}
    if row["arrival__id"] is None:
        parts["arrival"] = None
    return CommitRecord.model_validate(
        {
            **parts,
            "stage_run_id": row["stage_run_id"],
            "stages": [stage._mapping for stage in stages],
            "datasets": {one.dataset_type: one.id for one in made},
        }
    )


def configuration_content(connection: Connection, configuration_id: str) -> dict[str, Any]:
    """What stands behind the number of a configuration."""
    query = select(configuration.c.content).where(configuration.c.id == configuration_id)
    return dict(connection.scalars(query).one())


_PARTS: dict[str, tuple[Table, type[BaseModel]]] = {
    "attempt": (attempt, RecordedAttempt),
    "sub_job": (sub_job, RecordedSubJob),
    "production_pass": (production_pass, RecordedPass),
    "job": (job, RecordedJob),
    "group": (data_group, RecordedGroup),
    "collection": (run_collection, RecordedCollection),
    "arrival": (arrival, RecordedArrival),
}


def _part(row: RowMapping, part: str, model: type[BaseModel]) -> dict[str, Any] | None:
    return {name: row[f"{part}__{name}"] for name in model.model_fields}


# Made once, as every publication asks them.
_RECORD = (
    select(
        attempt.c.stage_run_id,
        *(
            table.c[name].label(f"{part}__{name}")
            for part, (table, model) in _PARTS.items()
            for name in model.model_fields
        ),
    )
    .select_from(attempt)
    .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
    .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
    .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
    .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
    .join(job, job.c.id == production_pass.c.job_id)
    .join(data_group, data_group.c.id == job.c.group_id)
    .outerjoin(arrival, arrival.c.id == sub_job.c.arrival_id)
    .where(attempt.c.id == bindparam("attempt_id_"))
)
_STAGES = (
    select(*(stage_run.c[name] for name in RecordedStage.model_fields))
    .where(stage_run.c.sub_job_id == bindparam("sub_job_id_"))
    .order_by(stage_run.c.position)
)
_DATASETS = (
    select(dataset.c.dataset_type, dataset.c.id)
    .where(dataset.c.attempt_id == bindparam("attempt_id_"))
    .order_by(dataset.c.id)
)
