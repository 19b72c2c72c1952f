"""The station as a process: joins everything, serves the page, and stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import uvicorn
from sqlalchemy import Connection
from starlette.applications import Starlette

import p3s_prefect
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.cluster_users import refuse_productions
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import arrivals, execution, groups, reconfigured
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.own_store import make_ready
from p3s_prefect.adapters.store_owner import owner_of
from p3s_prefect.adapters.stores import is_local
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.errors import LeaseLost, StoreTaken, StoreUnreachable
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import BufferFacts, StationFacts
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Identity, SubJobFact, WaitingPlace
from p3s_prefect.settings import Settings
from p3s_prefect.station import upkeep
from p3s_prefect.station.breaker import Breakers
from p3s_prefect.station.catalogue import Catalogue
from p3s_prefect.station.checksums import Checksums
from p3s_prefect.station.committer import Committer
from p3s_prefect.station.feed import Feed
from p3s_prefect.station.generations import Generations
from p3s_prefect.station.handout import Handout
from p3s_prefect.station.intake import Intake
from p3s_prefect.station.page import listen, page_server, page_url
from p3s_prefect.station.recorder import Recorder
from p3s_prefect.station.recovery import manifests, put_off, recover
from p3s_prefect.station.reloading import Reloading
from p3s_prefect.station.requested import Requested
from p3s_prefect.station.sources import Source, SourceMaker, buffer_problem, hint, sight, source_facts
from p3s_prefect.station.steering import Steering
from p3s_prefect.station.store_watch import StoreWatch
from p3s_prefect.station.waiting import WaitingAttempts
from p3s_prefect.web.app import create_app
from p3s_prefect.web.face import Face

log = logging.getLogger(__name__)

# Closing the books takes well under a second, and the store may keep the recorder waiting for 5 s; a ledger that is
# away would keep a station from ending until it is killed.
_BOOKS_S = 7.0


async def serve(home: Home, settings: Settings, scheduler: str) -> None:
    """Runs a station until SIGTERM or SIGINT; `scheduler` is the address of the pilots' Dask scheduler.

    Raises:
        P3sError: it cannot start, or lost its lease; the message says why.
    """
    text = home.text()
    experiment = home.parse(text)
    if experiment.pilots.address is not None:
        await asyncio.to_thread(refuse_productions, scheduler)
    listener = listen(experiment, settings)
    ledger = home.ledger(experiment)
    ledger.migrate()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await asyncio.to_thread(make_ready, home)
    station = _Station(home=home, text=text, experiment=experiment, ledger=ledger, store=home.store(experiment))
    try:
        await station.run(settings, scheduler, listener, stop)
    except ExceptionGroup as group:
        if (taken := _taken_over(group)) is not None:
            raise taken from group
        raise
    finally:
        home.withdraw_station()
        ledger.close()


@dataclass
class _Station:
    home: Home
    text: str
    """Of the experiment file, as it was read."""
    experiment: Experiment
    ledger: Ledger
    store: ObjectStore

    async def run(self, settings: Settings, scheduler: str, listener: socket.socket, stop: asyncio.Event) -> None:
        self.clock = SystemClock()
        self.feed = Feed()
        self.stop_asked = stop
        self.started_at = self.clock.now()
        self.sources: list[Source] = []
        self.store_watch = StoreWatch(self.store)
        await self.store_watch.begin()
        lease_s = self.experiment.station.lease_s
        waiting = asyncio.create_task(upkeep.take_lease(self.ledger, self.experiment.experiment, lease_s))
        if not await _first(waiting, stop):
            return
        lease = waiting.result()
        self.owner = owner_of(self.ledger, self.home, self.experiment, self.clock.now())
        if not self.store_watch.trouble:
            # To wait for one that does not answer might take longer than the lease.
            await asyncio.to_thread(upkeep.claim_store, self.store, self.owner)
        catalogue = Catalogue(self.experiment, self.home.path.resolve(), self.store.url)
        # Now, and not at the first arrival: a program that cannot be read is a reason not to start.
        await asyncio.to_thread(lambda: catalogue.collections)
        async with AsyncExitStack() as stack:
            self.committer = await stack.enter_async_context(Committer(self.ledger, lease))
            # From now on: recovering and resuming may take longer than the lease after a long outage.
            self.keeping = asyncio.create_task(upkeep.keep_lease(self.committer, lease, lease_s))
            stack.push_async_callback(_cancel, [self.keeping])
            self.recorder = Recorder(self.store, self.committer, self.ledger)
            await self._recover()
            await self._retire(catalogue)
            modules, place = catalogue.payload_modules, self._waiting_place()
            name, ledger = self.experiment.experiment, self.owner.ledger
            pilots = DaskPilots(scheduler, modules, name, place, ledger, lease.token)
            self.pilots = await stack.enter_async_context(pilots)
            self.catalogue = Generations(catalogue)
            self.breakers = Breakers(self.catalogue, self.committer, self.feed, self.clock)
            await self.breakers.resume()
            self.handout = Handout(
                self.catalogue, self.committer, self.pilots, self.recorder, self.feed, self.clock, self.breakers
            )
            self.waiting = WaitingAttempts(self.handout, self.store, self.store_watch, self.pilots, self.clock)
            self.checksums = Checksums(self.pilots.buffer_leases)
            stack.callback(self.checksums.end)
            self.intake = Intake(self.catalogue, self.committer, self.handout, self.feed, self.clock, self.checksums)
            self.intake.sight = lambda: sight(self.sources)
            self.steering = Steering(self.ledger, self.committer, self.handout, self.feed, self.clock)
            # Before anything may start.
            await self.steering.look()
            self.handout.look_first = self.steering.catch_up
            await self._resume()
            self.sources = [self._maker().make(self.experiment, name) for name in self.experiment.streams]
            app = self._app(settings)
            self.face: Face = app.state.face
            await self._until_stopped(page_server(app), listener)
            if not self.committer.trouble:
                await self.committer.do(partial(upkeep.release, lease=lease))

    # --- inside -------------------------------------------------------------------------------------------------

    def _waiting_place(self) -> WaitingPlace | None:
        if is_local(self.store.url):
            return None
        return WaitingPlace(store_url=self.store.url, directory=self.experiment.pilots.waiting_directory)

    async def _recover(self) -> None:
        now = self.clock.now()
        try:
            complete = await upkeep.read_patiently(self.ledger, partial(manifests, store=self.store))
        except StoreUnreachable as error:
            number = await self.committer.do(lambda connection: put_off(connection, now))
            log.warning("what became of %d stages that ran shows when the store is back: %s", number, error.what)
        else:
            published, given_back = await self.committer.do(lambda connection: recover(connection, complete, now))
            if published or given_back:
                log.info("recovered: %d results published, %d stages back in the queue", published, given_back)
        unrecorded = await self.committer.do(
            lambda connection: [commit_record(connection, found) for found in execution.unrecorded(connection)]
        )
        for record in unrecorded:
            self.recorder.add(record)

    async def _retire(self, catalogue: Catalogue) -> None:
        now = self.clock.now()
        retired = await self.committer.do(
            lambda connection: reconfigured.retire(
                connection, catalogue.collections, catalogue.admission, catalogue.by_hand, now
            )
        )
        if retired:
            log.warning("the configuration changed: %d open sub-jobs go on in new passes", retired)

    async def _resume(self) -> None:
        # Read beside the writer, who keeps the lease meanwhile: after a long outage this takes its time.
        open_sub_jobs, open_groups = await upkeep.read_patiently(self.ledger, _open_work)
        self.intake.resume(open_groups)
        for fact in open_sub_jobs:
            await self.handout.add(fact)
        self.handout.resume_waiting(await upkeep.read_patiently(self.ledger, execution.waiting))

    async def _until_stopped(self, server: uvicorn.Server, listener: socket.socket) -> None:
        """Runs everything until it is asked to stop; if one part fails, the station ends, and is started anew."""
        sweep_s = self.experiment.store.sweep_after_s
        async with asyncio.TaskGroup() as tasks:
            self.tasks = tasks
            self.following = {source.name: tasks.create_task(self.intake.follow(source)) for source in self.sources}
            closing = tasks.create_task(self.intake.close_when_quiet())
            reloading = tasks.create_task(self._reloading().run())
            asked_for = tasks.create_task(self._requested().run())
            working = tasks.create_task(self.handout.run())
            other = [
                tasks.create_task(self.recorder.run()),
                tasks.create_task(self.store_watch.run()),
                tasks.create_task(self.waiting.run()),
                tasks.create_task(_outcome(self.keeping)),
                tasks.create_task(self._follow_pilots()),
                tasks.create_task(self.breakers.run()),
                tasks.create_task(self.steering.run()),
                tasks.create_task(upkeep.keep_exported(self.ledger, self.store, self.clock)),
                tasks.create_task(upkeep.keep_swept(self.ledger, self.store, self.owner, sweep_s, self.clock)),
            ]
            serving = tasks.create_task(server.serve(sockets=[listener]))
            self.home.announce_station(page_url(listener), self.text)
            log.info("the page is at %s", page_url(listener))
            await self.stop_asked.wait()
            log.info("stopping; what runs gets %g s", self.experiment.station.grace_s)
            # Together: a reload would begin to follow again what is followed no more.
            await _cancel([reloading, asked_for, closing, *self.following.values()])
            await self.handout.stop(self.experiment.station.grace_s)
            try:
                async with asyncio.timeout(_BOOKS_S):
                    await working
                    await self.recorder.drain()
            except TimeoutError:
                log.error("the ledger cannot be written: what ran is settled by the next station")
            await _cancel([working, *other])
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

    def _reloading(self) -> Reloading:
        return Reloading(
            home=self.home,
            ledger=self.ledger,
            catalogue=self.catalogue,
            committer=self.committer,
            intake=self.intake,
            handout=self.handout,
            feed=self.feed,
            clock=self.clock,
            adopt=self._adopt,
        )

    def _requested(self) -> Requested:
        return Requested(
            ledger=self.ledger,
            catalogue=self.catalogue,
            committer=self.committer,
            intake=self.intake,
            handout=self.handout,
            feed=self.feed,
            clock=self.clock,
        )

    async def _adopt(self, experiment: Experiment) -> None:
        """The experiment file was read again: follows its streams, and shows it."""
        old, self.experiment, self.face.experiment = self.experiment, experiment, experiment
        streams = {**old.streams, **experiment.streams}
        changed = [name for name in streams if old.streams.get(name) != experiment.streams.get(name)]
        await _cancel([self.following.pop(name) for name in changed if name in self.following])
        self.sources = [source for source in self.sources if source.name not in changed]
        for name in changed:
            if name in experiment.streams:
                source = self._maker().make(experiment, name)
                self.sources.append(source)
                self.following[name] = self.tasks.create_task(self.intake.follow(source))

    def _maker(self) -> SourceMaker:
        async def known(stream: str, keys: Sequence[str]) -> set[Identity]:
            return await upkeep.read_patiently(self.ledger, partial(arrivals.known, stream=stream, keys=keys))

        return SourceMaker(
            home=self.home, clock=self.clock, known=known, is_open=self.intake.is_open, checksums=self.checksums
        )

    def _app(self, settings: Settings) -> Starlette:
        return create_app(
            experiment=self.experiment,
            ledger=self.ledger,
            store=self.store,
            facts=self._facts,
            events=self.feed.listen,
            hint=lambda notices: hint(self.sources, notices),
            token=settings.token.get_secret_value() if settings.token else None,
        )

    def _facts(self) -> StationFacts:
        now, backlog = self.clock.now(), self.handout.dispatcher.backlog()
        fresh = self.handout.dispatcher.freshest_first(now)
        return StationFacts(
            at=now,
            started_at=self.started_at,
            version=p3s_prefect.__version__,
            state="stopping" if self.stop_asked.is_set() else "running",
            slots_nominal=0 if self.experiment.pilots.address else self.experiment.pilots.workers,
            slots_actual=self.pilots.slots(),
            running=self.handout.dispatcher.in_flight,
            queued=backlog.queued,
            oldest_taken_at=backlog.oldest_taken_at,
            owed_until=self.handout.dispatcher.owed_until(now),
            freshest_first={name: before if math.isfinite(before) else None for name, before in fresh.items()},
            sources=tuple(map(source_facts, self.sources)),
            store_url=self.store.url,
            store_problem=self.store_watch.trouble,
            store_free_bytes=self.store.free_bytes(),
            refused_records=self.recorder.refused,
            record_problem=self.recorder.trouble,
            waiting_attempts=self.waiting.number,
            waiting_bytes=self.waiting.size_bytes,
            commit_s=self.committer.latency_s,
            ledger_problem=self.committer.trouble,
            breakers=self.breakers.facts(),
            is_supervised=Services(self.home).keeps_this_process(),
            cache_hits=self.handout.cache_use.hits,
            cache_misses=self.handout.cache_use.misses,
            cache_problem=self.handout.cache_use.trouble,
            buffer=self._buffer_facts(),
        )

    def _buffer_facts(self) -> BufferFacts | None:
        declared = self.experiment.buffer
        if declared is None:
            return None
        return BufferFacts(
            directory=declared.directory,
            limits=BufferLimits(max_reads=declared.max_reads, bytes_per_s=declared.bytes_per_s),
            use=self.handout.buffer_use.and_then(self.checksums.use),
            problem=buffer_problem(self.sources),
        )


def _open_work(connection: Connection) -> tuple[list[SubJobFact], list[GroupFact]]:
    return execution.open_sub_jobs(connection), groups.open_groups(connection)


def _taken_over(group: ExceptionGroup[Exception]) -> LeaseLost | StoreTaken | None:
    """That the ledger or the store is somebody else's now, if this is among the reasons why everything ended."""
    for error in group.exceptions:
        found = _taken_over(error) if isinstance(error, ExceptionGroup) else error
        if isinstance(found, LeaseLost | StoreTaken):
            return found
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
