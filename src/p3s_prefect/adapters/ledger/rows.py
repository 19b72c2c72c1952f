"""Adding rows. Statements are made once: building one costs as much as running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert


def add(connection: Connection, table: Table, **values: Any) -> Any:
    """Adds one row and returns its primary key."""
    return connection.scalars(_insert_returning(table), values).one()


def add_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, if there are any."""
    if rows:
        connection.execute(_insert(table), rows)


def add_missing(connection: Connection, table: Table, **values: Any) -> None:
    """Adds one row, unless there is one of the same primary key."""
    connection.execute(_insert_missing(table, connection.dialect.name), values)


@cache
def _insert_missing(table: Table, dialect: str) -> Insert:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key.columns))


@cache
def _insert(table: Table) -> Insert:
    return table.insert()


@cache
def _insert_returning(table: Table) -> ReturningInsert[tuple[Any, ...]]:
    (key,) = table.primary_key.columns
    return table.insert().returning(key)
