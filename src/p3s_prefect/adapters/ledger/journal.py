"""The journal: a numbered list of everything that happened. Rows are added in the transaction that they tell of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from p3s_prefect.adapters.ledger import schema


def write(connection: Connection, at: float, kind: str, subject: object, **detail: Any) -> None:
    """Adds one row. `subject` is what it is about: a data id, a group, a stream."""
    connection.execute(_ADD, {"at_": at, "kind_": kind, "subject_": str(subject), "detail_": detail})


# A sequence of the database would leave a gap for what was undone. Writers come one at a time, so that nobody else
# takes this number, and a reader that has seen it has seen all smaller ones.
_NEXT = select(func.coalesce(func.max(schema.journal.c.number), 0) + 1).scalar_subquery()
_ADD = schema.journal.insert().values(
    number=_NEXT,
    at=bindparam("at_"),
    kind=bindparam("kind_"),
    subject=bindparam("subject_"),
    detail=bindparam("detail_"),
)
