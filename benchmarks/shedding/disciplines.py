"""The known disciplines, on the same traces and slots, each as strong as it is usually built.

All of them serve the higher class first, and run a unit's stages one after the other on one slot. As none of them knows
of stopping what runs, what has begun is served to its end.

- *first come*: in the order of arrival; nothing is dropped, and what is late already is still served, to its end.
- *newest first*: the last to arrive goes first; nothing is dropped either.
- *earliest deadline*: firm deadlines: what is late when its turn comes is dropped without taking a slot.
- *CoDel*: controlled delay with adaptive LIFO, as described by B. Maurer in "Fail at Scale" (ACM Queue 13(8), 2015). A
  unit that arrives while the queue was empty within the last N seconds may wait N, otherwise only M; who waited longer
  is dropped when its turn comes. While the queue builds up so, the newest goes first. N is the time that a unit can
  wait and still be in time, M a twentieth of it, as there (100 ms and 5 ms).

With `stops`, a stage is stopped at its deadline here too. Where service times have heavy tails that turns first come
and earliest deadline into something else: every unit begins just before its deadline and only the shortest come to
their end, which gives more value than the bound allows, and stops most of what was begun (see `bound`).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.shedding.traces import Kind, Trace, Unit


@dataclass(slots=True, eq=False)
class Waiting:
    """A unit in a queue."""

    unit: Unit
    kind: Kind
    deadline: float
    most_wait_s: float = math.inf


class Discipline(Protocol):
    """A queue."""

    def put(self, waiting: Waiting, now: float) -> None:
        """A unit arrives."""
        ...

    def put_back(self, waiting: Waiting) -> None:
        """A unit's pilot was lost; it arrived before any that waits, nearly."""
        ...

    def take(self, now: float) -> Waiting | None:
        """The next one to serve."""
        ...


class FirstCome:
    """First come, first served."""

    def __init__(self, trace: Trace) -> None:
        self.queue: deque[Waiting] = deque()

    def put(self, waiting: Waiting, now: float) -> None:
        """A unit arrives."""
        self.queue.append(waiting)

    def put_back(self, waiting: Waiting) -> None:
        """A unit's pilot was lost."""
        self.queue.appendleft(waiting)

    def take(self, now: float) -> Waiting | None:
        """The oldest."""
        return self.queue.popleft() if self.queue else None


class NewestFirst(FirstCome):
    """Last come, first served."""

    def take(self, now: float) -> Waiting | None:
        """The newest."""
        return self.queue.pop() if self.queue else None


class EarliestDeadline(FirstCome):
    """All units of a queue have the same time to their deadline, so that the oldest has the earliest."""

    def take(self, now: float) -> Waiting | None:
        """The oldest that is not late."""
        while self.queue:
            waiting = self.queue.popleft()
            if now < waiting.deadline:
                return waiting
        return None


class CoDel(FirstCome):
    """Controlled delay with adaptive LIFO."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        mean_s = sum(kind.mean_s * kind.share for kind in trace.kinds.values())
        self.interval_s = trace.deadline_s - mean_s
        self.target_s = self.interval_s / 20
        self.empty_at = 0.0

    def put(self, waiting: Waiting, now: float) -> None:
        """A unit arrives, and learns how long it may wait."""
        waiting.most_wait_s = self.target_s if self.is_overloaded(now) else self.interval_s
        self.queue.append(waiting)

    def take(self, now: float) -> Waiting | None:
        """The newest in overload, otherwise the oldest; of those that have not waited too long."""
        while self.queue:
            waiting = self.queue.pop() if self.is_overloaded(now) else self.queue.popleft()
            if now - waiting.unit.at <= waiting.most_wait_s:
                return waiting
        self.empty_at = now
        return None

    def is_overloaded(self, now: float) -> bool:
        """Whether the queue has not been empty for an interval."""
        if not self.queue:
            self.empty_at = now
        return self.empty_at < now - self.interval_s


DISCIPLINES: Mapping[str, type[FirstCome]] = {
    "first come": FirstCome,
    "newest first": NewestFirst,
    "earliest deadline": EarliestDeadline,
    "CoDel": CoDel,
}


def play(trace: Trace, discipline: type[FirstCome], *, stops: bool = False) -> tuple[float, int]:
    """(The value that it delivers in time before the trace ends, number of units that were stopped)."""
    played = _Played(trace, discipline, stops)
    played.play()
    return played.value, played.stopped


class _Played:
    def __init__(self, trace: Trace, discipline: type[FirstCome], stops: bool) -> None:
        self.trace, self.stops = trace, stops
        self.value, self.stopped = 0.0, 0
        self.queues = {
            priority: discipline(trace)
            for priority in sorted({kind.priority for kind in trace.kinds.values()}, reverse=True)
        }
        self.free: list[int] = []
        self.slots = 0
        self.serving: dict[int, _Service] = {}
        self.ends: list[tuple[float, int, _Service]] = []

    def play(self) -> None:
        changes = deque(self.trace.slots)
        for unit in self.trace.units:
            while changes and changes[0][0] <= unit.at:
                at, slots = changes.popleft()
                self.serve_until(at)
                self.change_slots(slots, at)
            self.serve_until(unit.at)
            kind = self.trace.kinds[unit.kind]
            waiting = Waiting(unit, kind, unit.at + self.trace.deadline_s)
            self.queues[kind.priority].put(waiting, unit.at)
            self.fill(unit.at)
        self.serve_until(self.trace.length_s)

    def serve_until(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            at, _, service = heapq.heappop(self.ends)
            if self.serving.get(service.slot) is service:
                del self.serving[service.slot]
                heapq.heappush(self.free, service.slot)
                self.value += service.value
                self.stopped += service.is_stopped
                self.fill(at)

    def fill(self, now: float) -> None:
        while self.free and (waiting := self.next(now)) is not None:
            service = _begin(waiting, now, heapq.heappop(self.free), self.stops)
            self.serving[service.slot] = service
            heapq.heappush(self.ends, (service.ends_at, id(service), service))

    def next(self, now: float) -> Waiting | None:
        return next((found for queue in self.queues.values() if (found := queue.take(now)) is not None), None)

    def change_slots(self, slots: int, now: float) -> None:
        self.free = sorted([slot for slot in self.free if slot < slots] + list(range(self.slots, slots)))
        self.slots = slots
        for slot in [slot for slot in self.serving if slot >= slots]:
            waiting = self.serving.pop(slot).waiting
            self.queues[waiting.kind.priority].put_back(waiting)
        self.fill(now)


@dataclass(slots=True, eq=False)
class _Service:
    waiting: Waiting
    slot: int
    ends_at: float
    value: float
    is_stopped: bool = False


def _begin(waiting: Waiting, now: float, slot: int, stops: bool) -> _Service:
    """Serves a unit's stages one after the other; with `stops`, up to its deadline if it begins before."""
    stops_at = waiting.deadline if stops and now < waiting.deadline else math.inf
    ends_at, value = now, 0.0
    for service_s, worth in zip(waiting.unit.services_s, waiting.kind.stage_values(), strict=True):
        if ends_at + service_s > stops_at:
            return _Service(waiting, slot, stops_at, value, is_stopped=True)
        ends_at += service_s
        value += worth if ends_at <= waiting.deadline else 0.0
    return _Service(waiting, slot, ends_at, value)
