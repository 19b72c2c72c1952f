"""Which objects of an attempt the ledger still wants."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger.schema import attempt


def keeper(connection: Connection, prefix: str) -> Callable[[str], bool] | None:
    """A function that says whether an object below an attempt's prefix is to be kept; None for an unknown prefix."""
    row = connection.execute(
        select(attempt.c.state, attempt.c.execution, attempt.c.log_key).where(attempt.c.prefix == prefix)
    ).one_or_none()
    if row is None:
        return None

    def keeps(key: str) -> bool:
        if row.state == "running" or key == row.log_key:
            return True
        published = row.state == "done" and key.startswith(f"{prefix}/{row.execution}/")
        return published or (row.state == "done" and key == f"{prefix}/commit.json")

    return keeps
