"""What the pilots are at: of more stage runs than slots, those of the highest priority, the first handed out first."""

from __future__ import annotations

import heapq
import math

from p3s_prefect.core.open_work import Run

# A slot is idle for some 10 ms until its next stage comes: a few percent of what is shorter, for which it is worth to
# have a short one lie ready. What is longer would lie there for long, behind whatever better comes meanwhile.
SHORT_S = 0.5

# Short ones that are handed out in advance, per slot that is busy with a short one: with 2 slots, 3 in flight gave 159
# stages/s where 2 gave 128, as a pilot finds its next stage without a round trip; more would bind work to pilots before
# a slot is free (P11).
IN_ADVANCE_PER_SLOT = 0.5

_Handed = tuple[int, int, Run]
"""Priority, negative, and number of what was handed out: the smallest goes first."""


class AtPilots:
    """Which of what was handed out has begun, as far as that can be known from outside."""

    def __init__(self) -> None:
        self.slots = 0
        self.in_flight = 0
        self.short = 0
        """Those that are short, of which a slot is taken to be busy with each."""
        self._serving = 0
        self._waiting: list[_Handed] = []
        self._last_begun: _Handed | None = None
        self._number = 0

    @property
    def capacity(self) -> int:
        """How many may be with the pilots now: one for each slot, and in advance for slots that are free at once."""
        if not self.short:  # As mostly, and a decision asks for it more than once.
            return self.slots
        return self.slots + math.ceil(IN_ADVANCE_PER_SLOT * min(self.slots, self.short))

    def take(self, run: Run, priority: int, now: float) -> None:
        """A run is handed out."""
        self.in_flight += 1
        run.load.in_flight += 1
        self._number += 1
        run.in_flight = True
        handed = (-priority, self._number, run)
        if self._serving >= self.slots:
            self._make_way(handed, now)
        if self._serving < self.slots:
            self._begin(handed, now)
        else:
            heapq.heappush(self._waiting, handed)

    def give_back(self, run: Run, now: float) -> None:
        """A run is no longer with a pilot; the next one begins."""
        self.in_flight -= 1
        run.load.in_flight -= 1
        run.load.first_at_pilots.discard(run.id)
        run.in_flight = False
        if self._end(run):
            self._serving -= 1
        while self._waiting and (self._serving < self.slots or not self._waiting[0][2].in_flight):
            following = heapq.heappop(self._waiting)
            if following[2].in_flight:
                self._begin(following, now)

    def _make_way(self, handed: _Handed, now: float) -> None:
        """A slot becomes free and better work comes for it at one moment: the better one gets it.

        Taken to have begun, the other would seem to run, and its service time to grow, as long as there is better work.
        """
        last = self._last_begun
        if last is not None and last[:2] > handed[:2] and last[2].load.begun.get(last[2].id) == now:
            self._end(last[2])
            self._serving -= 1
            heapq.heappush(self._waiting, last)

    def _begin(self, handed: _Handed, now: float) -> None:
        run = handed[2]
        self._serving += 1
        self._last_begun = handed
        run.load.begun[run.id] = now
        run.is_short = is_short(run)
        self.short += run.is_short

    def _end(self, run: Run) -> bool:
        if run.load.begun.pop(run.id, None) is None:
            return False
        self.short -= run.is_short
        return True


def is_short(run: Run) -> bool:
    """Whether a run takes so little time that the next one should lie ready, as far as is known."""
    times = run.load.times
    return times.is_known and times.mean_s < SHORT_S
