"""Breakers at work: they hear how attempts end, and write into the ledger what follows for their pipelines (V17)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING

from p3s_prefect.adapters.ledger import breakers, overrides
from p3s_prefect.core.breaker import BreakerState, Circuit, end_of
from p3s_prefect.core.experiment import Breaker
from p3s_prefect.core.health import BreakerFacts
from p3s_prefect.core.overrides import Override, OverrideKind
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.records import Failure, StageOrder, StageReport

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations

log = logging.getLogger(__name__)

# How soon it is known that somebody has released a pipeline; the queue itself goes on before that.
_LOOK_EVERY_S = 1.0
_STATES = {OverrideKind.PAUSE: BreakerState.OPEN, OverrideKind.LIMIT: BreakerState.HALF_OPEN}
_LEVELS = {
    BreakerState.OPEN: logging.ERROR,
    BreakerState.HALF_OPEN: logging.WARNING,
    BreakerState.CLOSED: logging.WARNING,
}


class Breakers:
    """The breakers of all pipelines. `ended` only counts; `run` alone writes, so that nothing overtakes anything."""

    def __init__(self, catalogue: Generations, committer: Committer, feed: Feed, clock: Clock) -> None:
        self._catalogue = catalogue
        self._committer = committer
        self._feed = feed
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}
        self._written: dict[str, tuple[BreakerState, float]] = {}
        self._overrides: dict[str, Override] = {}
        self._wake = asyncio.Event()

    async def resume(self) -> None:
        """Takes over the breakers that were not closed when the last station ended."""
        for one in await self._committer.do(breakers.of_breakers):
            pipeline, state = one.target.pipeline or "", _STATES[one.kind]
            self._written[pipeline], self._overrides[pipeline] = (state, one.set_at), one
            rule = self._rule(pipeline)
            if rule is None:
                await self._retire(pipeline)
                continue
            self._circuits[pipeline] = Circuit(rule=rule, state=state, since=one.set_at, why=one.why)
            log.warning("the breaker of pipeline %s is still %s: %s", pipeline, state, one.why)

    def ended(self, order: StageOrder, begun_at: float, report: StageReport) -> None:
        """An attempt has ended that a pilot began at `begun_at`: well, or with a failure."""
        circuit = self._circuit(order.pipeline)
        end = end_of(
            at=self._clock.now(),
            begun_at=begun_at,
            stage=order.stage,
            stage_run_id=order.stage_run_id,
            failure=None if report.manifest is not None else report.failure or Failure.STORE,
            reason=report.reason,
        )
        if circuit is not None and end is not None and circuit.ended(end):
            self._wake.set()

    async def run(self) -> None:
        """Lets canaries through when they are due, and hears of commands, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                # Without an open breaker there is nothing to wait for but the first to open.
                async with asyncio.timeout(_LOOK_EVERY_S if self._overrides else None):
                    await self._wake.wait()
            self._wake.clear()
            await self._look()
            for pipeline in list(self._circuits):
                await self._see_to(pipeline)

    def facts(self) -> tuple[BreakerFacts, ...]:
        """Those that are not closed, by the names of their pipelines."""
        return tuple(
            BreakerFacts(
                pipeline=name,
                state=circuit.state,
                since=circuit.since,
                why=circuit.why,
                lift=self._overrides[name].lift,
                canary_at=None if math.isinf(circuit.wake_at()) else circuit.wake_at(),
            )
            for name, circuit in sorted(self._circuits.items())
            # Told as soon as it acts: when it is in the ledger.
            if circuit.state is not BreakerState.CLOSED and name in self._overrides
        )

    # --- inside -------------------------------------------------------------------------------------------------

    def _rule(self, pipeline: str) -> Breaker | None:
        found = self._catalogue.experiment.pipelines.get(pipeline)
        return None if found is None else found.breaker

    def _circuit(self, pipeline: str) -> Circuit | None:
        rule = self._rule(pipeline)
        if rule is None:
            return None
        circuit = self._circuits.setdefault(pipeline, Circuit(rule=rule))
        circuit.rule = rule  # that of the experiment file as it is now
        return circuit

    async def _look(self) -> None:
        """What is no longer in force was lifted, or replaced, by somebody: their word counts."""
        if not self._overrides:
            return
        in_force = await self._committer.do(overrides.ids_in_force)
        for pipeline, one in list(self._overrides.items()):
            if one.id not in in_force:
                del self._overrides[pipeline]
                self._circuits[pipeline].release(self._clock.now())

    async def _see_to(self, pipeline: str) -> None:
        circuit = self._circuit(pipeline)
        if circuit is None:
            await self._retire(pipeline)
            return
        circuit.due(self._clock.now())
        if (circuit.state, circuit.since) != self._written.get(pipeline, (BreakerState.CLOSED, -math.inf)):
            await self._write(pipeline, circuit)

    async def _write(self, pipeline: str, circuit: Circuit) -> None:
        state, since, why = circuit.state, circuit.since, circuit.why
        one = await self._committer.do(lambda connection: breakers.write(connection, pipeline, state, why, since))
        self._written[pipeline] = state, since
        self._overrides.pop(pipeline, None)
        if one is not None:
            self._overrides[pipeline] = one
        elif state is BreakerState.OPEN:
            log.info("pipeline %s keeps failing (%s), and is paused already", pipeline, why)
            circuit.release(since)
            self._written[pipeline] = circuit.state, circuit.since
            return
        log.log(_LEVELS[state], "the breaker of pipeline %s is %s: %s", pipeline, state, why)
        self._feed.tell("breaker", pipeline=pipeline, state=state)

    async def _retire(self, pipeline: str) -> None:
        """A pipeline that has no breaker any more is not kept paused by one."""
        state, _ = self._written.pop(pipeline, (BreakerState.CLOSED, 0.0))
        self._circuits.pop(pipeline, None)
        self._overrides.pop(pipeline, None)
        if state is BreakerState.CLOSED:
            return
        now, why = self._clock.now(), "the experiment file gives it no breaker any more"
        await self._committer.do(lambda connection: breakers.write(connection, pipeline, BreakerState.CLOSED, why, now))
