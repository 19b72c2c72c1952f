"""The journal: a numbered list of everything that happened. Rows are added in the transaction that they tell of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.rows import add_all


def write(connection: Connection, at: float, kind: str, subject: object, **detail: Any) -> None:
    """Adds one row. `subject` is what it is about: a data id, a group, a stream."""
    write_all(connection, [row(at, kind, subject, **detail)])


def write_all(connection: Connection, rows: list[Mapping[str, Any]]) -> None:
    """Adds several rows made by `row`, in order."""
    add_all(connection, schema.journal, rows)


def row(at: float, kind: str, subject: object, **detail: Any) -> Mapping[str, Any]:
    """One row, not yet written."""
    return {"at": at, "kind": kind, "subject": str(subject), "detail": detail}
