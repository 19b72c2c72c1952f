"""Copies of an SQLite ledger while it is written: one state of it, verified, and never half a file.

This is the one place with SQL of SQLite's own; PostgreSQL has `pg_dump` and `pg_restore`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from p3s_prefect.adapters.ledger.schema import metadata
from p3s_prefect.adapters.ledger.sqlite import BUSY_TIMEOUT_S
from p3s_prefect.core.errors import LedgerError

# 16 MB at a time: some tens of steps for a ledger of a year, each a fraction of a second.
_PAGES_AT_ONCE = 4096

Copied = Callable[[int, int], None]
"""Pages copied, of how many."""


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A copy that has passed its checks."""

    file: Path
    size: int
    revision: str
    """Of the tables."""
    rows: Mapping[str, int]
    """By table."""


def sqlite_file(url: str) -> Path:
    """The file of a ledger.

    Raises:
        LedgerError: it is not SQLite; says what to do instead.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        shown = parsed.set(drivername=parsed.get_backend_name()).render_as_string(hide_password=True)
        raise LedgerError(
            f"this ledger is in {parsed.get_backend_name()}, which has tools of its own",
            fix=f"`pg_dump --format=custom --file=FILE {shown}` backs it up while the station runs; "
            f"`pg_restore --dbname={shown} FILE` restores it into an empty database; then run `p3s reconcile`.",
        )
    return Path(str(parsed.database))


def back_up(source: Path, target: Path, copied: Copied = lambda done, total: None) -> Backup:
    """Copies one state of a ledger, though others write meanwhile, and verifies the copy before it gets its name.

    Raises:
        LedgerError: the target exists, or cannot be written; or the ledger is damaged.
    """
    if target.exists():
        raise LedgerError(f"{target} exists", fix="Give another name: a backup is never written over.")
    with _told(source, target), written_whole(target) as hidden, contextlib.closing(_connect(source)) as live:
        # From now on this connection sees one state; without, each transaction of others would begin the copy anew.
        live.execute("BEGIN")
        rows = _rows(live)
        with contextlib.closing(sqlite3.connect(hidden)) as copy:
            copy.execute("PRAGMA synchronous=OFF")
            live.backup(copy, pages=_PAGES_AT_ONCE, progress=lambda _, left, total: copied(total - left, total))
            # One file, without a log beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
        found = verified(hidden)
        if found.rows != rows:
            raise LedgerError("the copy has other numbers of rows than the ledger", fix="Try again, to another disk.")
    return Backup(file=target, size=target.stat().st_size, revision=found.revision, rows=rows)


def verified(file: Path) -> Backup:
    """A ledger's file that is whole.

    Raises:
        LedgerError: it is none, or damaged.
    """
    with _told(file, file):
        if not file.is_file():
            raise LedgerError(f"there is no file {file}", fix="Give a file that `p3s ledger backup` has written.")
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            wrong = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
            if wrong != ["ok"]:
                raise LedgerError(f"{file} is damaged: {'; '.join(wrong)[:300]}", fix="Take another backup.")
            if loose := connection.execute("PRAGMA foreign_key_check").fetchone():
                raise LedgerError(f"{file} is damaged: {loose[0]} {loose[1]} belongs to nothing", fix=_OTHER)
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            rows = _rows(connection)
    return Backup(file=file, size=file.stat().st_size, revision=revision[0] if revision else "", rows=rows)


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A hidden place for a file's content, which becomes durable and gets its name if nothing is raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield hidden
        _sync(hidden)
        hidden.replace(target)
        _sync(target.parent)
    finally:
        for file in beside(hidden):
            file.unlink(missing_ok=True)


def put_aside(file: Path, name: str) -> Path:
    """Gives a ledger's file another name, with the log that belongs to it."""
    aside = file.with_name(name)
    for old, new in zip(beside(file), beside(aside), strict=True):
        if old.exists():
            old.rename(new)
    _sync(file.parent)
    return aside


def into_one_file(file: Path) -> None:
    """Takes what stands in the log of a ledger that nobody has open into its file."""
    with _told(file, file), contextlib.closing(_connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def beside(file: Path) -> tuple[Path, ...]:
    """A ledger's file, and those that SQLite keeps beside it."""
    return (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm"))


_OTHER = "Take another backup, or `p3s ledger rebuild` from the store."


def _connect(file: Path) -> sqlite3.Connection:
    if not file.is_file():
        raise LedgerError(f"there is no ledger {file} yet", fix="Start the station with `p3s up`.")
    return sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _rows(connection: sqlite3.Connection) -> dict[str, int]:
    # A backup of an earlier version has fewer tables. Names are those of the schema.
    there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    names = [table.name for table in metadata.sorted_tables if table.name in there]
    counts = (connection.execute(f'SELECT count(*) FROM "{name}"').fetchone() for name in names)  # noqa: S608
    return {name: int(row[0]) for name, row in zip(names, counts, strict=True)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and target != source:
            fix = "Look whether the disk is full, or give another place."
            raise LedgerError(f"{source} cannot be copied to {target}: {error}", fix=fix) from error
        raise LedgerError(f"{source} is not a ledger, or damaged: {error}", fix=_OTHER) from error
    except OSError as error:
        fix = "Give a place that exists and can be written."
        raise LedgerError(f"{target} cannot be written: {error.strerror or error}", fix=fix) from error
