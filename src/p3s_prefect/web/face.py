"""What every page and answer of the station needs: the experiment, the ledger, the store, and the station's facts."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import anyio
from anyio import to_thread
from sqlalchemy import Connection
from starlette.requests import Request

from p3s_prefect.adapters.ledger import overrides, views
from p3s_prefect.adapters.ledger.agent_cursor import record_facts
from p3s_prefect.adapters.ledger.damaged import count_damaged
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.core.errors import BadName, LedgerAway
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import HealthRow, StationFacts, health_rows
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.record_health import record
from p3s_prefect.core.store_health import stored_results
from p3s_prefect.core.targets import explained
from p3s_prefect.core.views import AccountRow, UnitRow
from p3s_prefect.core.weighted_values import WeightedValue

_P = ParamSpec("_P")
_T = TypeVar("_T")

# However many people look, the ledger's connections and this machine's cores are there for the data first.
READERS = 2
# What walks over the whole ledger, or a group, may take this share of the time, and is shown as of its last count.
COUNTING_SHARE = 0.05
# Groups that somebody looks at; of others nothing is kept.
_GROUPS_KEPT = 8

Account = tuple[tuple[AccountRow, ...], tuple[AccountRow, ...]]


@dataclass(kw_only=True)
class Face:
    """The station as its pages see it. It keeps nothing for each unit."""

    experiment: Experiment
    ledger: Ledger
    store: ObjectStore
    facts: Callable[[], StationFacts]
    events: Callable[[], AsyncIterator[dict[str, Any]]]
    hint: Callable[[Sequence[Notice]], int]
    _readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _counted: dict[str, tuple[Any, float]] = field(default_factory=dict)

    async def read(self, view: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **keywords: _P.kwargs) -> _T:
        """The answer of a view, read in a thread: the event loop serves the data plane too."""
        return await self.in_thread(partial(self._read, view, *args, **keywords))

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """Something that blocks, in one of a few threads."""
        return await to_thread.run_sync(call, limiter=self._readers)

    def _read(self, view: Callable[..., _T], *args: Any, **keywords: Any) -> _T:
        with self.ledger.reading() as connection:
            return view(connection, *args, **keywords)

    def account(self, connection: Connection) -> Account:
        """The account of stages and of sub-jobs, counted again when the last count is old enough for its cost."""
        return self._count("", lambda: (views.account(connection), views.sub_job_account(connection)))

    def group_values(self, connection: Connection, data_id: str) -> tuple[WeightedValue, ...]:
        """The summary values of a group's units together, as old as the account may be."""
        return self._count(data_id, lambda: group_values(connection, data_id))

    def _count(self, what: str, count: Callable[[], _T]) -> _T:
        with self._counting:
            known = self._counted.pop(what, None)
            if known is None or time.monotonic() >= known[1]:
                began = time.monotonic()
                answer: _T = count()
                ended = time.monotonic()
                known = answer, ended + (ended - began) / COUNTING_SHARE
            self._counted[what] = known
            groups = [name for name in self._counted if name]
            if len(groups) > _GROUPS_KEPT:
                # The one that nobody has asked for longest.
                del self._counted[groups[0]]
            return cast("_T", known[0])

    async def look(self, read: Callable[[Connection], _T], without: Callable[[StationFacts], _T]) -> _T:
        """What `read` makes of the ledger; as long as that cannot be read, what can be told without it."""
        try:
            return await self.read(read)
        except LedgerAway as error:
            return without(replace(self.facts(), ledger_problem=error.what))

    def explained(self, connection: Connection, units: Iterable[UnitRow], at: float) -> tuple[UnitRow, ...]:
        """The same units; those that are open tell why they wait, and what acts on them by command."""
        return explained(units, self.experiment, Controls(overrides.in_force(connection, at)))

    def health(self, connection: Connection, facts: StationFacts) -> tuple[HealthRow, ...]:
        """The health rows at the moment of `facts`."""
        rows = health_rows(
            facts,
            views.kept_out(connection, now=facts.at),
            views.outcomes(connection, now=facts.at),
            overrides.in_force(connection, facts.at),
        )
        rows += stored_results(count_damaged(connection))
        return (*rows, record(record_facts(connection, facts.at))) if self.experiment.prefect.enabled else rows


def face_of(request: Request) -> Face:
    """The face that `create_app` was given."""
    face: Face = request.app.state.face
    return face


async def checked_filters(request: Request) -> dict[str, Any]:
    """As `unit_filters`.

    Raises:
        BadName: a number is none, or there is no such state or pipeline.
        NoSuchRecord: there is no such group.
    """
    face, filters = face_of(request), unit_filters(request)
    chosen = {name: filters.get(name) for name in ("state", "pipeline", "group")}
    await face.read(views.check_filters, face.experiment.pipelines, **chosen)
    return filters


def unit_filters(request: Request) -> dict[str, Any]:
    """The query parameters that select units, as keyword arguments of `views.units`.

    Raises:
        BadName: a number is none.
    """
    chosen: dict[str, Any] = {
        name: request.query_params[name] for name in ("state", "pipeline", "group") if request.query_params.get(name)
    }
    return chosen | page(request)


def page(request: Request) -> dict[str, Any]:
    """The query parameters `before` and `limit`, where they are given.

    Raises:
        BadName: one is no whole number.
    """
    return {
        name: whole(name, request.query_params[name]) for name in ("before", "limit") if name in request.query_params
    }


def whole(name: str, text: str) -> int:
    """A whole number that the ledger can hold.

    Raises:
        BadName: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadName(f"{name}={text[:40]!r} is no whole number", fix=f"Write {name} in digits.")
    return int(text)
