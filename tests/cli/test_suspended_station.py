"""What the commands say of a station whose process a signal has stopped (P19): it is there, and answers nobody."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from announced import announce
from typer.testing import CliRunner, Result

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import ServiceError

_EXPERIMENT = (Path(__file__).parent.parent / "core" / "good_experiment.yaml").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Its station is a process that is stopped."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT)
    found = Home(tmp_path)
    with closing(found.ledger(found.read())) as ledger:
        ledger.migrate()
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            announce(found, process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield found
        finally:
            process.kill()


def _typed(home: Home, *words: str) -> Result:
    return CliRunner().invoke(commands(), [*words, "--home", str(home.path)])


def _lets_go_on(home: Home) -> str:
    station = home.station()
    assert station is not None
    return f"kill -CONT {station.pid}"


def test_the_status_says_so_and_how_it_goes_on(home: Home) -> None:
    said = " ".join(_typed(home, "status").stdout.split())
    assert "was stopped by a signal" in said
    assert _lets_go_on(home) in said


def test_a_command_is_given_all_the_same(home: Home) -> None:
    """S9: it counts when the station goes on; whoever gave it must not believe that it counts now."""
    said = " ".join(_typed(home, "pause", "all", "--why", "a test").stdout.split())
    assert "In force: pause of all by" in said
    assert "It counts when the station goes on" in said
    assert _lets_go_on(home) in said


@pytest.mark.parametrize("words", [("request", "quality", "run=1"), ("retry", "run=1")])
def test_what_needs_an_answer_is_not_asked(home: Home, words: tuple[str, ...]) -> None:
    """S8: it is said at once, and nothing is left for later."""
    refused = _typed(home, *words).exception
    assert isinstance(refused, ServiceError)
    assert _lets_go_on(home) in refused.fix
    with closing(home.ledger(home.read())) as ledger, ledger.reading() as connection:
        assert requests.open_requests(connection) == ()
