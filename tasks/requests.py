"""Asking a site's station for work, and waiting for it. What Prefect cannot be told at the moment does not matter."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import (
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import asked, requests
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.asking import PROCESS, ProcessAsked, check_asked
from p3s_prefect.core.errors import LedgerAway, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import PREFECT
from p3s_prefect.core.retry import Which
from p3s_prefect.core.states import WITHOUT_RESULT
from p3s_prefect.core.views import UnitRow, printable

# A look at the ledger takes 0.2 ms; a change of the progress is a request to Prefect.
_LOOK_EVERY_S = 0.1
_TELL_EVERY_S = 1.0
_AWAY_S = 1.0
# A station answers within a second, unless it is stopped, or comparing large files.
_SILENT_S = 10.0
# A table artifact is one JSON document; the page that shows it does not hold more.
_MOST_ROWS = 1000
_Of = TypeVar("_Of")
_Told = TypeVar("_Told")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that stands in the ledger of a home."""

    home: Path
    experiment: Experiment
    number: int

    @contextmanager
    def books(self) -> Iterator[Ledger]:
        """The ledger, open."""
        ledger = Home(self.home).ledger(self.experiment)
        try:
            yield ledger
        finally:
            ledger.close()


async def ask_station(home: str, pipeline: str, group: str, units: Sequence[str], which: str) -> Asked:
    """Leaves a request to the station of a home. A run that was interrupted, and comes again, finds its own.

    A run that had ended, and is retried, asks to try again what failed, unless it was refused before.

    Raises:
        BadName: there is no such pipeline, or these are no data ids of a group and its units.
        ServiceError: no station has ever run there.
    """
    wanted = ProcessAsked.of(pipeline, group, list(units), which)
    word, times_ended = await _word()
    return await asyncio.to_thread(_ask, home, wanted, word, times_ended)


async def await_answer(asked_for: Asked) -> requests.Request:
    """The station's answer; without a station, as soon as one has started. A ledger that is away is waited for."""
    log, warn_at = get_run_logger(), time.monotonic() + _SILENT_S
    with asked_for.books() as ledger:
        while True:
            found = await _patiently(_look_up, ledger, asked_for.number)
            if found.is_granted is not None:
                log.info("%s: %s", "granted" if found.is_granted else "refused", found.answer)
                return found
            if time.monotonic() > warn_at:
                log.warning("the station is silent; `p3s status` tells whether it runs. It will find the request")
                warn_at = float("inf")
            await asyncio.sleep(_LOOK_EVERY_S)


async def await_end(asked_for: Asked, answer: requests.Request) -> tuple[UnitRow, ...]:
    """What became of the units and groups that were asked for, once all have ended; shows progress meanwhile.

    A ledger that is away is waited for: the units go on. Where the configuration changes they do so in another pass.
    """
    numbers = [int(number) for number in answer.detail.get("sub_jobs", ())]
    progress = _Progress()
    with asked_for.books() as ledger:
        while True:
            numbers, still_open = await _patiently(_follow, ledger, numbers)
            if not still_open:
                await progress.end()
                return await _patiently(_outcome, ledger, numbers)
            await progress.tell(100.0 * (1 - still_open / len(numbers)))
            await asyncio.sleep(_LOOK_EVERY_S)


async def show_request(asked_for: Asked, answer: requests.Request, units: Sequence[UnitRow]) -> State[Any]:
    """Records the table, what went wrong first, and returns the state in which the flow ends."""
    if not answer.is_granted:
        return Failed(message=answer.answer)
    rows = [(unit, stage) for unit in units for stage in unit.stages]
    rows.sort(key=lambda row: row[1].state not in WITHOUT_RESULT)
    counts = Counter(stage.state for _, stage in rows)
    told = ", ".join(f"{number} {state}" for state, number in counts.most_common()) or "no stage runs"
    table = [
        {
            "unit": unit.data_id,
            "stage": f"{unit.pipeline}/{stage.stage}",
            "state": stage.state,
            "tries": len(stage.attempts),
            "why": printable(stage.reason),
        }
        for unit, stage in rows[:_MOST_ROWS]
    ]
    with _unheard():
        await acreate_table_artifact(table, key="request", description=f"{answer.answer}. Stage runs: {told}.")
    bad = sum(counts[state] for state in WITHOUT_RESULT)
    if bad:
        first = next(f"{stage.stage} of {unit.data_id} {stage.state}: {stage.reason}" for unit, stage in rows)
        return Failed(message=f"{bad} of {len(rows)} stage runs gave no results ({told}); {printable(first)}")
    return Completed(message=f"{answer.answer}; {told}")


# --- inside ---------------------------------------------------------------------------------------------------------


class _Progress:
    """One progress artifact, told now and then."""

    def __init__(self) -> None:
        self._id: UUID | None = None
        self._told_at = time.monotonic()
        self._told = -1.0

    async def tell(self, percent: float) -> None:
        """Shows it, if it differs and the last time was long ago; what ends quickly needs no progress."""
        if percent == self._told or time.monotonic() - self._told_at < _TELL_EVERY_S:
            return
        self._told, self._told_at = percent, time.monotonic()
        with _unheard():
            if self._id is None:
                self._id = await acreate_progress_artifact(percent, key="request-progress", description="units ended")
            else:
                await aupdate_progress_artifact(self._id, percent)

    async def end(self) -> None:
        """All has ended."""
        if self._id is not None:
            with _unheard():
                await aupdate_progress_artifact(self._id, 100.0)


def _unheard() -> contextlib.suppress:
    """Prefect may be away: the work goes on."""
    return contextlib.suppress(httpx.HTTPError)


async def _word() -> tuple[str, int]:
    """What names this run of the flow, for good; and how often it had ended before."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ServiceError("a station is asked from within a flow run", fix="Call the flow `process`.")
    async with get_client() as client:
        states = await client.read_flow_run_states(context.flow_run.id)
    return str(context.flow_run.id), sum(state.is_final() for state in states)


def _ask(directory: str, wanted: ProcessAsked, word: str, times_ended: int) -> Asked:
    home = Path(directory).resolve()
    experiment = Home(home).in_force()
    checked = check_asked(wanted, experiment)
    ledger = Home(home).ledger(experiment)
    try:
        if not ledger.exists():
            raise ServiceError(f"no station has run in {home}", fix="Give its home, or start it: `p3s up`.")
        with ledger.transaction() as connection:
            asked.check_data(connection, checked.group, checked.units)
            if times_ended and requests.was_granted(connection, f"{word} "):
                checked = checked.again(Which.FAILED)
            number = requests.ask(
                connection,
                PROCESS,
                by=PREFECT,
                why=f"flow run {word}",
                now=time.time(),
                detail=checked.detail(),
                once=f"{word} {times_ended}",
            )
    finally:
        ledger.close()
    return Asked(home=home, experiment=experiment, number=number)


async def _patiently(look: Callable[[Ledger, _Of], _Told], ledger: Ledger, asked_for: _Of) -> _Told:
    """What a look at the ledger tells, as soon as it can be read."""
    is_told = False
    while True:
        try:
            return await asyncio.to_thread(look, ledger, asked_for)
        except LedgerAway as error:
            if not is_told:
                get_run_logger().warning("%s; looking again until it is back", error.what)
                is_told = True
            await asyncio.sleep(_AWAY_S)


def _look_up(ledger: Ledger, number: int) -> requests.Request:
    with ledger.reading() as connection:
        return requests.look_up(connection, number)


def _follow(ledger: Ledger, numbers: Iterable[int]) -> tuple[list[int], int]:
    with ledger.reading() as connection:
        return asked.follow(connection, numbers)


def _outcome(ledger: Ledger, numbers: Iterable[int]) -> tuple[UnitRow, ...]:
    with ledger.reading() as connection:
        return asked.outcome(connection, numbers)
