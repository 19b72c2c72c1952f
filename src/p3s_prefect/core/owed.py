"""What floors let in: it is owed a slot in time, however much stands before it."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from p3s_prefect.core.open_work import Entry, Run

# By how much a look goes further than the one before: places between two looks count as if they were as early as the
# first of them, so that a slot is given too early rather than too late.
_FURTHER = 1.25
# Stale entries are dropped when there are more than these and a part of the others.
_FEW = 16


class Owed:
    """Ready runs that are owed a slot, by their deadlines. What left the queue leaves stale entries behind."""

    def __init__(self, long_s: Callable[[Run], float], is_full: Callable[[Run], bool]) -> None:
        """`long_s` is how long a run may take, `is_full` whether its pipeline is at a limit."""
        self._long_s, self._is_full = long_s, is_full
        self._entries: list[Entry] = []
        self._most = _FEW

    def add(self, run: Run) -> None:
        """It is ready."""
        if run.is_claimed:
            return
        if len(self._entries) > self._most:
            self._drop_stale()
        run.is_claimed = True
        insort(self._entries, (run.deadline, run.id, run))

    def __len__(self) -> int:
        return len(self._entries)

    def first(self, now: float, capacity: int) -> Run | None:
        """What has to start now, before everything else, so that none of them is late."""
        while self._entries and not _is_live(self._entries[0]):
            del self._entries[0]
        if not self._entries or self._is_full(self._entries[0][2]) or not self._is_pressing(0, now, capacity):
            return None
        return self._entries[0][2]

    def number_first(self, now: float, capacity: int) -> int:
        """How many of them, by their deadlines, go before everything else now."""
        if self.first(now, capacity) is None:
            return 0
        self._drop_stale()
        number = 1
        while number < len(self._entries) and self._is_pressing(number, now, capacity):
            number += 1
        return number

    def _drop_stale(self) -> None:
        self._entries = list(filter(_is_live, self._entries))
        self._most = _FEW + int(_FURTHER * len(self._entries))

    def _is_pressing(self, first: int, now: float, capacity: int) -> bool:
        """Whether one of those from place `first` on is late if they do not start one after the other from now on."""
        place = first
        while place < len(self._entries):
            deadline, _, run = self._entries[place]
            following = first + max(place - first + 1, int(_FURTHER * (place - first)))
            before = min(following, len(self._entries)) - first
            if deadline - now <= self._long_s(run) * (1 + before / max(1, capacity)):
                return True
            place = following
        return False


def _is_live(entry: Entry) -> bool:
    # It is not ready any more, or was asked for again, with another deadline.
    if entry[2].entry is not None and entry[2].deadline == entry[0]:
        return True
    if entry[2].deadline == entry[0]:
        entry[2].is_claimed = False
    return False
