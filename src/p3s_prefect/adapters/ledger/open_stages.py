"""What is open, for those who count it and those who explain it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from p3s_prefect.adapters.ledger.schema import job, production_pass, stage_run, sub_job


def open_stage_runs(*columns: Any) -> Select[Any]:
    """Stage runs of open sub-jobs, which an index finds however long the history is."""
    return (
        select(*columns)
        .select_from(sub_job)
        .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .where(sub_job.c.settled_at.is_(None))
    )
