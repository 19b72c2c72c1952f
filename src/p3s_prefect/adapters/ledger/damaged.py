"""What is marked as damaged: datasets and products whose objects are not as they were published."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, exists, func, select

from p3s_prefect.adapters.ledger.schema import (
    attempt,
    data_group,
    dataset,
    job,
    product,
    production_pass,
    stage_run,
    sub_job,
)


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """One of them."""

    kind: str
    """``dataset`` or ``product``."""
    name: str
    data_id: str
    per: str
    pipeline: str
    pass_number: int
    group: str
    key: str
    damage: str

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def damaged(connection: Connection) -> tuple[Damaged, ...]:
    """All that is marked, in the order of publication."""
    found = []
    for kind, table, name in (("dataset", dataset, dataset.c.dataset_type), ("product", product, product.c.title)):
        query = (
            select(
                name.label("name"),
                sub_job.c.data_id,
                sub_job.c.per,
                job.c.pipeline,
                production_pass.c.number.label("pass_number"),
                data_group.c.data_id.label("group"),
                table.c.key,
                table.c.damage,
            )
            .select_from(table)
            .join(attempt, attempt.c.id == table.c.attempt_id)
            .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
            .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
            .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
            .join(job, job.c.id == production_pass.c.job_id)
            .join(data_group, data_group.c.id == job.c.group_id)
            .where(table.c.damage.is_not(None))
            .order_by(table.c.id)
        )
        found += [Damaged(kind=kind, **row._mapping) for row in connection.execute(query)]
    return tuple(found)


def count_damaged(connection: Connection) -> int:
    """How many datasets are marked, and were not made anew in a later pass."""
    newer = dataset.alias()
    same = (newer.c.dataset_type == dataset.c.dataset_type, newer.c.data_id == dataset.c.data_id)
    made_anew = exists().where(*same, newer.c.id > dataset.c.id, newer.c.damage.is_(None))
    query = select(func.count()).select_from(dataset).where(dataset.c.damage.is_not(None), ~made_anew)
    return connection.scalar(query) or 0
