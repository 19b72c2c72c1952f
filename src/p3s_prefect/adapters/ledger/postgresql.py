"""The ledger on a PostgreSQL server: connections that notice when it is gone, and one writer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import sqlalchemy
from psycopg.types.string import StrDumperUnknown, StrDumperVarchar
from sqlalchemy import URL, Connection, Engine, event, text

from p3s_prefect.core.errors import LedgerError

# How long a writer waits for the one before it, as on SQLite.
BUSY_TIMEOUT_S = 30
# A writer that is stopped in the middle of its transaction keeps all others waiting: the server ends it after this
# long. Ours pause for milliseconds between two statements; they never read the store, nor wait for anybody.
IDLE_WRITER_S = 10
# "p3s ledger" in bytes. Any number would do that no other program of the database takes.
_WRITERS = 0x7033_736C_6564_6765

# Whoever does not answer is given up after 5 s + 3 x 2 s, on both sides; by default it takes two hours.
_CONNECTION: Mapping[str, Any] = {
    "application_name": "p3s-prefect",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 11_000,
    # Of several hosts the one that is written to.
    "target_session_attrs": "read-write",
}
_SESSION = {
    "lock_timeout": f"{BUSY_TIMEOUT_S}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "11000",
}
_SETTING = (
    "SELECT " + "".join(f"set_config('{name}', '{value}', false), " for name, value in _SESSION.items()) +
    # What the server has answered must be on its disk: a station acts on it, and does not look again.
    "set_config('synchronous_commit',"
    " CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,"
    " false)"
)
# Connection, rollback by the server, resources, locks, operator, system: not the statement's fault. Of class 25:
# read-only, and ended while it was idle. The class 54 (too long for an index) would be the same the next time.
_AWAY_CLASSES = ("08", "40", "53", "55", "57", "58")
_AWAY = ("25006", "25P03")


def connection_options(url: URL) -> dict[str, Any]:
    """How to connect; what the URL's options say takes the place of what is set here."""
    return {name: value for name, value in _CONNECTION.items() if name not in url.query}


def make_engine(url: URL) -> Engine:
    """Connections to the server."""
    engine = sqlalchemy.create_engine(
        url,
        connect_args=connection_options(url),
        isolation_level="READ COMMITTED",
        # Costs 0.1 ms, and readers do not notice that the server was restarted.
        pool_pre_ping=True,
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def is_away(error: BaseException | None) -> bool:
    """Whether it says that the server cannot be reached, or cannot do it now."""
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate[:2] in _AWAY_CLASSES or error.sqlstate in _AWAY


def refuse_other_encodings(connection: Connection) -> None:
    """Refuses a database that cannot hold every text.

    Raises:
        LedgerError: its encoding is not UTF-8.
    """
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise LedgerError(
            f"the ledger's database has the encoding {encoding}, which cannot hold every text",
            fix="Make it with `createdb --encoding=UTF8 --template=template0 NAME`.",
        )


def use_byte_order(connection: Connection, tables: Mapping[str, Any]) -> None:
    """Sorts and compares all texts of these tables by their bytes, as SQLite and Python do, and takes any length.

    By a language's rules `a/b` may stand before `a`, and no index helps to find what begins with a text.
    """
    for row in connection.execute(_OTHERWISE_SORTED).all():
        if row.table_name in tables:
            place = f'ALTER TABLE "{row.table_name}" ALTER COLUMN "{row.column_name}"'
            connection.exec_driver_sql(f'{place} TYPE TEXT COLLATE "C"')


_OTHERWISE_SORTED = text(
    "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
    " AND (data_type = 'character varying' OR data_type = 'text' AND collation_name IS DISTINCT FROM 'C')"
    " ORDER BY table_name, column_name"
)


def what_to_do(error: BaseException | None) -> str:
    """How to mend that the server could not be reached; its reasons are texts, without a code."""
    said = str(error)
    for words, fix in _FIXES:
        if words in said:
            return fix
    return "Look whether the server runs (`pg_isready`), and whether ledger.url names its host, port and database."


_FIXES = (
    ("password authentication failed", "Set the right password: in PGPASSWORD, ~/.pgpass, or ${NAME} in ledger.url."),
    ("no password supplied", "Give a password: in PGPASSWORD, ~/.pgpass, or ${NAME} in ledger.url."),
    ("permission denied for database", "Give the user the right to connect: `GRANT CONNECT ON DATABASE NAME TO USER`."),
    ('role "', "Make it with `createuser`, or correct the user in ledger.url."),
    # Not what a server says that is starting: "the database system is starting up".
    ('database "', "Make it with `createdb --encoding=UTF8 --template=template0 NAME`, or correct ledger.url."),
    ("permission denied", "Give the user the right to make tables: `GRANT CREATE, USAGE ON SCHEMA public TO NAME`."),
    ("read-only", "Name the primary server in ledger.url; this one only follows it."),
)


def _configure(connection: psycopg.Connection[Any], _record: Any) -> None:
    connection.adapters.register_dumper(str, _TextDumper)
    connection.adapters.register_dumper(str, _VarcharDumper)
    connection.adapters.register_dumper(str, _UnknownDumper)
    connection.execute(_SETTING)
    connection.commit()


class _WithoutNul:
    """PostgreSQL holds every character but NUL, which a payload's message may have."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))  # type: ignore[misc]


class _TextDumper(_WithoutNul, psycopg.types.string.StrDumper):
    pass


class _VarcharDumper(_WithoutNul, StrDumperVarchar):
    pass


class _UnknownDumper(_WithoutNul, StrDumperUnknown):
    pass


def _begin(connection: Connection) -> None:
    # As SQLite's BEGIN IMMEDIATE: one writer at a time, until its transaction has ended. So what it has read stays
    # true, the numbers of the journal have no gaps, and none of them becomes visible after a higher one.
    if not connection.get_execution_options().get("p3s_reading", False):
        connection.exec_driver_sql(
            f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_WRITER_S}s', true),"
            f" pg_advisory_xact_lock({_WRITERS})"
        )
