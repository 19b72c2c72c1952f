"""From decisions to results: what the dispatcher starts goes to a pilot, and its outcome into the ledger."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import asked, execution
from p3s_prefect.core.admission import Admission
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher, Start
from p3s_prefect.core.errors import Conflict, InputMissing
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.ports import Clock, PilotLost, PilotPool
from p3s_prefect.core.records import (
    BufferUse,
    CacheUse,
    Failure,
    Manifest,
    StageOrder,
    StageReport,
    SubJobFact,
    Transition,
)
from p3s_prefect.core.retry import NextState
from p3s_prefect.core.states import StageState
from p3s_prefect.station import settling

if TYPE_CHECKING:
    from p3s_prefect.station.breaker import Breakers
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations
    from p3s_prefect.station.recorder import Recorder

log = logging.getLogger(__name__)

# Beyond the budgets of a stage and of one that may stand before it at its pilot: for fetching and publishing.
_PATIENCE_S = 60.0

# What was killed has this long to say so; what does not is found again when the next station starts.
_STOP_S = 5.0


class Handout:
    """Runs what the dispatcher decides."""

    def __init__(
        self,
        catalogue: Generations,
        committer: Committer,
        pilots: PilotPool,
        recorder: Recorder,
        feed: Feed,
        clock: Clock,
        breakers: Breakers,
    ) -> None:
        self.dispatcher = Dispatcher(catalogue.experiment.pipelines, catalogue.experiment.classes)
        self._catalogue = catalogue
        self._committer = committer
        self._pilots = pilots
        self._recorder = recorder
        self._feed = feed
        self._clock = clock
        self._breakers = breakers
        self.cache_use = CacheUse()
        """How often the pilots' local caches had what was read, since the station started."""
        self.buffer_use = BufferUse()
        """What the pilots have read from the online buffer since then."""
        self._wake = asyncio.Event()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._orders: dict[int, StageOrder] = {}
        self._cancelled: dict[int, str] = {}
        self._ending: set[int] = set()
        """What waits no more, while that is committed."""
        self.waiting: dict[int, execution.Waiting] = {}
        """Attempts whose outputs wait for the store, by stage run; `WaitingAttempts` looks after them."""
        self.look_first: Callable[[], Awaitable[None]] | None = None
        """What brings the overrides up to date before a decision, should they be old."""
        self._stopping = False
        self._patience_s = _patience_s(catalogue.experiment)

    def wake(self) -> None:
        """Something changed: decide again."""
        self._wake.set()

    def offer(self, pipeline: str, data_id: DataId, u: float, first_q: float, taken_at: float) -> Admission:
        """How a unit begins, at the admission probability of this moment; add it then, or withdraw it."""
        now = self._clock.now()
        return self.dispatcher.offer(pipeline, data_id, u=u, first_q=first_q, taken_at=taken_at, now=now)

    def withdraw(self, pipeline: str, data_id: DataId) -> None:
        """What was offered is not new. No harm if it was added meanwhile."""
        self.dispatcher.withdraw(pipeline, data_id)

    async def add(self, fact: SubJobFact) -> None:
        """Takes a sub-job that the ledger has let in."""
        if all(stage.state.is_terminal for stage in fact.stages):
            return
        await self._apply(self.dispatcher.add(fact, self._clock.now()))
        self.wake()

    def resume_waiting(self, found: Sequence[execution.Waiting]) -> None:
        """Takes up what an earlier station has left waiting, once its sub-jobs were added."""
        for one in found:
            self.waiting[one.stage_run_id] = one
            self.dispatcher.returned(one.stage_run_id)

    def define(self) -> None:
        """The experiment file was read again: its definitions are those of what comes from now on."""
        experiment = self._catalogue.experiment
        self.dispatcher.define(experiment.pipelines, experiment.classes)
        # What is open may stand before what comes, at a pilot.
        self._patience_s = max(self._patience_s, _patience_s(experiment))
        self.wake()

    async def control(self, controls: Controls) -> None:
        """From now on these overrides are in force; nothing running is touched."""
        await self._apply(self.dispatcher.control(controls, self._clock.now()))
        self.wake()

    async def take_back(self, fact: SubJobFact, changes: list[Transition]) -> bool:
        """Lets stage runs of an open sub-job go on (see `core.retry`), with deadlines from now on.

        False if nothing of it is open here.
        """
        if not self.dispatcher.holds(fact):
            return False
        now = self._clock.now()
        # Before anybody waits: the ledger is told in the order in which things were decided.
        follow = self.dispatcher.take_back(changes, now)
        await self._committer.do(lambda connection: asked.take_back(connection, fact, [*changes, *follow], now))
        self._feed.tell("stages", number=len(changes) + len(follow))
        self.wake()
        return True

    async def cancel(self, facts: list[SubJobFact], reason: str) -> None:
        """Gives up what is open of these sub-jobs; what runs is killed."""
        wanted = [stage.id for fact in facts for stage in fact.stages]
        running = [number for number in wanted if number in self._running]
        self._cancelled |= dict.fromkeys([*running, *self._ending.intersection(wanted)], reason)
        await self._apply(self.dispatcher.cancel(wanted, reason, self._clock.now()))
        ended = []
        for number in wanted:
            if (one := self.waiting.get(number)) is not None:
                await self._cancel_waiting(one, reason)
                ended.append(one.prefix)
        if ended:
            # All at once: each pilot looks through everything that waits on its machine.
            await self._pilots.drop_waiting(ended)
        for number in running:
            if (order := self._orders.get(number)) is not None:
                await self._pilots.stop(order.attempt_id)
        self.wake()

    async def publish_waiting(self, one: execution.Waiting, manifest: Manifest) -> None:
        """Publishes what has waited, if it still waits."""
        # Before anybody waits: else somebody might cancel it meanwhile.
        if self.waiting.pop(one.stage_run_id, None) is None:
            return
        now = self._clock.now()
        try:
            record = await self._committer.do(lambda connection: settling.publish(connection, manifest, now))
        except Conflict as conflict:
            log.error("%s", conflict)
            reason = conflict.what
            after = await self._committer.do(
                lambda connection: settling.refuse(connection, one.attempt_id, one.stage_run_id, reason, now)
            )
        else:
            self._recorder.add(record)
            after = NextState(state=StageState.DONE)
        await self._settle(one.stage_run_id, after)
        self.wake()

    async def lose_waiting(self, one: execution.Waiting) -> None:
        """Nobody has the outputs of an attempt any more."""
        now = self._clock.now()
        gone = f"on {one.pilot} are gone" if one.pilot else "were not made"
        await self._end_waiting(
            one,
            lambda connection: settling.lose(
                connection, one.attempt_id, one.stage_run_id, f"its outputs {gone}", now, by_stage=False
            ),
        )

    async def give_up_waiting(self, one: execution.Waiting, reason: str) -> None:
        """The store can never take the outputs of an attempt: its stage's retries decide."""
        now = self._clock.now()

        def end(connection: Connection) -> NextState:
            stage = self._catalogue.stage(connection, one.stage_run_id)
            return settling.give_up_outputs(connection, one.attempt_id, one.stage_run_id, stage, reason, now)

        await self._end_waiting(one, end)

    def wait_on(self, one: execution.Waiting) -> None:
        """Others are looked at before this one is again."""
        if self.waiting.pop(one.stage_run_id, None) is not None:
            self.waiting[one.stage_run_id] = one

    async def run(self) -> None:
        """Decides whenever something changed or is due, until cancelled or stopped."""
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping:
                self._wake.clear()
                if self.look_first is not None:
                    await self.look_first()
                self.dispatcher.set_slots(self._pilots.slots())
                decided = self.dispatcher.decide(self._clock.now())
                await self._apply(list(decided.transitions))
                for start in decided.starts:
                    self._running[start.stage_run_id] = tasks.create_task(self._run_one(start))
                await self._until_due()

    async def stop(self, grace_s: float) -> None:
        """Starts nothing more; what runs gets `grace_s` to end, and goes back to the queue then (V22)."""
        self._stopping = True
        self.wake()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace_s)
        # The last ones first: what no pilot has begun must not begin when a slot becomes free.
        for order in reversed(list(self._orders.values())):
            await self._pilots.stop(order.attempt_id)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=_STOP_S)
        for task in self._running.values():
            task.cancel()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _until_due(self) -> None:
        due_at = self.dispatcher.wake_at()
        wait_s = None if math.isinf(due_at) else max(0.0, due_at - self._clock.now())
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _apply(self, changes: list[Transition]) -> None:
        if changes:
            now = self._clock.now()
            await self._committer.do(lambda connection: execution.apply(connection, changes, now))
            self._feed.tell("stages", number=len(changes))

    async def _run_one(self, start: Start) -> None:
        try:
            order = await self._open(start)
            if order is not None and start.stage_run_id in self._cancelled:
                self._free_slot(order)
                await self._lost(order, PilotLost("it was cancelled before it began", by_stage=False))
            elif order is not None:
                self._orders[start.stage_run_id] = order
                await self._attempt(order, start.priority)
        finally:
            self._cancelled.pop(start.stage_run_id, None)
            self._orders.pop(start.stage_run_id, None)
            self._running.pop(start.stage_run_id, None)
            self.wake()

    async def _open(self, start: Start) -> StageOrder | None:
        now = self._clock.now()
        try:
            return await self._committer.do(
                lambda connection: self._catalogue.open_attempt(connection, start.stage_run_id, now)
            )
        except InputMissing as error:
            reason = error.what
            after = await self._committer.do(
                lambda connection: settling.block(connection, start.stage_run_id, reason, now)
            )
            await self._settle(start.stage_run_id, after)
            return None

    async def _attempt(self, order: StageOrder, priority: int) -> None:
        self._feed.tell("running", data_id=str(order.data_id), stage=order.stage)
        begun_at = self._clock.now()
        try:
            report = await self._pilots.run(order, priority=priority, patience_s=order.budget_s + self._patience_s)
        except PilotLost as lost:
            self._free_slot(order)
            await self._lost(order, lost)
        else:
            self._free_slot(order)
            self._breakers.ended(order, begun_at, report)
            self.cache_use = self.cache_use.and_then(report.cache)
            self.buffer_use = self.buffer_use.and_then(report.buffer)
            if report.waits:
                await self._wait(order, report)
            elif report.manifest is not None:
                await self._publish(order, report, report.manifest)
            else:
                await self._failed(order, report)

    def _free_slot(self, order: StageOrder) -> None:
        """The next stage starts while this one's outcome is committed."""
        self.dispatcher.returned(order.stage_run_id)
        self.wake()

    async def _wait(self, order: StageOrder, report: StageReport) -> None:
        now = self._clock.now()
        one = await self._committer.do(
            lambda connection: execution.wait(
                connection, order.attempt_id, now, execution=report.execution, pilot=report.pilot
            )
        )
        log.warning("%s of %s waits on %s for the store", order.stage, order.data_id, report.pilot)
        self.dispatcher.waits(order.stage_run_id, report.ended_at - report.started_at)
        self.waiting[order.stage_run_id] = one
        self._feed.tell("waits")
        if (reason := self._cancelled.get(order.stage_run_id)) is not None:
            await self._cancel_waiting(one, reason)
            await self._pilots.drop_waiting([one.prefix])

    async def _cancel_waiting(self, one: execution.Waiting, reason: str) -> None:
        now = self._clock.now()
        await self._end_waiting(
            one, lambda connection: settling.cancel(connection, one.attempt_id, one.stage_run_id, reason, now)
        )

    async def _end_waiting(self, one: execution.Waiting, end: Callable[[Connection], NextState]) -> None:
        if self.waiting.pop(one.stage_run_id, None) is None:
            return
        with self._until_settled(one.stage_run_id):
            after = await self._committer.do(end)
            await self._settle(one.stage_run_id, after)
        self.wake()

    @contextmanager
    def _until_settled(self, stage_run_id: int) -> Iterator[None]:
        """Who cancels it meanwhile finds it neither waiting nor running; `_settle` then cancels what it became."""
        self._ending.add(stage_run_id)
        try:
            yield
        finally:
            self._ending.discard(stage_run_id)
            # Once settled it may run again, and be cancelled as that.
            if stage_run_id not in self._running:
                self._cancelled.pop(stage_run_id, None)

    async def _publish(self, order: StageOrder, report: StageReport, manifest: Manifest) -> None:
        now = self._clock.now()
        try:
            record = await self._committer.do(lambda connection: settling.publish(connection, manifest, now))
        except Conflict as conflict:
            log.error("%s", conflict)
            await self._failed(order, report, Failure.INPUT, conflict.what)
            return
        self._recorder.add(record)
        await self._settle(order.stage_run_id, NextState(state=StageState.DONE), report.service_s)

    async def _failed(
        self, order: StageOrder, report: StageReport, failure: Failure | None = None, reason: str = ""
    ) -> None:
        now = self._clock.now()
        after = await self._committer.do(
            lambda connection: settling.fail(
                connection,
                order,
                self._catalogue.stage(connection, order.stage_run_id),
                report,
                now,
                failure=failure,
                reason=reason,
            )
        )
        await self._gave_nothing(order, reason or report.reason, after, report.service_s)

    async def _lost(self, order: StageOrder, lost: PilotLost) -> None:
        now, reason, by_stage = self._clock.now(), str(lost), lost.by_stage
        after = await self._committer.do(
            lambda connection: settling.lose(
                connection, order.attempt_id, order.stage_run_id, reason, now, by_stage=by_stage
            )
        )
        await self._gave_nothing(order, reason, after)

    async def _gave_nothing(
        self, order: StageOrder, reason: str, after: NextState, service_s: float | None = None
    ) -> None:
        log.warning("%s of %s gave no results: %s; now %s", order.stage, order.data_id, reason, after.state)
        await self._settle(order.stage_run_id, after, service_s)

    async def _settle(self, stage_run_id: int, after: NextState, service_s: float | None = None) -> None:
        now = self._clock.now()
        not_before = now + after.delay_s if after.delay_s else 0.0
        changes = self.dispatcher.settle(stage_run_id, after.state, now=now, not_before=not_before, service_s=service_s)
        if (reason := self._cancelled.get(stage_run_id)) is not None:
            changes += self.dispatcher.cancel([stage_run_id], reason, now)
        await self._apply(changes)
        self._feed.tell("settled", state=after.state)


def _patience_s(experiment: Experiment) -> float:
    stages = (stage for pipeline in experiment.pipelines.values() for stage in pipeline.stages.values())
    return max(sum(step.timeout_s for step in stage.steps) for stage in stages) + _PATIENCE_S
