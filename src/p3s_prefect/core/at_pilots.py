"""What the pilots are at: of more stage runs than slots, those of the highest priority, the first handed out first."""

from __future__ import annotations

import heapq

from p3s_prefect.core.open_work import Run


class AtPilots:
    """Which of what was handed out has begun, as far as that can be known from outside."""

    def __init__(self) -> None:
        self.slots = 0
        self.in_flight = 0
        self._serving = 0
        self._waiting: list[tuple[int, int, Run]] = []
        self._number = 0

    def take(self, run: Run, priority: int, now: float) -> None:
        """A run is handed out."""
        self.in_flight += 1
        self._number += 1
        run.in_flight = True
        if self._serving < self.slots:
            self._begin(run, now)
        else:
            heapq.heappush(self._waiting, (-priority, self._number, run))

    def give_back(self, run: Run, now: float) -> None:
        """A run is no longer with a pilot; the next one begins."""
        self.in_flight -= 1
        run.in_flight = False
        if run.sub_job.flow.loads[run.stage.position].begun.pop(run.id, None) is not None:
            self._serving -= 1
        while self._waiting and (self._serving < self.slots or not self._waiting[0][2].in_flight):
            following = heapq.heappop(self._waiting)[2]
            if following.in_flight:
                self._begin(following, now)

    def _begin(self, run: Run, now: float) -> None:
        self._serving += 1
        run.sub_job.flow.loads[run.stage.position].begun[run.id] = now
