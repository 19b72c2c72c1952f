"""What people ask the running station to do: process units, try again what failed, cancel what is open (P10, B3).

They ask in the ledger, from Prefect or by command, and find the answer there. Each request is answered once: whoever
was killed and asks again with the same word waits for the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p3s_prefect.adapters.ledger import asked, requests
from p3s_prefect.adapters.ledger.asked import Found, LetIn, Scope
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.asking import CANCEL, PROCESS, RETRY, ProcessAsked, check_asked
from p3s_prefect.core.errors import LedgerAway, NoSuchRecord, P3sError
from p3s_prefect.core.overrides import Target
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.records import SubJobFact
from p3s_prefect.core.retry import Which, retried
from p3s_prefect.core.states import SubJobState
from p3s_prefect.core.targets import pipelines_of, read_target

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations
    from p3s_prefect.station.handout import Handout
    from p3s_prefect.station.intake import Intake

log = logging.getLogger(__name__)

# Whoever asks waits for the answer; a look takes 0.2 ms.
LOOK_EVERY_S = 0.25


@dataclass(kw_only=True)
class Requested:
    """Does what is asked, one after the other."""

    ledger: Ledger
    catalogue: Generations
    committer: Committer
    intake: Intake
    handout: Handout
    feed: Feed
    clock: Clock

    async def run(self) -> None:
        """Looks for requests until cancelled."""
        while True:
            try:
                for request in await asyncio.to_thread(self._open):
                    await self._see_to(request)
            except LedgerAway as error:
                log.error("not looked for requests: %s", error.what)
            await asyncio.sleep(LOOK_EVERY_S)

    # --- inside -------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[requests.Request, ...]:
        with self.ledger.reading() as connection:
            return requests.open_requests(connection, [PROCESS, RETRY, CANCEL])

    async def _see_to(self, request: requests.Request) -> None:
        given: Mapping[str, Any] = {}
        try:
            # Nothing is let in while the experiment file is taken over.
            async with self.intake.gate.inside():
                told, given = await self._do(request)
        except LedgerAway:
            raise
        except P3sError as error:
            log.warning("%s asked to %s, and was refused: %s", request.by, request.kind, error)
            told, is_granted = str(error), False
        else:
            log.info("%s asked to %s: %s", request.by, request.kind, told)
            is_granted = True
        now = self.clock.now()
        await self.committer.do(
            lambda connection: requests.answer(
                connection, request, is_granted=is_granted, text=told, now=now, given=given
            )
        )
        self.feed.tell("requests")

    async def _do(self, request: requests.Request) -> tuple[str, Mapping[str, Any]]:
        if request.kind == PROCESS:
            return await self._process(request)
        scope = await asyncio.to_thread(self._scope, request)
        reason = f"{request.kind} by {request.by}" + (f": {request.why}" if request.why else "")
        if request.kind == RETRY:
            told, _ = await self._retry(scope, reason)
            return told, {}
        return await self._cancel(scope, reason), {}

    def _scope(self, request: requests.Request) -> Scope:
        """Raises `BadName` or `NoSuchRecord` where it names nothing that exists."""
        if "pass_id" in request.detail:
            return Scope(pass_id=int(request.detail["pass_id"]))
        target = read_target([str(request.detail["target"])], self.catalogue.experiment)
        return Scope(target=target, pipelines=pipelines_of(target, self.catalogue.experiment))

    # --- process ------------------------------------------------------------------------------------------------

    async def _process(self, request: requests.Request) -> tuple[str, Mapping[str, Any]]:
        wanted = check_asked(ProcessAsked.read(request.detail), self.catalogue.experiment)
        await asyncio.to_thread(self._check_data, wanted)
        scope = Scope(
            target=Target(pipeline=wanted.pipeline, group=wanted.group), units=frozenset(map(str, wanted.units))
        )
        opened: Sequence[SubJobFact] = ()
        if wanted.which is Which.FAILED:
            try:
                told, opened = await self._retry(scope, f"asked for by {request.by}")
            except NoSuchRecord as nothing:
                told = nothing.what
        else:
            told, opened = await self._let_in(wanted)
        newest = await asyncio.to_thread(self._newest, scope)
        return told, {"sub_jobs": sorted({*newest, *(fact.id for fact in opened)})}

    def _check_data(self, wanted: ProcessAsked) -> None:
        with self.ledger.reading() as connection:
            asked.check_data(connection, wanted.group, wanted.units)

    def _newest(self, scope: Scope) -> list[int]:
        with self.ledger.reading() as connection:
            return asked.newest(connection, scope)

    async def _let_in(self, wanted: ProcessAsked) -> tuple[str, Sequence[SubJobFact]]:
        now, current = self.clock.now(), self.catalogue.now
        found: LetIn = await self.committer.do(
            lambda connection: asked.let_in(
                connection,
                group=wanted.group,
                units=wanted.units,
                which=wanted.which,
                collection=current.collections[wanted.pipeline],
                admission=current.by_hand(wanted.pipeline),
                of_group=current.group_admissions[wanted.pipeline],
                now=now,
            )
        )
        for fact in found.facts:
            await self.handout.add(fact)
        # What was shed while the ledger was told is not held any more.
        awake = sum(self.handout.dispatcher.ask(fact, now) for fact in found.from_standby)
        self.handout.wake()
        begun = sum(fact.per == "unit" for fact in found.facts)
        return _told(begun, found.pass_number, awake, found.left), found.facts

    # --- retry and cancel ---------------------------------------------------------------------------------------

    async def _retry(self, scope: Scope, reason: str) -> tuple[str, Sequence[SubJobFact]]:
        """Raises `NoSuchRecord` if there is nothing to try again."""
        found = await asyncio.to_thread(self._failed, scope)
        current = [one.fact for one in found if self._is_current(one)]
        taken = [fact for fact in current if await self._try_again(fact, scope, reason)]
        if not taken:
            raise _nothing_to_retry(len(found) - len(current))
        outdated = f"; {_OUTDATED}" if len(current) < len(found) else ""
        return f"{_counted(taken)} tried again{outdated}", taken

    def _failed(self, scope: Scope) -> list[Found]:
        with self.ledger.reading() as connection:
            return asked.failed(connection, scope)

    def _is_current(self, found: Found) -> bool:
        collection = self.catalogue.now.collections.get(found.fact.pipeline)
        return collection is not None and collection.configuration_id == found.configuration_id

    async def _try_again(self, fact: SubJobFact, scope: Scope, reason: str) -> bool:
        changes = retried(self.catalogue.experiment.pipelines[fact.pipeline], fact, reason, scope.target.stage)
        if not changes:
            return False
        now = self.clock.now()
        if not await self.handout.take_back(fact, changes):
            opened = await self.committer.do(lambda connection: asked.take_back(connection, fact, changes, now))
            await self.handout.add(opened)
        return True

    async def _cancel(self, scope: Scope, reason: str) -> str:
        facts = [one.fact for one in await asyncio.to_thread(self._still_open, scope)]
        if not facts:
            raise NoSuchRecord("nothing of it is open", fix="What has ended cannot be cancelled.")
        await self.handout.cancel(facts, reason)
        return f"{_counted(facts)} cancelled"

    def _still_open(self, scope: Scope) -> list[Found]:
        with self.ledger.reading() as connection:
            return asked.still_open(connection, scope)


_OUTDATED = "what ran under an earlier configuration stays as it is"


def _told(begun: int, pass_number: int | None, awake: int, left: Mapping[SubJobState, int]) -> str:
    told = []
    if pass_number is not None:
        told.append(f"{_number(begun, 'unit')} {'begins' if begun == 1 else 'begin'} in pass {pass_number}")
    if awake:
        told.append(
            f"{_number(awake, 'unit')} that stood by {'waits' if awake == 1 else 'wait'} no longer for what is left"
        )
    stay = ", ".join(_LEFT.get(state, "{} " + state).format(number) for state, number in left.items())
    if told:
        return "; ".join([*told, f"left as they are: {stay}"] if stay else told)
    return f"nothing to begin: {stay or 'no unit of it has arrived'}"


_LEFT = {SubJobState.ARRIVED: "{} under way or waiting", SubJobState.FAILED: "{} failed (for `p3s retry`)"}


def _nothing_to_retry(outdated: int) -> NoSuchRecord:
    if outdated:
        return NoSuchRecord(_OUTDATED, fix="`p3s request` with --all processes a group or a unit anew.")
    return NoSuchRecord(
        "nothing of it has failed",
        fix="Of each unit its newest pass counts, which `p3s list units` shows first. What was left out or given up is "
        "for `p3s request`.",
    )


def _counted(facts: Iterable[SubJobFact]) -> str:
    counts = Counter(fact.per for fact in facts)
    return " and ".join(_number(found, per) for per, found in counts.items())


def _number(found: int, what: str) -> str:
    return f"{found} {what}" if found == 1 else f"{found} {what}s"
