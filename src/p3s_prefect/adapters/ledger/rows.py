"""Adding rows. Statements are made once: building one costs as much as running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.sql.dml import ReturningInsert


def add(connection: Connection, table: Table, **values: Any) -> Any:
    """Adds one row and returns its primary key."""
    return connection.scalars(_insert_returning(table), values).one()


def add_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, if there are any."""
    if rows:
        connection.execute(_insert(table), rows)


@cache
def _insert(table: Table) -> Insert:
    return table.insert()


@cache
def _insert_returning(table: Table) -> ReturningInsert[tuple[Any, ...]]:
    (key,) = table.primary_key.columns
    return table.insert().returning(key)
