"""Opening the ledger's database: settings, migrations, transactions that check the lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, make_url, select, text, update
from sqlalchemy.exc import DBAPIError

from p3s_prefect.adapters.ledger import postgresql, schema, sqlite
from p3s_prefect.adapters.ledger.notices import Listener
from p3s_prefect.adapters.ledger.rows import add_missing
from p3s_prefect.core.addresses import without_password
from p3s_prefect.core.errors import LeaseLost, LedgerAway, LedgerError, LedgerTooNew


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
        place = make_url(url)
        self.url = without_password(url)
        """Where it is, as it may be shown."""
        self.is_server = place.get_backend_name() == "postgresql"
        """Whether it is a server's, which others may use at the same time; else a file of this machine."""
        self._file = None if self.is_server else place.database
        self._engine = (postgresql if self.is_server else sqlite).make_engine(place)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def exists(self) -> bool:
        """Whether its tables are there; nothing is made.

        Raises:
            LedgerError: the server cannot be reached.
        """
        if self._file is not None and not Path(self._file).is_file():
            return False
        with self._opening(), self.reading() as connection:
            return inspect(connection).has_table(schema.journal.name)

    def migrate(self) -> None:
        """Brings the tables up to this version of the package; a new database gets all of them.

        Raises:
            LedgerTooNew: a newer version of this package has written it.
            LedgerAway: it cannot be opened now.
            LedgerError: it is no ledger.
        """
        config = _alembic_config()
        # One exclusive transaction, so that two processes that start together do not both migrate.
        with self._opening(), self._engine.begin() as connection:
            self._refuse_newer(connection, config)
            if self.is_server:
                postgresql.refuse_other_encodings(connection)
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            if self.is_server:
                postgresql.use_byte_order(connection, schema.metadata.tables)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (LedgerAway, DBAPIError) as error:
            cause = error.__cause__ if isinstance(error, LedgerAway) else error
            reason = cause.orig if isinstance(cause, DBAPIError) else cause
            if self.is_server:
                fix = postgresql.what_to_do(reason)
            elif isinstance(cause, sqlalchemy.exc.OperationalError):
                fix = "Check that its directory exists and can be written, and that no other program locks it."
            else:
                what, fix = f"{self.url} is not a ledger", "Give another file, or restore it from a backup."
                raise LedgerError(f"{what}: {_line(reason)}", fix=fix) from error
            kind = LedgerAway if isinstance(error, LedgerAway) or self.is_away(error) else LedgerError
            raise kind(f"the ledger {self.url} cannot be opened: {_line(reason)}", fix=fix) from error

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
        """One transaction: all of it is written, or nothing. One writer at a time, whatever the database.

        Raises:
            LeaseLost: somebody else has taken the lease.
            LedgerAway: it cannot be written now. If the connection was lost at its very end, it may have been.
        """
        with self._told_if_away("written"), self._engine.begin() as connection:
            if lease is not None:
                check_lease(connection, lease)
            yield connection

    @contextmanager
    def reading(self, *, own_tables: bool = False) -> Iterator[Connection]:
        """A connection that only reads: it waits for no writer and sees one state throughout.

        With `own_tables`, it may make temporary tables, which nobody else sees and which end with it.

        Raises:
            LedgerAway: it cannot be read now.
        """
        options: dict[str, Any] = {}
        if self.is_server:
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": not own_tables}
        with (
            self._told_if_away("read"),
            self._engine.connect().execution_options(p3s_reading=True, **options) as connection,
        ):
            yield connection

    def listening(self, heard: Callable[[], object]) -> AbstractContextManager[object]:
        """Calls `heard` from another thread when the journal may have new lines: a hint, which a file never gives."""
        return closing(Listener(self._engine, heard)) if self.is_server else nullcontext()

    def is_away(self, error: DBAPIError) -> bool:
        """Whether an error says that the database cannot be reached now, rather than that a statement is wrong."""
        return error.connection_invalidated or (postgresql if self.is_server else sqlite).is_away(error.orig)

    @contextmanager
    def _told_if_away(self, done: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if not self.is_away(error):
                raise
            fix = postgresql.what_to_do(error.orig) if self.is_server else "Look whether its disk is full or read-only."
            raise LedgerAway(f"the ledger cannot be {done}: {_line(error.orig)}", fix=fix) from error


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
    # One row for whoever is first, should two come at once.
    add_missing(connection, schema.lease, namespace=namespace, holder="", token=0, expires_at=0.0, batch=0)
    row = connection.execute(select(schema.lease).where(schema.lease.c.namespace == namespace).with_for_update()).one()
    if row.expires_at > now and not is_gone(row.holder):
        raise LeaseLost(
            f"{row.holder} holds the lease on {namespace!r} for another {row.expires_at - now:.1f} s",
            fix="Stop it (`p3s down`), or wait until its lease has run out.",
        )
    # By the clock, so that it also grows where the ledger was rebuilt, or is an older one that was put back.
    token = max(row.token + 1, int(now))
    connection.execute(
        schema.lease.update()
        .where(schema.lease.c.namespace == namespace)
        .values(holder=holder, token=token, expires_at=now + lease_s, batch=0)
    )
    return Lease(namespace=namespace, holder=holder, token=token)


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
    # Locked until the transaction ends, so that the token cannot move on before that.
    found = select(schema.lease.c.token).where(schema.lease.c.namespace == lease.namespace).with_for_update()
    if connection.scalar(found) != lease.token:
        raise LeaseLost(
            f"{lease.holder} no longer holds the lease on {lease.namespace!r}",
            fix="Another station has taken over; this one must stop.",
        )


def note_batch(connection: Connection, lease: Lease, number: int) -> None:
    """Notes in a transaction of the holder that it is its batch `number`."""
    connection.execute(update(schema.lease).where(schema.lease.c.namespace == lease.namespace).values(batch=number))


def newest_batch(connection: Connection, lease: Lease) -> int:
    """The batch that was noted last: whether a transaction was written whose end nobody has seen."""
    found = select(schema.lease.c.batch).where(schema.lease.c.namespace == lease.namespace)
    return connection.scalar(found) or 0


def sign_of_life(connection: Connection, namespace: str) -> tuple[int, float] | None:
    """What changes whenever a lease is taken or renewed; None if it never was."""
    found = select(schema.lease.c.token, schema.lease.c.expires_at).where(schema.lease.c.namespace == namespace)
    row = connection.execute(found).one_or_none()
    return None if row is None else (row.token, row.expires_at)


def time_of(connection: Connection) -> float:
    """The time of the database's clock, in seconds since 1970: all who want a lease must go by the same one."""
    return float(connection.scalar(_NOW[connection.dialect.name]) or 0.0)


_NOW = {
    "postgresql": text("SELECT extract(epoch FROM clock_timestamp())::float8"),
    # Of this machine, as the file is.
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400"),
}


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(resources.files("p3s_prefect.adapters.ledger") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
