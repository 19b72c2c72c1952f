"""`p3s up` and `p3s down` for real: what they start is kept running, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from announced import announce
from sites import Site, declare
from supervised import begin, family, p3s, service_of

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.supervision import Services, programs
from p3s_prefect.api import open_experiment
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.settings import Settings
from p3s_prefect.station import page

pytestmark = pytest.mark.sockets


async def test_up_keeps_everything_running_and_down_leaves_nothing(prepared: Callable[..., Site]) -> None:
    """P12, V20, V22: twice up is an error; each service killed comes back without a hand on it; down ends all.

    A station that is stopped by a signal ends as gracefully.
    """
    site = prepared(declare(pilots={"workers": 2}, station={"lease_s": 60, "grace_s": 1}))
    first = p3s("up", "--home", str(site.path))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "http://127.0.0.1:" in first.stdout
    second = p3s("up", "--home", str(site.path))
    assert second.returncode == 1
    assert "run already" in second.stderr
    for subrun in range(40):
        site.arrive(subrun, "sleep 0.1")
    await site.until_done(2)
    for word in ("worker", "station", "scheduler", "station"):
        killed = service_of(site, word)
        done = list(site.units().values()).count("done")
        killed.send_signal(signal.SIGKILL)
        # What is done after the kill was done by what came back, or did not need it.
        await site.until_done(min(40, done + 6))
        assert service_of(site, word).pid != killed.pid
    await site.until_done(40, patience_s=60)
    assert len(site.rows(schema.dataset)) == 40
    site.arrive(50, "sleep 60")
    await site.until(lambda: site.stages().get(("run=1 subrun=50", "quick")) == "running")
    before = family(site)
    assert sum("p3s_prefect.adapters.pilot.keeper" in " ".join(process.cmdline()) for process in before) >= 2
    service_of(site, "station").suspend()
    last = p3s("down", "--home", str(site.path))
    assert (last.returncode, "Stopped." in last.stdout) == (0, True)
    assert not [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not _mentioning(str(site.path))
    assert site.stages()["run=1 subrun=50", "quick"] == "queued"
    assert "Nothing was running" in p3s("down", "--home", str(site.path)).stdout


def _mentioning(path: str) -> list[list[str]]:
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(path in word for word in words)]


async def test_two_at_the_same_instant_and_a_supervisor_that_is_killed(prepared: Callable[..., Site]) -> None:
    """P19, V20: of two `p3s up` one starts; without its supervisor the status says so, with a station and without."""
    site = prepared(declare(pilots={"workers": 1}, station={"grace_s": 0}))
    home = ("--home", str(site.path))
    commands = [begin("up", *home) for _ in range(2)]
    said = [command.communicate(timeout=300) for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 1]
    (refused,) = (text for (_, text), command in zip(said, commands, strict=True) if command.returncode)
    assert "run already" in refused
    assert sum("supervisor.supervisord" in words for words in _mentioning(str(site.path))) == 1
    services = Services(site.home)
    site.arrive(0)
    await site.until_done(1)
    with open_experiment(site.path) as books:
        assert "supervisor" not in [row["name"] for row in books.status()["health"]]
        os.kill(services.pid() or 0, signal.SIGKILL)
        await site.until(lambda: services.pid() is None)
        found = books.status()
        (row,) = (row for row in found["health"] if row["name"] == "supervisor")
        assert (found["status"], row["status"]) == ("degraded", "degraded")
        assert "`p3s down`" in row["action"]
        os.kill(site.home.station().pid, signal.SIGKILL)  # type: ignore[union-attr]
        await site.until(lambda: site.home.station() is None)
        left = books.status()["health"][0]
        assert "the station and its supervisor have ended" in left["cause"]
        assert "`p3s down` ends what is left" in left["action"]
        # Pilots may hang in a pipe that nobody reads any more, and are killed then.
        assert services.stop(timeout_s=3)
        assert not _mentioning(str(site.path))
        assert books.status()["health"][0]["cause"] == "no station runs here"


def test_a_home_that_cannot_be_written_is_a_clear_error(prepared: Callable[..., Site]) -> None:
    """S8: nothing is started, and the error names the place and what to do."""
    site = prepared()
    site.home.run.write_text("no directory")
    found = p3s("up", "--home", str(site.path))
    assert (found.returncode, found.stdout) == (1, "")
    assert f"{site.home.run} cannot be written to" in found.stderr
    assert "make it writable" in found.stderr
    assert not _mentioning(str(site.path))


def test_a_port_in_use_is_a_clear_error(prepared: Callable[..., Site]) -> None:
    """S8, V18 (port): `p3s up` says what is wrong and what to do, and leaves nothing running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site = prepared(declare(station={"port": port}))
        found = p3s("up", "--home", str(site.path))
    assert found.returncode == 1
    assert f"the page cannot be served on 127.0.0.1:{port}: Address already in use" in found.stderr
    assert "set station.port" in found.stderr
    assert Services(site.home).pid() is None
    assert not _mentioning(str(site.path))


def test_a_page_for_everybody_needs_a_token(prepared: Callable[..., Site]) -> None:
    """S7, V18 (host): beyond loopback nothing is served without one, and the error says how to set it."""
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):  # noqa: S104
        site = prepared(declare(station={"host": host}))
        with pytest.raises(ServiceError, match="open to everybody") as refused:
            page.listen(site.experiment, Settings())
        assert "P3S_TOKEN" in refused.value.fix


async def test_an_existing_cluster_is_used_instead(prepared: Callable[..., Site]) -> None:
    """V18 (pilots.address, pilots.workers): no scheduler and no pilots are started; else as many as are asked for."""
    own = prepared(declare(pilots={"workers": 5}))
    assert [(one.name, one.copies) for one in programs(own.home, own.experiment)] == [
        ("scheduler", 1),
        ("pilot", 5),
        ("station", 1),
    ]
    own.declare(declare(pilots={"address": "tcp://10.0.0.1:8786"}))
    (station,) = programs(own.home, own.experiment)
    assert "tcp://10.0.0.1:8786" in station.command


def test_the_address_of_a_dead_station_is_not_believed(tmp_path: Path) -> None:
    """P19: what a killed station has left behind is nobody's address."""
    home = Home(tmp_path)
    home.experiment_file.touch()
    home.announce_station("http://127.0.0.1:1", "")
    found = home.station()
    assert found is not None
    assert found.pid == os.getpid()
    gone = subprocess.Popen(["true"])
    gone.wait()
    announce(home, gone.pid)
    assert home.station() is None
    # After a restart of the machine its number may be somebody else's.
    announce(home, os.getpid(), machine="this one, before")
    assert home.station() is None
    home.withdraw_station()
    assert (home.run / "station.json").exists()
