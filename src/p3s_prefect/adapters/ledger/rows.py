"""Adding rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table


def add(connection: Connection, table: Table, **values: Any) -> Any:
    """Adds one row and returns its primary key."""
    (key,) = table.primary_key.columns
    return connection.scalars(table.insert().values(values).returning(key)).one()


def add_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, if there are any."""
    if rows:
        connection.execute(table.insert(), rows)
