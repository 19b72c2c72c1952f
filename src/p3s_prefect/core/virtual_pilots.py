"""Pilots in virtual time, of one slot each."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from p3s_prefect.core.retry import NextState


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """A stage run on a pilot, and how it will end."""

    stage_run_id: int
    began_at: float
    ends_at: float
    after: NextState
    pilot: int = -1


class Pilots:
    """Numbered pilots of one slot; those with the highest numbers go first."""

    def __init__(self) -> None:
        self.slots = 0
        self.free: list[int] = []
        self.serving: dict[int, Service] = {}

    def has_free(self) -> bool:
        """Whether one has nothing to do."""
        return bool(self.free)

    def begin(self, service: Service) -> None:
        """Takes a slot."""
        service.pilot = heapq.heappop(self.free)
        self.serving[service.pilot] = service

    def serves(self, service: Service) -> bool:
        """Whether its pilot is still there."""
        return self.serving.get(service.pilot) is service

    def end(self, service: Service) -> None:
        """Frees the slot."""
        del self.serving[service.pilot]
        heapq.heappush(self.free, service.pilot)

    def change(self, slots: int) -> list[Service]:
        """There are so many slots now: returns what is lost."""
        self.free = [pilot for pilot in self.free if pilot < slots] + list(range(self.slots, slots))
        heapq.heapify(self.free)
        self.slots = slots
        return [self.serving.pop(pilot) for pilot in sorted(self.serving) if pilot >= slots]
