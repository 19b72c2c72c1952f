"""A ledger of its own on each database, a store in a directory, a stage runner with real payload processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from postgresql import Ledgers

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a ledger with its tables and nothing in them."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    with closing(Ledger(f"sqlite:///{path}")) as ledger:
        ledger.migrate()
    return path.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """What the ledger is kept in."""
    return str(request.param)


@pytest.fixture
def ledger_url(database: str, empty_ledger: bytes, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test's ledger is, which is empty."""
    if database == "sqlite":
        path = tmp_path / "ledger.db"
        path.write_bytes(empty_ledger)
        yield f"sqlite:///{path}"
    else:
        ledgers: Ledgers = request.getfixturevalue("postgresql_ledgers")
        with ledgers.new() as name:
            yield ledgers.server.url(name)


@pytest.fixture
def new_ledger(
    database: str, empty_ledger: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Ledger]]:
    """Makes empty ledgers. On a server it is one, which is emptied each time."""
    with ExitStack() as opened:
        count = iter(range(1_000_000))

        def in_file() -> Ledger:
            path = tmp_path / f"ledger{next(count)}.db"
            path.write_bytes(empty_ledger)
            return opened.enter_context(closing(Ledger(f"sqlite:///{path}")))

        def on_server() -> Ledger:
            ledgers: Ledgers = request.getfixturevalue("postgresql_ledgers")
            if found:
                ledgers.empty(found[0][0])
            else:
                name = opened.enter_context(ledgers.new())
                found.append((name, opened.enter_context(closing(Ledger(ledgers.server.url(name))))))
            return found[0][1]

        found: list[tuple[str, Ledger]] = []
        yield {"sqlite": in_file, "postgresql": on_server}[database]


@pytest.fixture
def ledger(new_ledger: Callable[[], Ledger]) -> Ledger:
    return new_ledger()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture(scope="session")
def processes() -> Iterator[PayloadProcesses]:
    """Shared by all tests, so that each runs on a slot that others have misused."""
    with closing(PayloadProcesses(("payloads",))) as found:
        found.warm()
        yield found


@pytest.fixture
def runner(processes: PayloadProcesses, tmp_path: Path) -> StageRunner:
    return StageRunner(processes, tmp_path / "scratch", pilot="here:1")
