"""The station as a process: joins everything, serves the page, and stops gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

import uvicorn

import p3s_prefect
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.adapters.directory_source import DirectorySource
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import arrivals, execution, groups, reconfigured
from p3s_prefect.adapters.ledger.database import Ledger, renew
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.errors import LeaseLost, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import SourceFacts, StationFacts
from p3s_prefect.core.records import Identity, SubJobFact
from p3s_prefect.settings import Settings
from p3s_prefect.station import upkeep
from p3s_prefect.station.catalogue import Catalogue
from p3s_prefect.station.committer import Committer
from p3s_prefect.station.feed import Feed
from p3s_prefect.station.handout import Handout
from p3s_prefect.station.intake import Intake
from p3s_prefect.station.recorder import Recorder
from p3s_prefect.station.recovery import recover
from p3s_prefect.web.app import create_app

log = logging.getLogger(__name__)

# A browser that does not close its connection must not keep the station from stopping.
_PAGE_STOP_S = 3


async def serve(home: Home, settings: Settings, scheduler: str) -> None:
    """Runs a station until SIGTERM or SIGINT; `scheduler` is the address of the pilots' Dask scheduler.

    Raises:
        P3sError: it cannot start, or lost its lease; the message says why.
    """
    experiment = home.read()
    listener = _listen(experiment, settings)
    ledger = home.ledger(experiment)
    ledger.migrate()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    station = _Station(home=home, experiment=experiment, ledger=ledger, store=home.store(experiment))
    try:
        await station.run(settings, scheduler, listener, stop)
    except ExceptionGroup as group:
        if (lost := _lease_lost(group)) is not None:
            raise lost from group
        raise
    finally:
        home.withdraw_station()
        ledger.close()


@dataclass
class _Station:
    home: Home
    experiment: Experiment
    ledger: Ledger
    store: DirectoryStore

    async def run(self, settings: Settings, scheduler: str, listener: socket.socket, stop: asyncio.Event) -> None:
        self.clock = SystemClock()
        self.feed = Feed()
        self.stop_asked = stop
        self.started_at = self.clock.now()
        self.sources: list[DirectorySource] = []
        lease_s = self.experiment.station.lease_s
        waiting = asyncio.create_task(upkeep.take_lease(self.ledger, self.experiment.experiment, lease_s, self.clock))
        if not await _first(waiting, stop):
            return
        lease = waiting.result()
        catalogue = Catalogue(self.experiment, self.home.path.resolve(), self.store.url)
        # Now, and not at the first arrival: a program that cannot be read is a reason not to start.
        await asyncio.to_thread(lambda: catalogue.collections)
        async with AsyncExitStack() as stack:
            self.committer = await stack.enter_async_context(Committer(self.ledger, lease))
            # From now on: recovering and resuming may take longer than the lease after a long outage.
            self.keeping = asyncio.create_task(upkeep.keep_lease(self.committer, lease, lease_s, self.clock))
            stack.push_async_callback(_cancel, [self.keeping])
            self.recorder = Recorder(self.store, self.committer)
            await self._recover()
            await self._retire(catalogue)
            self.pilots = await stack.enter_async_context(DaskPilots(scheduler, catalogue.payload_modules))
            self.handout = Handout(catalogue, self.committer, self.pilots, self.recorder, self.feed, self.clock)
            self.intake = Intake(catalogue, self.committer, self.handout, self.feed, self.clock)
            await self._resume()
            self.sources = [self._source(name) for name in self.experiment.streams]
            server = self._server(settings)
            await self._until_stopped(server, listener)
            await self.committer.do(lambda connection: renew(connection, lease, expires_at=self.clock.now()))

    # --- inside -------------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        now = self.clock.now()
        published, given_back = await self.committer.do(lambda connection: recover(connection, self.store, now))
        if published or given_back:
            log.info("recovered: %d results published, %d stages back in the queue", published, given_back)
        unrecorded = await self.committer.do(
            lambda connection: [
                execution.commit_record(connection, found) for found in execution.unrecorded(connection)
            ]
        )
        for record in unrecorded:
            self.recorder.add(record)

    async def _retire(self, catalogue: Catalogue) -> None:
        now = self.clock.now()
        retired = await self.committer.do(
            lambda connection: reconfigured.retire(connection, catalogue.collections, catalogue.admission, now)
        )
        if retired:
            log.warning("the configuration changed: %d open sub-jobs go on in new passes", retired)

    async def _resume(self) -> None:
        open_sub_jobs, open_groups = await asyncio.to_thread(self._open_work)
        self.intake.resume(open_groups)
        for fact in open_sub_jobs:
            await self.handout.add(fact)

    def _open_work(self) -> tuple[list[SubJobFact], list[GroupFact]]:
        # Read beside the writer, who keeps the lease meanwhile: after a long outage this takes its time.
        with self.ledger.reading() as connection:
            return execution.open_sub_jobs(connection), groups.open_groups(connection)

    async def _until_stopped(self, server: uvicorn.Server, listener: socket.socket) -> None:
        """Runs everything until it is asked to stop; if one part fails, the station ends, and is started anew."""
        sweep_s = self.experiment.store.sweep_after_s
        async with asyncio.TaskGroup() as tasks:
            taking = [tasks.create_task(self.intake.follow(source)) for source in self.sources]
            taking.append(tasks.create_task(self.intake.close_when_quiet()))
            working = tasks.create_task(self.handout.run())
            other = [
                tasks.create_task(self.recorder.run()),
                tasks.create_task(_outcome(self.keeping)),
                tasks.create_task(self._follow_pilots()),
                tasks.create_task(upkeep.keep_swept(self.ledger, self.store, sweep_s, self.clock)),
            ]
            serving = tasks.create_task(server.serve(sockets=[listener]))
            self.home.announce_station(_url(listener))
            log.info("the page is at %s", _url(listener))
            await self.stop_asked.wait()
            log.info("stopping; what runs gets %g s", self.experiment.station.grace_s)
            await _cancel(taking)
            await self.handout.stop(self.experiment.station.grace_s)
            await working
            await self.recorder.drain()
            await _cancel(other)
            self.feed.end()
            server.should_exit = True
            await serving

    async def _follow_pilots(self) -> None:
        while True:
            await self.pilots.changed.wait()
            self.pilots.changed.clear()
            log.info("%d pilot slots", self.pilots.slots())
            self.handout.wake()
            self.feed.tell("pilots", slots=self.pilots.slots())

    def _source(self, name: str) -> DirectorySource:
        async def known(stream: str, keys: Sequence[str]) -> set[Identity]:
            return await asyncio.to_thread(self._known, stream, keys)

        return DirectorySource(
            name,
            self.experiment.streams[name],
            self.experiment.instrument,
            self.home.path,
            clock=self.clock,
            known=known,
            is_open=self.intake.is_open,
        )

    def _known(self, stream: str, keys: Sequence[str]) -> set[Identity]:
        with self.ledger.reading() as connection:
            return arrivals.known(connection, stream, keys)

    def _server(self, settings: Settings) -> uvicorn.Server:
        app = create_app(
            experiment=self.experiment,
            ledger=self.ledger,
            store=self.store,
            facts=self._facts,
            events=self.feed.listen,
            token=settings.token.get_secret_value() if settings.token else None,
        )
        # Requests are not logged: their paths may carry the token.
        return _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_PAGE_STOP_S
            )
        )

    def _facts(self) -> StationFacts:
        backlog = self.handout.dispatcher.backlog()
        return StationFacts(
            at=self.clock.now(),
            started_at=self.started_at,
            version=p3s_prefect.__version__,
            state="stopping" if self.stop_asked.is_set() else "running",
            slots_nominal=0 if self.experiment.pilots.address else self.experiment.pilots.workers,
            slots_actual=self.pilots.slots(),
            running=self.handout.dispatcher.in_flight,
            queued=backlog.queued,
            oldest_taken_at=backlog.oldest_taken_at,
            sources=tuple(
                SourceFacts(
                    stream=source.name,
                    directory=str(source.root),
                    list_every_s=source.period_s,
                    listed_at=source.listed_at,
                    incomplete=source.incomplete,
                    problem=source.trouble,
                )
                for source in self.sources
            ),
            store_url=self.store.url,
            store_problem=self.recorder.trouble,
            store_free_bytes=_free_bytes(self.store),
            commit_s=self.committer.latency_s,
            ledger_problem=self.committer.trouble,
        )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The station deals with signals: pages are served until its work has ended."""
        yield


def _listen(experiment: Experiment, settings: Settings) -> socket.socket:
    host, port = experiment.station.host, experiment.station.port
    if settings.token is None and not _is_loopback(host):
        raise ServiceError(
            f"the page would be open to everybody on {host}",
            fix="Set P3S_TOKEN to a secret of your own, or station.host to 127.0.0.1.",
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ServiceError(
            f"the page cannot be served on {host}:{port}: {error.strerror}",
            fix="Another program has this port: stop it, or set station.port (0 takes a free one).",
        ) from error


def _lease_lost(group: ExceptionGroup[Exception]) -> LeaseLost | None:
    """What the holder was told, if that is among the reasons why everything ended."""
    for error in group.exceptions:
        found = _lease_lost(error) if isinstance(error, ExceptionGroup) else error
        if isinstance(found, LeaseLost):
            return found
    return None


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 -- what was bound, not what to bind
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _free_bytes(store: DirectoryStore) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(store.root).free
    return None


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(task: asyncio.Task[None]) -> None:
    """Ends as the task does: a lost lease ends the station, even if nothing is to be written."""
    await asyncio.shield(task)


async def _first(task: asyncio.Task[object], stop: asyncio.Event) -> bool:
    """Whether a task ended before the stop; if not, it is cancelled."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    stopping.cancel()
    return task.done() and not task.cancelled()
