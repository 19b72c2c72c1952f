"""For all tests; and a ledger with rows as a station would have left them, for tests of what people see."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ledger_rows import Rows, StoredBytes

from p3s_prefect.adapters.ledger.database import Ledger

# Sockets are off unless a test is marked; no setting of this machine reaches it (see isolation.py).
pytest_plugins = ["isolation", "side_by_side", "s3_servers", "postgresql", "prefect_servers"]


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that the experiment without mistakes names, so that a check finds them."""
    place = tmp_path_factory.mktemp("programs")
    for name in ("subtract", "fft", "find", "draw", "add"):
        (place / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)


@pytest.fixture
def stored() -> StoredBytes:
    """The store that the rows' objects are in."""
    return StoredBytes()


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """Where a test's ledger is. Tests that are to run on both databases have a fixture of this name too."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def seen_ledger(ledger_url: str) -> Iterator[Ledger]:
    """A ledger of its own."""
    with closing(Ledger(ledger_url)) as ledger:
        ledger.migrate()
        yield ledger


@pytest.fixture
def fill(seen_ledger: Ledger, stored: StoredBytes) -> Callable[[Callable[[Rows], None]], None]:
    """Runs a function that adds rows, in one transaction."""

    def filled(write: Callable[[Rows], None]) -> None:
        with seen_ledger.transaction() as connection:
            write(Rows(connection, stored))

    return filled
