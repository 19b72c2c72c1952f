"""Reading the experiment file again while the station runs: all of it is taken over, or nothing (S9).

What comes from then on is decided by the new file. What is open finishes by the one under which it came (see
`Generations`); a station that is started anew lets it in again instead (see `reconfigured.retire`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import reconfigured, requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import ExperimentFileErrors, LedgerAway, P3sError, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.reload import changes, refusals
from p3s_prefect.station.catalogue import Catalogue

if TYPE_CHECKING:
    from p3s_prefect.adapters.ledger.arrivals import Collection
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations
    from p3s_prefect.station.handout import Handout
    from p3s_prefect.station.intake import Intake

log = logging.getLogger(__name__)

# Whoever asks waits for the answer at a terminal.
LOOK_EVERY_S = 0.25
_MOST_TOLD = 40


@dataclass(kw_only=True)
class Reloading:
    """Answers those who ask the station to read its file again."""

    home: Home
    ledger: Ledger
    catalogue: Generations
    committer: Committer
    intake: Intake
    handout: Handout
    feed: Feed
    clock: Clock
    adopt: Callable[[Experiment], Awaitable[None]]
    """What else follows the experiment; called while nothing is let in."""

    async def run(self) -> None:
        """Looks for requests until cancelled."""
        while True:
            try:
                for asked in await asyncio.to_thread(self._asked):
                    await self._see_to(asked)
            except LedgerAway as error:
                log.error("not looked for requests: %s", error.what)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- inside -------------------------------------------------------------------------------------------------

    def _asked(self) -> tuple[requests.Request, ...]:
        with self.ledger.reading() as connection:
            return requests.open_requests(connection, ["reload"])

    async def _see_to(self, asked: requests.Request) -> None:
        try:
            told = await self._reload()
        except LedgerAway:
            raise
        except P3sError as error:
            log.warning("%s asked to reload, and was refused: %s", asked.by, error)
            await self._answer(asked, str(error), is_granted=False)
        except Exception:
            # Answered first: an open request would end each new station as well.
            await self._answer(asked, "The station failed while it reloaded; its log says why.", is_granted=False)
            raise
        else:
            log.info("%s asked to reload: %s", asked.by, told)
            await self._answer(asked, told, is_granted=True)
            self.feed.tell("reload")

    async def _answer(self, asked: requests.Request, text: str, *, is_granted: bool) -> None:
        now = self.clock.now()
        await self.committer.do(
            lambda connection: requests.answer(connection, asked, is_granted=is_granted, text=text, now=now)
        )

    async def _reload(self) -> str:
        """Takes the file over, and says what changed.

        Raises:
            ExperimentFileErrors: it has mistakes, or changes what cannot change while the station runs.
            ServiceError: a program cannot be read, the installed software has changed, or the home cannot be written.
        """
        text = await asyncio.to_thread(self.home.text)
        experiment = await asyncio.to_thread(self.home.parse, text)
        found = changes(self.catalogue.experiment, experiment)
        if refused := refusals(found, str(self.home.experiment_file)):
            raise ExperimentFileErrors(refused)
        newer = self.catalogue.now.with_experiment(experiment)
        # Now, and not at the first arrival: a program that cannot be read is a reason to refuse.
        await asyncio.to_thread(lambda: newer.collections)
        lines = [*map(str, found), *_software(self.catalogue.now.collections, newer.collections)]
        # Before anything follows it: where it cannot be kept, the commands would go on by the old one.
        await asyncio.to_thread(self._keep, text)
        if lines:
            await self._take_over(newer)
        self.home.put_in_force()
        return _told(lines)

    def _keep(self, text: str) -> None:
        try:
            self.home.keep_text(text)
        except OSError as error:
            raise ServiceError(
                f"{error.filename or self.home.run} cannot be written: {error.strerror or error}",
                fix="Let the station's user write there, with room on the disk; then say `p3s reload` again.",
            ) from error

    async def _take_over(self, newer: Catalogue) -> None:
        async with self.intake.gate.shut():
            now = self.clock.now()
            still_open = await self.committer.do(
                lambda connection: reconfigured.move_on(connection, newer.collections, now)
            )
            self.catalogue.adopt(newer, still_open)
            self.handout.define()
            await self.adopt(newer.experiment)
        self.intake.wake()


def _software(old: Mapping[str, Collection], new: Mapping[str, Collection]) -> Iterator[str]:
    """The programs that were edited.

    Raises:
        ServiceError: an installed distribution changed; the pilots still have what they imported.
    """
    before, after = _versions(old), _versions(new)
    for name in sorted(before.keys() & after.keys()):
        if before[name] == after[name]:
            continue
        if not after[name].startswith("sha256:"):
            raise ServiceError(
                f"{name} was {before[name]} when the station started, and is {after[name]} now",
                fix="The pilots have imported the old one. Restart everything: `p3s down`, then `p3s up`.",
            )
        yield f"program {name}: edited"


def _versions(collections: Mapping[str, Collection]) -> dict[str, str]:
    found: dict[str, str] = {}
    for collection in collections.values():
        found |= collection.content["software"]
    return found


def _told(lines: list[str]) -> str:
    more = [f"and {len(lines) - _MOST_TOLD} more"] if len(lines) > _MOST_TOLD else []
    return "\n".join([*lines[:_MOST_TOLD], *more]) or "nothing has changed"
