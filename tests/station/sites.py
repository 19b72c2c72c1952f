"""A site for a test: an experiment's home with a ledger, a store, a watched directory, and a station when asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import typer
from clusters import die_with_parent
from distributed.comm import Comm
from sqlalchemy import Connection, Row, func, select
from tornado.ioloop import IOLoop

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import overrides, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.cli import run
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.settings import Settings
from p3s_prefect.station import page, service

PATIENCE_S = 90.0
_POLL_S = 0.03

Declared = dict[str, Any]


# --- experiment -----------------------------------------------------------------------------------------------------


def obey(stage: str = "quick", **params: Any) -> Declared:
    """A step that does what its data say (see `obedient`)."""
    return {
        "name": "obey",
        "python": "obedient:obey",
        "inputs": {"raw": "raw"},
        "outputs": {"made": f"made-{stage}"},
        "params": {"stage": stage, **params},
        "timeout_s": 20,
    }


def shell(script: str, *, inputs: Mapping[str, str] | None = None, made: str | None = None, **fields: Any) -> Declared:
    """A step that is a shell script."""
    outputs = {} if made is None else {"made": made}
    return {
        "name": "shell",
        "command": ["/bin/sh", "-c", script],
        "inputs": {"raw": "raw"} if inputs is None else dict(inputs),
        "outputs": outputs,
        "timeout_s": 20,
        **fields,
    }


def total(after: str = "quick", **fields: Any) -> Declared:
    """A stage per group that joins what `after` has made."""
    step = {
        "name": "total",
        "python": "obedient:total",
        "inputs": {"made": f"made-{after}"},
        "outputs": {"total": "total"},
        "timeout_s": 20,
    }
    return {"per": "group", "after": [after], "steps": [step], **fields}


def declare(
    stages: Mapping[str, Declared] | None = None,
    *,
    pipeline: Declared | None = None,
    stream: Declared | None = None,
    instrument: Declared | None = None,
    station: Declared | None = None,
    **top: Any,
) -> Declared:
    """An experiment; what is not said is harmless. Stages default to one that obeys its data."""
    found = stages or {"quick": {"steps": [obey()]}}
    kinds = {
        kind
        for stage in found.values()
        for step in stage["steps"]
        for kind in [*step.get("inputs", {}).values(), *step.get("outputs", {}).values()]
    }
    return {
        "experiment": "test",
        "instrument": {
            "name": "TestCam",
            "dimensions": {"run": "int", "subrun": "int"},
            "group": ["run"],
            "closing": {"quiet_s": 3600},
            **(instrument or {}),
        },
        "dataset_types": {kind: {"format": "text"} for kind in sorted(kinds | {"raw"})},
        "pipelines": {"dqm": {"stages": dict(found), "order": "oldest-first", **(pipeline or {})}},
        "streams": {
            "camera": {
                "directory": "incoming",
                "pattern": "r{run:03d}_{subrun:04d}.txt",
                "dataset_type": "raw",
                "list_every_s": 0.5,
                "rules": [{"pipelines": ["dqm"]}],
                **(stream or {}),
            }
        },
        "station": {"port": 0, "grace_s": 0, "lease_s": 5, **(station or {})},
        # Its server takes 10 s of a core to start.
        "prefect": {"enabled": False},
        **top,
    }


NewSite = Callable[..., "Site"]


# --- site -----------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """An experiment's home, and what is needed to look into it and to run its station."""

    path: Path
    scheduler: str
    declared: Declared
    _ledger: Ledger | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)
    _spawned: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.declare(self.declared)

    def declare(self, declared: Declared) -> None:
        """Writes the experiment file anew; a station that runs goes on with the old one."""
        self.declared = declared
        # JSON is YAML too.
        self.home.experiment_file.write_text(json.dumps(declared, indent=1))

    @property
    def home(self) -> Home:
        return Home(self.path)

    @property
    def experiment(self) -> Experiment:
        return self.home.read()

    @cached_property
    def store(self) -> ObjectStore:
        return self.home.store(self.experiment)

    @property
    def log(self) -> Path:
        return self.path / "station.log"

    @property
    def incoming(self) -> Path:
        found = self.path / "incoming"
        found.mkdir(exist_ok=True)
        return found

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = self.home.ledger(self.experiment)
            self._ledger.migrate()
        return self._ledger

    def close(self) -> None:
        # What a failed test leaves would keep all from ending: it may be frozen, or wait for a ledger that is gone.
        for process in self._spawned:
            process.kill()
            process.join()
        if self._ledger is not None:
            self._ledger.close()

    # --- data ---

    def name(self, subrun: int, run: int = 1) -> str:
        return f"r{run:03d}_{subrun:04d}.txt"

    def arrive(self, subrun: int, words: str = "", *, run: int = 1, name: str = "", age_s: float = 0.0) -> Path:
        """A complete file appears, renamed into place."""
        path = self.incoming / (name or self.name(subrun, run))
        hidden = path.with_name(f".{next(self._names)}.tmp")
        hidden.write_text(words or f"data of {run} {subrun}")
        if age_s:
            at = time.time() - age_s
            os.utime(hidden, (at, at))
        hidden.rename(path)
        return path

    # --- books ---

    def read(self, query: Callable[[Connection], Any]) -> Any:
        with self.ledger.reading() as connection:
            return query(connection)

    def rows(self, table: Any) -> list[Row[Any]]:
        """All rows of a table in the order of their keys."""
        query = select(table).order_by(*table.primary_key.columns)
        return list(self.read(lambda connection: connection.execute(query).all()))

    def stages(self, stage: str | None = None) -> dict[tuple[str, str], str]:
        """State of each stage run, by data id and stage."""
        query = select(schema.sub_job.c.data_id, schema.stage_run.c.stage, schema.stage_run.c.state).join(
            schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id
        )
        rows = self.read(lambda connection: connection.execute(query).all())
        return {(row.data_id, row.stage): row.state for row in rows if stage in (None, row.stage)}

    def units(self) -> dict[str, str]:
        """State of each unit's newest sub-job, by data id."""
        return {row.data_id: row.state for row in self.rows(schema.sub_job) if row.per == "unit"}

    def summary(self) -> str:
        """For the message of a test that failed."""
        stages = Counter((stage, state) for (_, stage), state in self.stages().items())
        arrivals, groups = self.count(schema.arrival), self.count(schema.data_group, is_open=True)
        return f"stages: {dict(stages)}; arrivals: {arrivals}; open groups: {groups}"

    def count(self, table: Any, **where: Any) -> int:
        query = select(func.count()).select_from(table)
        for column, value in where.items():
            query = query.where(table.c[column] == value)
        return int(self.read(lambda connection: connection.scalar(query)))

    def text(self, dataset_type: str, data_id: str) -> str:
        """What the newest dataset of this name holds, verified."""
        found = [r for r in self.rows(schema.dataset) if (r.dataset_type, r.data_id) == (dataset_type, data_id)][-1]
        return self.store.fetch(found.key, self.path, found.sha256).read_text()

    # --- waiting ---

    async def until(self, condition: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> Any:
        """Waits for a condition and returns its answer."""
        until = time.monotonic() + patience_s
        while not (answer := await asyncio.to_thread(condition)):
            assert time.monotonic() < until, f"{what or 'it'} did not happen; {self.summary()}"
            await asyncio.sleep(_POLL_S)
        return answer

    async def until_done(self, number: int, *, patience_s: float = PATIENCE_S) -> None:
        """Waits until so many sub-jobs of units have settled as done."""
        await self.until(
            lambda: self.count(schema.sub_job, state="done", per="unit") >= number, f"{number} units done", patience_s
        )

    async def until_settled(self, number: int, *, patience_s: float = PATIENCE_S) -> None:
        """Waits until there are so many sub-jobs, and all have settled; patience is with each that does."""
        while (before := self._settled()) < number or self.count(schema.sub_job, settled_at=None):
            what = f"{number} sub-jobs settled, after {before}"
            await self.until(lambda before=before: self._settled() != before, what, patience_s)

    def _settled(self) -> int:
        return self.count(schema.sub_job) - self.count(schema.sub_job, settled_at=None)

    # --- station ---

    @contextlib.asynccontextmanager
    async def running(self, settings: Settings | None = None, *, slots: int = 1) -> AsyncIterator[Running]:
        """A station in this process that has some slots, stopped at the end as by SIGTERM."""
        text = self.home.text()
        experiment = self.home.parse(text)
        station = service._Station(
            home=self.home, text=text, experiment=experiment, ledger=self.ledger, store=self.home.store(experiment)
        )
        stop = asyncio.Event()
        listener = page.listen(experiment, settings or Settings())
        task = asyncio.create_task(station.run(settings or Settings(), self.scheduler, listener, stop))
        running = Running(station=station, task=task, stop=stop, url=page.page_url(listener))
        try:
            await running.until_ready(slots)
            yield running
        finally:
            stop.set()
            try:
                await asyncio.wait_for(task, PATIENCE_S)
            finally:
                self.home.withdraw_station()
                listener.close()
                _close_left_comms()

    def spawn(self) -> StationProcess:
        """A station as a process of its own, to be killed, with the command of `p3s up`; it prints to `log`."""
        process = _FORKS.Process(
            target=_serve, args=(self.path, self.scheduler, self.log, dict(os.environ)), daemon=True
        )
        process.start()
        self._spawned.append(process)
        return StationProcess(site=self, process=process)


def _close_left_comms() -> None:
    """Closes what Dask leaves to the garbage collector where a connection was given up while it was made.

    It can be closed as long as its event loop runs; after that it would fail whatever test it is collected in.
    """
    for comm in list(Comm._instances):
        stream = getattr(comm, "stream", None)
        if stream is not None and stream.io_loop is IOLoop.current():
            comm.abort()


@dataclass
class Running:
    """A station that runs in this process."""

    station: service._Station
    task: asyncio.Task[None]
    stop: asyncio.Event
    url: str

    async def until_ready(self, slots: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while not getattr(self.station, "sources", None) or self.station.pilots.slots() < slots:
            assert time.monotonic() < until, "the station does not come up"
            if self.task.done():
                self.task.result()
            await asyncio.sleep(_POLL_S)

    async def until_steered(self) -> None:
        """Waits until the station acts on what is in force: it looks a few times a second."""

        def taken() -> bool:
            with self.station.ledger.reading() as connection:
                return self.station.steering._taken == overrides.ids_in_force(connection)

        until = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(taken):
            assert time.monotonic() < until, "the command is not taken"
            await asyncio.sleep(_POLL_S)

    async def get(self, path: str) -> Any:
        """The JSON answer of the station's page."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            answer = await client.get(path)
        answer.raise_for_status()
        return answer.json()


@dataclass
class StationProcess:
    """A station in a process of its own."""

    site: Site
    process: Any

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def until_up(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while (found := self.site.home.station()) is None or found.pid != self.pid:
            assert time.monotonic() < until, "the station does not come up"
            assert self.process.is_alive(), f"the station ended with {self.process.exitcode}"
            time.sleep(_POLL_S)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int) -> int:
        """Sends a signal and returns the exit code."""
        self.signal(number)
        return self.join()

    def join(self) -> int:
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, "the station does not end"
        return int(self.process.exitcode)


# Forked from a process that has imported everything, so that a test can afford to kill many.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["p3s_prefect.cli.run", "p3s_prefect.station.service", "numpy"])


def _serve(path: Path, scheduler: str, log: Path, environment: dict[str, str]) -> None:
    die_with_parent()
    # The fork server has that of the first test that needed it.
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        run.station(scheduler, path)
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from end
