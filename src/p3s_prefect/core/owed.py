"""What floors let in: it is owed a slot in time, however much stands before it."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable

from p3s_prefect.core.controller import Controller
from p3s_prefect.core.open_work import Entry, Run

# Places are looked at more and more seldom the further behind they are: a decision may not cost more for a long queue.
_FURTHER = 1.25
# Stale entries are dropped when there are more than these and a part of the others.
_FEW = 16


class Owed:
    """Ready runs that are owed a slot, by their deadlines. What left the queue leaves stale entries behind."""

    def __init__(self, controller: Controller, is_full: Callable[[Run], bool]) -> None:
        """`is_full` tells whether a run's pipeline is at a limit."""
        self._controller, self._is_full = controller, is_full
        self._entries: list[Entry] = []
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, run: Run) -> None:
        """It is ready."""
        if run.is_claimed:
            return
        if len(self._entries) > self._most:
            self._entries = list(filter(_is_kept, self._entries))
            self._most = _FEW + int(_FURTHER * len(self._entries))
        run.is_claimed = True
        insort(self._entries, (run.deadline, run.id, run))

    def first(self, now: float) -> Run | None:
        """What has to start now, before everything else, so that none of them is late."""
        while self._entries and not _is_kept(self._entries[0]):
            del self._entries[0]
        if not self._entries or self._is_full(self._entries[0][2]) or not self._is_pressing(self._entries, 0, now):
            return None
        return self._entries[0][2]

    def number_first(self, now: float) -> int:
        """How many of them, by their deadlines, go before everything else now."""
        if self.first(now) is None:
            return 0
        ready = list(filter(_is_live, self._entries))
        number = 1
        while number < len(ready) and self._is_pressing(ready, number, now):
            number += 1
        return number

    def _is_pressing(self, entries: list[Entry], first: int, now: float) -> bool:
        """Whether one of those from place `first` on is late if they do not start one after the other from now on."""
        place = first
        while place < len(entries):
            if _is_live(entries[place]):
                run, before = entries[place][2], place - first
                start_by = self._controller.start_by(run)
                # One of which nobody knows how long it takes has to start now, but presses none before it.
                if now + self._controller.turn_s(run, before) >= start_by and (start_by > -math.inf or not before):
                    return True
            place = first + max(place - first + 1, int(_FURTHER * (place - first)))
        return False


def _is_live(entry: Entry) -> bool:
    # Else it is not ready any more, or was asked for again, with another deadline.
    return entry[2].entry is not None and entry[2].deadline == entry[0]


def _is_kept(entry: Entry) -> bool:
    if _is_live(entry):
        return True
    if entry[2].deadline == entry[0]:
        entry[2].is_claimed = False
    return False
