"""What people do in Prefect becomes commands to the station: queues that are paused, runs retried or cancelled.

Prefect is asked twice a second, as its server tells of changed queues in no other way; while it is away, the last
value holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from p3s_prefect.adapters.ledger import asked, prefect_queues, requests
from p3s_prefect.adapters.ledger.asked import Scope
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.agent.server import PrefectServer
from p3s_prefect.agent.states import TERMINAL, Kind
from p3s_prefect.core.asking import CANCEL, RETRY
from p3s_prefect.core.errors import LedgerAway
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import PREFECT
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.queue_commands import POOL, QueueSaid

log = logging.getLogger(__name__)

# What is done in Prefect acts within 2 s: two looks of this, one of the station, and their requests.
_LOOK_EVERY_S = 0.5
_LONGEST_PAUSE_S = 5.0
# Whoever sets a run to Cancelled without asking first is found as long as this afterwards.
_CANCELLED_WITHIN = timedelta(hours=1)
_SELDOM = 8
_MOST_RUNS = 200
_CANCELLING = "CANCELLING"


class Controls:
    """Follows one work pool, and the flow runs that record one ledger's passes."""

    def __init__(
        self, experiment: Experiment, ledger: Ledger, server: PrefectServer, clock: Clock, *, pool: str, site: uuid.UUID
    ) -> None:
        self._experiment = experiment
        self._ledger = ledger
        self._server = server
        self._clock = clock
        self._pool = pool
        self._key = f"p3s-{site}-"
        self._said: tuple[QueueSaid, ...] = ()
        self._pool_was: QueueSaid | None = None
        self._limit_was: int | None = None
        self._looks = 0
        self._done: set[str] = set()

    async def run(self) -> None:
        """Looks again and again until cancelled."""
        pause_s = _LOOK_EVERY_S
        while True:
            begun = time.monotonic()
            try:
                await self.step()
            except (httpx.HTTPError, LedgerAway) as error:
                what = error.what if isinstance(error, LedgerAway) else f"Prefect: {type(error).__name__}"
                log.info("Prefect's queues and runs are not followed: %s; the last values hold", what)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _LOOK_EVERY_S
            await asyncio.sleep(max(0.0, pause_s - (time.monotonic() - begun)))

    async def step(self) -> None:
        """Looks once.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses.
        """
        # Each request costs the server 5 ms: what may take a second is asked for every other time.
        self._looks += 1
        if self._looks % 2:
            await self._follow_runs()
        await self._follow_queues()

    # --- queues -------------------------------------------------------------------------------------------------

    async def _follow_queues(self) -> None:
        try:
            if self._pool_was is None or self._looks % 2 == 0:
                pool = await self._server.get(f"/work_pools/{self._pool}")
                self._pool_was = _pool_said(pool)
                self._tell_of_limit(pool["concurrency_limit"])
            queues = await self._server.post(f"/work_pools/{self._pool}/queues/filter", {})
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return  # until there is one, nothing is said
            raise
        said = (self._pool_was, *(_queue_said(queue) for queue in queues))
        if said != self._said:
            for command in await asyncio.to_thread(self._take, said):
                log.info("%s %s: %s", "set" if command.is_set else "lifted", command.kind, command.why)
            self._said = said

    def _tell_of_limit(self, most: int | None) -> None:
        if most is not None and most != self._limit_was:
            log.warning(
                "the work pool %s has the limit %d in Prefect: it counts flow runs, and limits nothing of the station; "
                "limit the queue of a class instead",
                self._pool,
                most,
            )
        self._limit_was = most

    def _take(self, said: tuple[QueueSaid, ...]) -> Any:
        with self._ledger.transaction() as connection:
            return prefect_queues.follow(connection, said, self._experiment, self._clock.now())

    # --- runs ---------------------------------------------------------------------------------------------------

    async def _follow_runs(self) -> None:
        for run in await self._runs():
            pass_id = self._pass_of(run)
            if pass_id is None or run["state"]["id"] in self._done:
                continue
            if run["state"]["type"] == Kind.SCHEDULED:
                await self._retry(run, pass_id)
            else:
                await asyncio.to_thread(self._cancel, run, pass_id)
                self._done.add(run["state"]["id"])

    async def _runs(self) -> list[dict[str, Any]]:
        """Runs that record passes of this experiment, and were told by somebody to be tried again, or to end."""
        own: dict[str, Any] = {"tags": {"all_": ["p3s", f"experiment:{self._experiment.experiment}"]}}
        since = (datetime.now(UTC) - _CANCELLED_WITHIN).isoformat()
        chosen: list[dict[str, Any]] = [
            {"state": {"type": {"any_": [Kind.SCHEDULED, _CANCELLING]}}},
            {"state": {"type": {"any_": [Kind.CANCELLED]}}, "end_time": {"after_": since}},
        ]
        found: list[dict[str, Any]] = []
        for filtered in chosen if self._looks % _SELDOM == 1 else chosen[:1]:
            found += await self._server.post("/flow_runs/filter", {"flow_runs": own | filtered, "limit": _MOST_RUNS})
        return found

    def _pass_of(self, run: dict[str, Any]) -> int | None:
        key = run["idempotency_key"] or ""
        number = key.removeprefix(self._key)
        return int(number) if key.startswith(self._key) and number.isdigit() else None

    def _cancel(self, run: dict[str, Any], pass_id: int) -> None:
        with self._ledger.transaction() as connection:
            # A pass whose stages have all been cancelled is recorded as such: nobody asks for anything.
            if asked.still_open(connection, Scope(pass_id=pass_id)):
                self._ask(connection, CANCEL, run, pass_id, once=f"cancel {run['state']['id']}")

    async def _retry(self, run: dict[str, Any], pass_id: int) -> None:
        history = await self._server.get(f"/flow_run_states/?flow_run_id={run['id']}")
        ended = [state for state in history if state["type"] in TERMINAL]
        if not ended:
            return
        last = max(ended, key=lambda state: str(state["timestamp"]))
        answer = await asyncio.to_thread(self._ask_to_retry, run, pass_id, f"retry {last['id']}")
        if answer.is_granted is False:
            # It has no stage to record, so nobody else would end it again.
            told = {"type": last["type"], "name": last["name"], "message": answer.answer}
            await self._server.post(f"/flow_runs/{run['id']}/set_state", {"state": told, "force": True})

    def _ask_to_retry(self, run: dict[str, Any], pass_id: int, once: str) -> requests.Request:
        with self._ledger.transaction() as connection:
            return requests.look_up(connection, self._ask(connection, RETRY, run, pass_id, once=once))

    def _ask(self, connection: Any, kind: str, run: dict[str, Any], pass_id: int, *, once: str) -> int:
        detail = {"pass_id": pass_id, "group": run["parameters"].get("group", "station")}
        why = f"flow run {run['name']}"
        return requests.ask(connection, kind, by=PREFECT, why=why, now=self._clock.now(), detail=detail, once=once)


def _pool_said(pool: dict[str, Any]) -> QueueSaid:
    return QueueSaid(name=POOL, priority=None, most=None, is_paused=pool["is_paused"])


def _queue_said(queue: dict[str, Any]) -> QueueSaid:
    return QueueSaid(
        name=queue["name"], priority=queue["priority"], most=queue["concurrency_limit"], is_paused=queue["is_paused"]
    )
