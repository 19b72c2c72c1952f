"""Opening the ledger's database: settings, migrations, transactions that check the lease."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event, select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.errors import LeaseLost, LedgerError, LedgerTooNew

# How long a writer waits for another process's transaction; ours last a few milliseconds.
BUSY_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write: whoever holds another token of the namespace is refused."""

    namespace: str
    holder: str
    token: int


class Ledger:
    """The database of record.

    Every write goes through `transaction`, which is one database transaction and, with a lease, checks its token
    inside it. What is written there is a matter of the functions in this package.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Brings the tables up to this version of the package; a new database gets all of them.

        Raises:
            LedgerTooNew: a newer version of this package has written it.
            LedgerError: the database cannot be opened.
        """
        config = _alembic_config()
        try:
            # One exclusive transaction, so that two processes that start together do not both migrate.
            with self._engine.begin() as connection:
                self._refuse_newer(connection, config)
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
        except sqlalchemy.exc.OperationalError as error:
            raise LedgerError(
                f"the ledger {self.url} cannot be opened: {error.orig}",
                fix="Check that its directory exists and can be written, and that no other program locks it.",
            ) from error
        except sqlalchemy.exc.DatabaseError as error:
            raise LedgerError(
                f"{self.url} is not a ledger: {error.orig}", fix="Give another file, or restore it from a backup."
            ) from error

    def _refuse_newer(self, connection: Connection, config: alembic.config.Config) -> None:
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision is None:
            return
        try:
            ScriptDirectory.from_config(config).get_revision(revision)
        except CommandError as error:
            raise LedgerTooNew(
                f"the ledger {self.url} was written by a newer version (revision {revision})",
                fix="Install that version; a ledger is never taken back to an older one.",
            ) from error

    @contextmanager
    def transaction(self, lease: Lease | None = None) -> Iterator[Connection]:
        """One transaction: all of it is written, or nothing.

        Raises:
            LeaseLost: somebody else has taken the lease.
        """
        with self._engine.begin() as connection:
            if lease is not None:
                check_lease(connection, lease)
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads: it waits for no writer and sees one state throughout."""
        with self._engine.connect().execution_options(p3s_reading=True) as connection:
            yield connection


def acquire(
    connection: Connection,
    *,
    namespace: str,
    holder: str,
    lease_s: float,
    now: float,
    is_gone: Callable[[str], bool] = lambda _: False,
) -> Lease:
    """Takes the lease if it is free or has run out, or if its holder is known to be gone.

    Raises:
        LeaseLost: another holder's lease has not run out; the message says until when.
    """
    row = connection.execute(select(schema.lease).where(schema.lease.c.namespace == namespace)).one_or_none()
    if row is None:
        connection.execute(
            schema.lease.insert().values(namespace=namespace, holder=holder, token=1, expires_at=now + lease_s)
        )
        return Lease(namespace=namespace, holder=holder, token=1)
    if row.expires_at > now and not is_gone(row.holder):
        raise LeaseLost(
            f"{row.holder} holds the lease on {namespace!r} for another {row.expires_at - now:.1f} s",
            fix="Stop it (`p3s down`), or wait until its lease has run out.",
        )
    connection.execute(
        schema.lease.update()
        .where(schema.lease.c.namespace == namespace)
        .values(holder=holder, token=row.token + 1, expires_at=now + lease_s)
    )
    return Lease(namespace=namespace, holder=holder, token=row.token + 1)


def renew(connection: Connection, lease: Lease, *, expires_at: float) -> None:
    """Says that the holder is alive: nobody may take over before `expires_at`. A moment that has passed releases it.

    Raises:
        LeaseLost: somebody else has taken it.
    """
    check_lease(connection, lease)
    connection.execute(
        schema.lease.update().where(schema.lease.c.namespace == lease.namespace).values(expires_at=expires_at)
    )


def check_lease(connection: Connection, lease: Lease) -> None:
    """Refuses a transaction of a holder who has been replaced.

    Raises:
        LeaseLost: the token has moved on.
    """
    token = connection.scalar(select(schema.lease.c.token).where(schema.lease.c.namespace == lease.namespace))
    if token != lease.token:
        raise LeaseLost(
            f"{lease.holder} no longer holds the lease on {lease.namespace!r}",
            fix="Another station has taken over; this one must stop.",
        )


def _engine(url: str) -> Engine:
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


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
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.005)


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail with SQLITE_BUSY when another wrote in between.
    reading = connection.get_execution_options().get("p3s_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(resources.files("p3s_prefect.adapters.ledger") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
