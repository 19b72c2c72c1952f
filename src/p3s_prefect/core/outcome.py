"""What happened in virtual time: every stage run with its end, every event, and what the account makes of them.

A night has millions of events, so that they are kept in columns; the records are made when somebody looks.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.records import Thinning
from p3s_prefect.core.states import StageState

_STATES = tuple(StageState)
_CODES = {state: code for code, state in enumerate(_STATES)}


class StageEvent(NamedTuple):
    """A stage run entered `state` at the time `at`; one that is let in begins in the state `old` = `state`."""

    at: float
    stage_run_id: int
    data_id: DataId
    pipeline: str
    stage: str
    old: StageState
    state: StageState
    reason: str


class Service(NamedTuple):
    """A pilot's slot was taken by a stage run from `began_at` to `ended_at`; `state` is what became of it."""

    stage_run_id: int
    began_at: float
    ended_at: float
    state: StageState


@dataclass(slots=True, kw_only=True, eq=False)
class PlayedRun:
    """A stage run: as it goes on while the night is played, as it ended when that is over."""

    id: int
    data_id: DataId
    pipeline: str
    work_class: str
    stage: str
    value: float
    """What it is worth in time: its stage's value times its class's."""
    taken_at: float
    deadline: float
    """When it is late; infinite if it has no deadline."""
    state: StageState
    since: float
    """When it entered `state`."""
    q: float
    """Probability of having got so far."""
    reason: str = ""
    attempts: int = 0
    failures: int = 0
    losses: int = 0

    @property
    def in_time(self) -> bool:
        """Whether it is done, and was by its deadline."""
        return self.state is StageState.DONE and self.since <= self.deadline

    @property
    def latency_s(self) -> float:
        """From when the data were taken to the end."""
        return self.since - self.taken_at


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How things stand at one moment."""

    at: float
    arrived: int
    """Units since the beginning."""
    queued: int
    """Stage runs that wait for a slot."""
    busy: int
    """Slots that are taken,"""
    slots: int
    """of so many."""
    thinning: tuple[Thinning, ...]
    """How the dispatcher sees each pipeline's stages."""


@dataclass(kw_only=True)
class Trail:
    """Events and services in columns: `runs` holds stage run `id` at place `id - 1`."""

    runs: list[PlayedRun] = field(default_factory=list)
    _event_at: array[float] = field(default_factory=lambda: array("d"))
    _event_of: array[int] = field(default_factory=lambda: array("l"))
    _event_state: array[int] = field(default_factory=lambda: array("b"))
    _reasons: dict[int, str] = field(default_factory=dict)
    _began_at: array[float] = field(default_factory=lambda: array("d"))
    _ended_at: array[float] = field(default_factory=lambda: array("d"))
    _served: array[int] = field(default_factory=lambda: array("l"))
    _service_state: array[int] = field(default_factory=lambda: array("b"))

    def note(self, run: PlayedRun, at: float, reason: str) -> None:
        """It is now in the state that it has."""
        if reason:
            self._reasons[len(self._event_at)] = reason
        self._event_at.append(at)
        self._event_of.append(run.id)
        self._event_state.append(_CODES[run.state])

    def note_service(self, stage_run_id: int, began_at: float, ended_at: float, state: StageState) -> None:
        """A slot is free again."""
        self._served.append(stage_run_id)
        self._began_at.append(began_at)
        self._ended_at.append(ended_at)
        self._service_state.append(_CODES[state])

    def events(self) -> Iterator[StageEvent]:
        """Every event, in order."""
        before: dict[int, StageState] = {}
        columns = zip(self._event_at, self._event_of, self._event_state, strict=True)
        for place, (at, number, code) in enumerate(columns):
            run, state, reason = self.runs[number - 1], _STATES[code], self._reasons.get(place, "")
            old = before.get(number, state)
            yield StageEvent(at, number, run.data_id, run.pipeline, run.stage, old, state, reason)
            before[number] = state

    def services(self) -> Iterator[Service]:
        """Every service, in the order of their ends."""
        columns = zip(self._served, self._began_at, self._ended_at, self._service_state, strict=True)
        return (Service(number, began, ended, _STATES[code]) for number, began, ended, code in columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trail) and list(self.events()) == list(other.events())

    __hash__ = None  # type: ignore[assignment]


_Key = TypeVar("_Key")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened."""

    ended_at: float
    trail: Trail
    samples: tuple[Sample, ...] = ()

    @property
    def runs(self) -> list[PlayedRun]:
        """Every stage run, as it ended."""
        return self.trail.runs

    @property
    def events(self) -> Iterator[StageEvent]:
        """Every change of state, in order."""
        return self.trail.events()

    @property
    def services(self) -> Iterator[Service]:
        """Every use of a slot, in the order of their ends."""
        return self.trail.services()

    def account(self) -> dict[tuple[str, str], Counter[StageState]]:
        """Number of stage runs by the state in which each ended, for each pipeline and stage (P7)."""
        found: defaultdict[tuple[str, str], Counter[StageState]] = defaultdict(Counter)
        for run in self.runs:
            found[run.pipeline, run.stage][run.state] += 1
        return dict(found)

    def times(self, stage: str, state: StageState) -> dict[DataId, float]:
        """When each data id's run of `stage` last entered `state`."""
        return {event.data_id: event.at for event in self.events if (event.stage, event.state) == (stage, state)}

    def share_in_time(self, by: Callable[[PlayedRun], _Key]) -> dict[_Key, float]:
        """The share of stage runs that were done by their deadline, for each `by(run)`, such as its class."""
        seen: Counter[_Key] = Counter()
        good: Counter[_Key] = Counter()
        for run in self.runs:
            key = by(run)
            seen[key] += 1
            good[key] += run.in_time
        return {key: good[key] / number for key, number in seen.items()}

    def latencies_s(self, by: Callable[[PlayedRun], _Key]) -> dict[_Key, list[float]]:
        """From taken to done, sorted, of what was done, for each `by(run)`."""
        found: defaultdict[_Key, list[float]] = defaultdict(list)
        for run in self.runs:
            if run.state is StageState.DONE:
                found[by(run)].append(run.latency_s)
        return {key: sorted(values) for key, values in found.items()}

    def drops(self, by: Callable[[PlayedRun], _Key]) -> dict[_Key, Counter[StageState]]:
        """Number of stage runs that settled otherwise than done, by state, for each `by(run)`."""
        found: defaultdict[_Key, Counter[StageState]] = defaultdict(Counter)
        for run in self.runs:
            if run.state.is_terminal and run.state is not StageState.DONE:
                found[by(run)][run.state] += 1
        return dict(found)

    def value(self, until: float = math.inf) -> float:
        """What was done in time, and before `until`, is worth together."""
        return sum(run.value for run in self.runs if run.in_time and run.since <= until)
