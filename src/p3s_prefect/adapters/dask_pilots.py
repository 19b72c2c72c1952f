"""The pilot pool: Dask workers with a `slot` resource, handed one stage at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Collection, Iterable
from functools import partial, reduce
from math import inf
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import distributed
from dask.utils import parse_timedelta
from distributed.scheduler import KilledWorker

from p3s_prefect.adapters.buffer_leases import DaskLeases
from p3s_prefect.adapters.cluster_users import ClusterUser, note_user, refused, release_replaced
from p3s_prefect.adapters.pilot import worker
from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.ports import PilotLost
from p3s_prefect.core.records import StageOrder, StageReport, WaitingPlace, WaitingTold

log = logging.getLogger(__name__)

_T = TypeVar("_T")
SLOT = "slot"
_RECONNECT_S = 1.0
_COUNT_SLOTS_S = 0.5
_MESSAGE_INTERVAL_S = 0.001
# A pilot answers within milliseconds, unless it hangs as a whole, for which nobody should wait.
_ANSWER_S = 1.0


class DaskPilots:
    """A Dask cluster's workers as pilots. The scheduler may come and go: meanwhile there are no slots."""

    def __init__(
        self,
        address: str,
        modules: tuple[str, ...] = (),
        experiment: str = "",
        waiting: WaitingPlace | None = None,
        ledger: UUID | None = None,
        token: int = 0,
    ) -> None:
        """`waiting` is None where the store is on the pilots' machines: nothing waits for it.

        `ledger` is that of the station, and `token` that of its lease: a later one of the same takes over its pilots.
        """
        self.address = address
        self._waiting = waiting
        self._experiment = experiment
        self._ledger, self._token = ledger, token
        self._modules = modules
        self._client: distributed.Client | None = None
        self._slots = 0
        # Attempts of a station that was here before, by the address of their worker, until that says that they ended.
        self._left: dict[str, int] = {}
        self._futures: dict[int, distributed.Future[StageReport]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.buffer_leases = DaskLeases(self._member)
        """Those that the pilots have too."""

    async def __aenter__(self) -> DaskPilots:
        """Begins to look for the scheduler, and goes on as long as it is entered."""
        self._keeper = asyncio.create_task(self._keep_connected())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leaves the cluster; what still runs there is no longer ours."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._disconnect()

    def slots(self) -> int:
        """See `PilotPool.slots`."""
        return self._slots

    async def run(self, order: StageOrder, *, priority: int, patience_s: float) -> StageReport:
        """See `PilotPool.run`."""
        if self._client is None or self._client.status != "running":
            # Now, and not when they are counted next: else all that waits would be tried in vain meanwhile.
            self._set_slots(0)
            raise PilotLost("the scheduler cannot be reached", by_stage=False)
        key = f"{order.stage}-{order.attempt_id}-{uuid.uuid4().hex[:8]}"
        future = self._client.submit(
            worker.run_stage, order, key=key, priority=priority, resources={SLOT: 1}, retries=0, pure=False
        )
        self._futures[order.attempt_id] = future
        left_s = patience_s
        try:
            while left_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        return await _result(future)
                # It, or one before it at its pilot, may have to wait for the online buffer.
                left_s = patience_s - await self._buffer_quiet_s(key)
            if await self._abandon(key):
                reason = f"its pilot did not answer within {patience_s:g} s, and was ended"
                raise PilotLost(reason, by_stage=True)
            raise PilotLost(f"no pilot had it after {patience_s:g} s", by_stage=False)
        finally:
            del self._futures[order.attempt_id]
            future.release()

    async def stop(self, attempt_id: int) -> None:
        """See `PilotPool.stop`."""
        client, told = self._client, {}
        if client is None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                told = await client.run(worker.stop_attempt, attempt_id, on_error="ignore")
        future = self._futures.get(attempt_id)
        if future is not None and client.status == "running" and not any(told.values()):
            # No pilot has begun it, and none shall.
            await client.cancel([future], reason="it was taken back before it began")

    async def waiting(self) -> WaitingTold | None:
        """See `PilotPool.waiting`."""
        client, place = self._client, self._waiting
        if place is None or client is None or client.status != "running":
            return None if place is not None else WaitingTold()
        ask = partial(worker.waiting_told, place.directory, place.store_url)
        try:
            # A scheduler that was stopped holds up nobody who only wants to know.
            async with asyncio.timeout(_ANSWER_S):
                there = await client.run_on_scheduler(_slots_by_worker)
            told = await _ask(client, there, ask)
        except (OSError, TimeoutError):
            return None
        if not there or there.keys() - told.keys():
            return None
        return reduce(WaitingTold.and_those, told.values(), WaitingTold())

    async def drop_waiting(self, prefixes: Collection[str]) -> None:
        """See `PilotPool.drop_waiting`."""
        client, place = self._client, self._waiting
        if place is not None and client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    drop = partial(worker.drop_waiting, place.directory, place.store_url, frozenset(prefixes))
                    await client.run(drop, on_error="ignore")

    # --- inside -------------------------------------------------------------------------------------------------

    def _member(self) -> distributed.Client:
        if self._client is None:
            raise ConnectionError(f"{self.address} cannot be reached")
        return self._client

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._connect()
                while self._client is not None and self._client.status == "running":
                    self._set_slots(await self._free_slots(self._client))
                    await asyncio.sleep(_COUNT_SLOTS_S)
            except ServiceError as error:
                log.warning("no pilots: %s", error)
            except Exception as error:
                # Whatever the loss of a scheduler looks like at this moment: without this task nobody would look again.
                log.info("scheduler %s: %s: %s", self.address, type(error).__name__, error)
            self._set_slots(0)
            await self._disconnect()
            await asyncio.sleep(_RECONNECT_S)

    async def _connect(self) -> None:
        client = distributed.Client(
            self.address, asynchronous=True, timeout=parse_timedelta("5s"), set_as_default=False, name="p3s-station"
        )
        try:
            self._client = await client
        except BaseException:
            # Cancelled while it connects, it would be left to the garbage collector with what it has opened.
            await _close(client)
            raise
        # Messages wait 10 ms for company by default, which is most of a round trip: 10.6 ms, and 6.3 ms with 1 ms.
        if (batched := self._client.scheduler_comm) is not None:
            batched.interval = _MESSAGE_INTERVAL_S
        user = ClusterUser.here("station", self._experiment, self._ledger, self._token)
        rival = await self._client.run_on_scheduler(note_user, user=user, client=self._client.id)
        if rival is not None:
            raise refused(self.address, rival, user)
        await self._client.run_on_scheduler(_try_nothing_again)
        await self._take_over(self._client)
        await self._client.register_plugin(_PilotPlugin(self._modules, self._waiting), name="p3s-pilot")

    async def _take_over(self, client: distributed.Client) -> None:
        """Ends what an earlier station has begun: its attempts were given back, and what they give comes too late."""
        await client.run_on_scheduler(release_replaced, client=client.id)
        there = await client.run_on_scheduler(_slots_by_worker)
        # Who does not answer may have something running: counted as long as it does not say otherwise.
        self._left = dict.fromkeys(there, 1) | await _ask(client, there, worker.stop_all)

    async def _free_slots(self, client: distributed.Client) -> int:
        """All slots but those that an earlier station's attempts have not given back."""
        there: dict[str, int] = await client.run_on_scheduler(_slots_by_worker)
        self._left = {address: number for address, number in self._left.items() if number and address in there}
        self._left |= await _ask(client, self._left, worker.count_running)
        return sum(there.values()) - sum(min(there[address], number) for address, number in self._left.items())

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    def _set_slots(self, slots: int) -> None:
        if slots != self._slots:
            self._slots = slots
            self.changed.set()

    async def _buffer_quiet_s(self, key: str) -> float:
        """How long the worker that has this has neither waited for the online buffer nor read it; infinite if unknown.

        A worker that hangs while it reads is as quiet as any other.
        """
        return min((await self._ask_holder(key, worker.buffer_quiet_s))[1].values(), default=inf)

    async def _abandon(self, key: str) -> bool:
        """Ends the worker that does not answer, which whoever keeps the pilots running starts anew.

        False if no worker is known to have it.
        """
        return (await self._ask_holder(key, worker.leave))[0] is not None

    async def _ask_holder(self, key: str, what: Callable[[], _T]) -> tuple[str | None, dict[str, _T]]:
        """The worker that has this, None if none is known, and what it answers, if it does in time."""
        client, address, answers = self._client, None, {}
        if client is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    address = await client.run_on_scheduler(_where_processed, key=key)
                    if address is not None:
                        answers = await client.run(what, workers=[address], on_error="ignore")
        return address, answers


class _PilotPlugin(distributed.WorkerPlugin):
    """Makes a worker a pilot: its stage runner is there, and has imported the payloads, before its first stage."""

    def __init__(self, modules: tuple[str, ...], waiting: WaitingPlace | None) -> None:
        self._modules = modules
        self._waiting = waiting

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker."""
        from p3s_prefect.adapters.pilot.worker import drain, stage_runner

        # Dask removes this directory at the worker's end; after a kill -9, when the next worker starts beside it.
        stage_runner(self._modules, Path(worker.local_directory))
        if self._waiting is not None:
            drain(self._waiting.directory)


async def _close(client: distributed.Client) -> None:
    # Whatever the loss of a scheduler looks like at this moment, nobody would catch it where this is called.
    with contextlib.suppress(Exception):
        await client.close(timeout=1)


async def _result(future: distributed.Future[StageReport]) -> StageReport:
    try:
        report: StageReport = await future
    except KilledWorker as error:
        raise PilotLost("its pilot was lost", by_stage=True) from error
    except (distributed.client.FutureCancelledError, Exception) as error:
        if future.status == "error":
            # The stage runner's own errors stand in its report: this pilot is broken, or cannot even read the order.
            # Not counted as a loss, it would be tried again at once, and for ever.
            raise PilotLost(f"its pilot cannot run it: {type(error).__name__}: {error}"[:500], by_stage=True) from error
        raise PilotLost(f"no pilot has it any more: {error}", by_stage=False) from error
    return report


def _try_nothing_again(dask_scheduler: Any) -> None:
    # By default Dask gives a stage that kills its worker to three more. The dispatcher tries again, and counts; and a
    # scheduler that was started by others has not been told so.
    dask_scheduler.allowed_failures = 0


def _slots_by_worker(dask_scheduler: Any) -> dict[str, int]:
    return {address: int(state.resources.get(SLOT, 0)) for address, state in dask_scheduler.workers.items()}


async def _ask(client: distributed.Client, addresses: Iterable[str], what: Callable[[], _T]) -> dict[str, _T]:
    """What each of these workers answers, if it does in time."""

    async def ask(address: str) -> dict[str, _T]:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                answers: dict[str, _T] = await client.run(what, workers=[address], on_error="ignore")
                return answers
        return {}

    answers = await asyncio.gather(*(ask(address) for address in addresses))
    return {address: told for answer in answers for address, told in answer.items()}


def _where_processed(key: str, dask_scheduler: Any) -> str | None:
    task = dask_scheduler.tasks.get(key)
    return task.processing_on.address if task is not None and task.processing_on is not None else None
