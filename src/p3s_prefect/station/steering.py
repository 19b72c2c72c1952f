"""What people set by command, taken from the ledger while the station runs (P10, S9).

Looking costs one query of an index a few times a second; nothing is written unless something changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import overrides
from p3s_prefect.core.errors import LedgerAway
from p3s_prefect.core.overrides import Controls, Override

if TYPE_CHECKING:
    from p3s_prefect.adapters.ledger.database import Ledger
    from p3s_prefect.core.ports import Clock
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.handout import Handout

log = logging.getLogger(__name__)

# A command acts within a second (P10): three looks, should one or two be late. A look takes 0.2 ms.
_LOOK_EVERY_S = 0.25
# A station that was stopped for a while, or its machine, finds deadlines that have passed meanwhile: before it gives
# anything up it looks for what was set. A look that is only held up is not as late as that.
_LATE_S = 1.0


class Steering:
    """Brings the dispatcher in line with the overrides in force, and ends those whose time has passed."""

    def __init__(self, ledger: Ledger, committer: Committer, handout: Handout, feed: Feed, clock: Clock) -> None:
        self._ledger = ledger
        self._committer = committer
        self._handout = handout
        self._feed = feed
        self._clock = clock
        self._taken: tuple[int, ...] = ()
        self._next_end_at = math.inf
        self._looked_at = -math.inf

    async def run(self) -> None:
        """Looks again and again until cancelled."""
        while True:
            await self._look_if_possible()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def catch_up(self) -> None:
        """Looks, unless that was done lately."""
        if self._clock.now() - self._looked_at > _LATE_S:
            await self._look_if_possible()

    async def look(self) -> None:
        """Takes what was set or lifted since the last look."""
        now = self._clock.now()
        ids = await asyncio.to_thread(self._ids)
        if ids != self._taken or now >= self._next_end_at:
            await self._take(now)
        # Only now: who decides while this one is under way has not seen what it finds.
        self._looked_at = now

    async def _take(self, now: float) -> None:
        given = await self._committer.do(lambda connection: _current(connection, now))
        self._taken = tuple(one.id for one in given)
        self._next_end_at = min((one.expires_at for one in given if one.expires_at is not None), default=math.inf)
        log.info("in force by command: %s", "; ".join(one.reason for one in given) or "nothing")
        await self._handout.control(Controls(given))
        self._feed.tell("overrides", number=len(given))

    async def _look_if_possible(self) -> None:
        try:
            await self.look()
        except LedgerAway as error:
            # Data are processed on by what was in force before.
            log.error("not looked for overrides: %s", error.what)

    def _ids(self) -> tuple[int, ...]:
        with self._ledger.reading() as connection:
            return overrides.ids_in_force(connection)


def _current(connection: Connection, now: float) -> tuple[Override, ...]:
    for one in overrides.expire(connection, now):
        log.info("ended by itself: %s", one.reason)
    return overrides.in_force(connection)
