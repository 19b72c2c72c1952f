"""The ledger in an SQLite file: one host, one writer at a time, readers that wait for nobody."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event

# How long a writer waits for another process's transaction; ours last a few milliseconds.
BUSY_TIMEOUT_S = 30
# Says no more than that the statement is wrong: it would be so the next time.
_WRONG_STATEMENT = sqlite3.SQLITE_ERROR


def make_engine(url: URL) -> Engine:
    """Connections to the file, which is made if it is not there."""
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def is_away(error: BaseException | None) -> bool:
    """Whether it says that the file cannot be read or written now: locked, full, read-only, gone."""
    return isinstance(error, sqlite3.OperationalError) and _code(error) != _WRONG_STATEMENT


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own transaction handling begins late and only before writes; ours begins explicitly (see _begin).
    connection.isolation_level = None
    _use_write_ahead_log(connection)
    # 0.5 MiB of pages for each connection instead of 2: they are in the operating system's cache as well, and half a
    # dozen connections of a station would otherwise grow with the ledger by 10 MiB.
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "cache_size=-512"):
        connection.execute(f"PRAGMA {pragma}")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # Only a new file is switched over; for that, SQLite's own busy timeout does not wait.
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.005)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail with SQLITE_BUSY when another wrote in between.
    reading = connection.get_execution_options().get("p3s_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
