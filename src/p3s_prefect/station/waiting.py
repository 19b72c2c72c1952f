"""Attempts whose outputs wait for the store: published once they are there, given back when nobody has them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import islice

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.stores import is_known_away
from p3s_prefect.core.errors import StoreUnreachable
from p3s_prefect.core.health import size
from p3s_prefect.core.ports import Clock, ObjectStore, PilotPool
from p3s_prefect.core.records import Manifest, WaitingTold
from p3s_prefect.station.handout import Handout
from p3s_prefect.station.recovery import complete_manifests
from p3s_prefect.station.store_watch import StoreWatch

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
# One listing each, 3 ms: a fifth of the time goes there, while pilots take away some tens a second.
_AT_ONCE = 64
# Each pilot looks into a directory of its machine, whose entries come back: with thousands, a tenth of a second.
_ASK_PILOTS_S = 5.0
# A machine may be starting again: a server that tests its memory takes some minutes, and an hour would do no harm but
# to what waits in vain.
_MACHINE_RESTARTS_S = 600.0


class WaitingAttempts:
    """Looks after what waits, which `Handout` holds."""

    def __init__(
        self,
        handout: Handout,
        store: ObjectStore,
        store_watch: StoreWatch,
        pilots: PilotPool,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells what was asked after an attempt began to wait; `monotonic` how long ago, if it was set too."""
        self._handout = handout
        self._store = store
        self._store_watch = store_watch
        self._pilots = pilots
        self._clock = clock
        self._monotonic = monotonic
        self._told: WaitingTold | None = None
        """What the pilots have told last, for as long as it is to be believed."""
        self._asked_at = 0.0
        self._asked_s = -math.inf
        """The same, by `monotonic`."""
        self._missed_since: dict[int, float] = {}
        self._logged: frozenset[str] = frozenset()
        """Executions that nobody could read when the pilots told last."""

    @property
    def number(self) -> int:
        """Of attempts that wait."""
        return len(self._handout.waiting)

    @property
    def size_bytes(self) -> int:
        """How much waits on the pilots' machines, as far as they have told."""
        if self._told is None or not self._handout.waiting:
            return 0
        return sum(self._told.sizes.values()) + sum(self._told.unreadable.values())

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._handout.waiting:
                await self.look()

    async def look(self) -> None:
        """Once: some of what waits, those first that were not looked at for longest."""
        there = self._missed_since.keys() & {one.attempt_id for one in self._handout.waiting.values()}
        self._missed_since = {attempt_id: self._missed_since[attempt_id] for attempt_id in there}
        if self._monotonic() >= self._asked_s + _ASK_PILOTS_S:
            # Before the store is asked: what goes from there to here in between is seen here.
            self._asked_at, self._asked_s = self._clock.now(), self._monotonic()
            self._told = await self._pilots.waiting()
            self._log_unreadable()
        if self._store_watch.trouble:
            return
        some = list(islice(self._handout.waiting.values(), _AT_ONCE))
        complete = await asyncio.to_thread(self._complete, some)
        given_up = [one.prefix for one in some if await self._see_to(one, complete.get(one.attempt_id))]
        if given_up:
            await self._pilots.drop_waiting(given_up)

    # --- inside -------------------------------------------------------------------------------------------------

    def _log_unreadable(self) -> None:
        if self._told is None:
            return
        for name in sorted(self._told.unreadable.keys() - self._logged):
            log.error(
                "%s of outputs of the execution %s wait on their pilot's machine, whose disk does not let anybody read "
                "whose they are. Mend that; or remove them, and they are made again.",
                size(self._told.unreadable[name]),
                name,
            )
        self._logged = frozenset(self._told.unreadable)

    def _complete(self, some: Sequence[execution.Waiting]) -> dict[int, list[Manifest]]:
        """The complete manifests, by attempt; without those attempts of which it is not known now."""
        complete: dict[int, list[Manifest]] = {}
        for one in some:
            try:
                complete[one.attempt_id] = list(complete_manifests(self._store, one))
            except StoreUnreachable as error:
                log.info("it is not known whether outputs are in the store below %s: %s", one.prefix, error.what)
                # Otherwise it is about this one, and the others behind it do not wait for it.
                if is_known_away(self._store.url):
                    break
        return complete

    async def _see_to(self, one: execution.Waiting, complete: Sequence[Manifest] | None) -> bool:
        """Whether it has ended as the pilots have given it up."""
        if complete:
            await self._handout.publish_waiting(one, complete[0])
        elif complete is not None and (reason := self._why_given_up(one)) is not None:
            await self._handout.give_up_waiting(one, reason)
            return True
        elif complete is not None and self._is_lost(one):
            await self._handout.lose_waiting(one)
        else:
            self._handout.wait_on(one)
        return False

    def _why_given_up(self, one: execution.Waiting) -> str | None:
        # Of another execution of the attempt there may be outputs that can be taken.
        if self._told is None or one.prefix in self._told.sizes:
            return None
        return self._told.given_up.get(one.prefix)

    def _is_lost(self, one: execution.Waiting) -> bool:
        """Whether no pilot has it, and none will."""
        if self._told is None or self._asked_at < one.since:
            return False
        if one.prefix in self._told.sizes or one.execution in self._told.unreadable:
            self._missed_since.pop(one.attempt_id, None)
            return False
        missed_since = self._missed_since.setdefault(one.attempt_id, self._asked_s)
        # Of what was interrupted by the end of a station nobody has ever said that it has outputs.
        return one.pilot is None or self._asked_s - missed_since >= _MACHINE_RESTARTS_S
