"""Which objects of an attempt the ledger still wants."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger.schema import attempt, production_pass, run_collection, stage_run, sub_job


def collections(connection: Connection, since: float | None) -> list[str]:
    """The names of all run collections, or of those in which an attempt was opened after `since`.

    A later pass's collection lies below the first one's, and is not named beside it.
    """
    query = select(run_collection.c.name).order_by(run_collection.c.name)
    if since is not None:
        query = (
            select(production_pass.c.run_collection)
            .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
            .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
            .join(attempt, attempt.c.stage_run_id == stage_run.c.id)
            .where(attempt.c.opened_at > since)
            .distinct()
            .order_by(production_pass.c.run_collection)
        )
    found: list[str] = []
    for name in connection.scalars(query):
        if not found or not name.startswith(f"{found[-1]}/"):
            found.append(name)
    return found


def keeper(connection: Connection, prefix: str) -> Callable[[str], bool] | None:
    """A function that says whether an object below an attempt's prefix is to be kept; None for an unknown prefix."""
    row = connection.execute(
        select(attempt.c.state, attempt.c.execution, attempt.c.log_key).where(attempt.c.prefix == prefix)
    ).one_or_none()
    if row is None:
        return None

    def keeps(key: str) -> bool:
        published = row.state == "done" and key.startswith(f"{prefix}/{row.execution}/")
        return published or row.state == "running" or key == row.log_key

    return keeps
