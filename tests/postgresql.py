"""A PostgreSQL server of Debian's, with an empty ledger for each test."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lacking import lacks
from psycopg import sql

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.database import Ledger

_PR_SET_PDEATHSIG = 1
_PATIENCE_S = 60
# Nothing of a test is to outlive a power cut; what a killed server wrote is in the operating system's memory.
_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "password_encryption": "scram-sha-256",
    "shared_buffers": "32MB",
    "unix_socket_permissions": "0777",
}


def programs() -> Path:
    """Where the server's programs are: Debian keeps them out of the way."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name))
    return places[-1] if places else lacks("PostgreSQL", "postgresql")


class Server:
    """A server of its own, on a socket in its directory and, where that is asked for, on loopback."""

    def __init__(self, path: Path, *, port: int | None = None, **settings: str) -> None:
        self.path = path
        self.port = port or 5432
        self._listens = "" if port is None else "127.0.0.1"
        self._wanted = settings
        self._names = itertools.count()
        # The server refuses to run as root.
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        path.chmod(0o755)
        self._initialize()
        self.start()

    def _settings(self) -> dict[str, str]:
        place = {"listen_addresses": self._listens, "unix_socket_directories": str(self.path)}
        return _SETTINGS | place | {"port": str(self.port)} | self._wanted

    @property
    def data(self) -> Path:
        return self.path / "data"

    def start(self) -> None:
        """Called where the thread lives on: the server ends with it."""
        with (self.path / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [programs() / "postgres", "-D", str(self.data)],
                cwd=self.path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent,
                **self._as_user,
            )  # fmt: skip
        until = time.monotonic() + _PATIENCE_S
        while not self._is_up():
            assert self._process.poll() is None, (self.path / "log").read_text()
            assert time.monotonic() < until, (self.path / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """As `pg_ctl stop -m immediate`, which is a crash: what was not committed is lost."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(_PATIENCE_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self.stop()

    def url(self, name: str, *, port: int | None = None, user: str = "p3s") -> str:
        """By its socket; over loopback if a port is given."""
        if port is None:
            return f"postgresql+psycopg://{user}@/{name}?host={self.path}&port={self.port}"
        return f"postgresql+psycopg://{user}@127.0.0.1:{port}/{name}"

    def create(self, template: str = "template1", *, options: str = "") -> str:
        """A new database; returns its name."""
        name = f"ledger{next(self._names)}"
        with self.connect() as connection:
            made = sql.SQL("CREATE DATABASE {} TEMPLATE {} " + options)
            connection.execute(made.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def connect(self, name: str = "postgres") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        with psycopg.connect(host=str(self.path), port=self.port, user="p3s", dbname=name, autocommit=True) as found:
            yield found

    def _is_up(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def _initialize(self) -> None:
        words = ["--pgdata", str(self.data), "--username=p3s", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run(
            [programs() / "initdb", "--no-sync", *words],
            check=True, cwd=self.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **self._as_user,
        )  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings().items())


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


@contextmanager
def server(*, port: int | None = None, **settings: str) -> Iterator[Server]:
    """A server in a new directory, whose name is short enough for a socket."""
    path = Path(tempfile.mkdtemp(prefix="p3s-pg-", dir="/tmp"))
    try:
        with closing(Server(path, port=port, **settings)) as found:
            yield found
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for all tests; what harms it starts one of its own."""
    with server() as found:
        yield found


class Ledgers:
    """Ledgers with their tables and nothing in them. What a test leaves is taken out, as copying takes longer."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._clean: list[str] = []
        self.template = server.create()
        with closing(Ledger(server.url(self.template))) as ledger:
            ledger.migrate()
        self._revision = self._revision_of(self.template)

    @contextmanager
    def new(self) -> Iterator[str]:
        """The name of its database."""
        name = self._clean.pop() if self._clean else self.server.create(self.template)
        yield name
        if self._revision_of(name) == self._revision:
            self.empty(name)
            self._clean.append(name)
        else:
            self.server.drop(name)

    def empty(self, name: str) -> None:
        with self.server.connect(name) as connection:
            connection.execute("SET lock_timeout = '5s'; SET session_replication_role = replica")
            for table in schema.metadata.tables:
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
            connection.execute("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")

    def _revision_of(self, name: str) -> object:
        """Which tables it has; None if it has none."""
        with self.server.connect(name) as connection:
            if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
                return None
            return connection.execute("SELECT version_num FROM alembic_version").fetchone()


@pytest.fixture(scope="session")
def postgresql_ledgers(postgresql: Server) -> Ledgers:
    return Ledgers(postgresql)
