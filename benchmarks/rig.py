"""A scheduler, pilots and a station as `p3s up` runs them, for a benchmark to press on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.supervision import SERVICE_ENVIRONMENT, programs

Command = tuple[str, ...]

WORKERS = 2
EXPERIMENT = """
experiment: bench
instrument:
  name: bench
  dimensions: {run: int, unit: int}
  group: [run]
  closing: {quiet_s: 3600}
dataset_types: {raw: {format: file}, out: {format: text}}
pipelines:
  copy:
    order: oldest-first
    stages:
      copy:
        steps:
          - {name: copy, python: "benchmarks.payloads:kilobyte", inputs: {raw: raw}, outputs: {out: out}, timeout_s: 30}
streams:
  files: {directory: incoming, pattern: "r{run:04d}_{unit:06d}.dat", dataset_type: raw, rules: [{pipelines: [copy]}]}
pilots: {workers: 2}
station: {port: 0}
"""


def make_home(path: Path) -> Home:
    """An experiment with one stage that publishes 1 kB."""
    (path / "incoming").mkdir(parents=True)
    (path / "experiment.yaml").write_text(EXPERIMENT)
    return Home(path)


def place(home: Home, run: int, unit: int) -> float:
    """Renames a file into the watched place; returns when it became visible (UTC, seconds since 1970)."""
    final = home.path / "incoming" / f"r{run:04d}_{unit:06d}.dat"
    hidden = final.with_name(f".{final.name}.tmp")
    hidden.write_text(f"{run} {unit}")
    hidden.replace(final)
    return time.time()


class Cluster:
    """A scheduler, and pilots that come and may be lost, without a station."""

    def __init__(self, home: Home) -> None:
        scheduler, pilot, station = programs(home, home.read())
        self.address: str = station.command[4]
        """The scheduler's."""
        self.station: Command = station.command
        """What would start the station."""
        self._pilot = pilot.command
        self._scheduler = _start(scheduler.command)
        self._pilots: list[subprocess.Popen[bytes]] = []
        self.copies = pilot.copies
        """The pilots that the experiment asks for; none has come yet."""

    def set_pilots(self, number: int) -> None:
        """From now on there are so many; those that go are lost with what they have begun. New ones take seconds."""
        while len(self._pilots) > number:
            lost = self._pilots.pop()
            lost.kill()
            lost.wait()
        while len(self._pilots) < number:
            self._pilots.append(_start(self._pilot))

    def changes(self) -> list[tuple[float, int]]:
        """When (UTC, seconds since 1970) the scheduler has seen a pilot come (+1) or go (-1), from the beginning."""
        with distributed.Client(self.address, set_as_default=False) as client:
            events = client.get_events("all")
        signs = {"add-worker": 1, "remove-worker": -1}
        return [(at, signs[event["action"]]) for at, event in events if event.get("action") in signs]

    def end(self) -> None:
        """Ends all of them."""
        _end([self._scheduler, *self._pilots])


@contextmanager
def cluster(home: Home) -> Iterator[Cluster]:
    """Scheduler and pilots, ended in the end."""
    running = Cluster(home)
    try:
        running.set_pilots(running.copies)
        yield running
    finally:
        running.end()


@contextmanager
def station(home: Home, command: Command) -> Iterator[subprocess.Popen[bytes]]:
    """A station that answers."""
    running = _start(command)
    try:
        until(lambda: home.station() is not None, 60)
        yield running
    finally:
        _end([running])


def until(condition, timeout_s: float) -> None:  # type: ignore[no-untyped-def]
    """Waits for a condition.

    Raises:
        TimeoutError: it did not come true in time.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.05)


def published(home: Home) -> list[tuple[str, float, float]]:
    """(data id, first step started, published) of every unit that is done, in the order of publication; UTC seconds."""
    from sqlalchemy import select

    from p3s_prefect.adapters.ledger.schema import attempt, stage_run, sub_job

    ledger = home.ledger(home.read())
    query = (
        select(attempt.c.steps, attempt.c.published_at, sub_job.c.data_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(attempt.c.state == "done")
        .order_by(attempt.c.published_at)
    )
    with ledger.reading() as connection:
        rows = [(row.data_id, row.steps[0]["started_at"], row.published_at) for row in connection.execute(query)]
    ledger.close()
    return rows


def number_done(home: Home) -> int:
    """How many units are done."""
    from sqlalchemy import func, select

    from p3s_prefect.adapters.ledger.schema import stage_run

    ledger = home.ledger(home.read())
    with ledger.reading() as connection:
        number = connection.scalar(select(func.count()).where(stage_run.c.state == "done"))
    ledger.close()
    return int(number or 0)


def _start(command: Command) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parent.parent)
    environment = os.environ | SERVICE_ENVIRONMENT | {"PYTHONPATH": root}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(running):
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
