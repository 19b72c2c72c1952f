"""Heaps of what may leave otherwise than by coming up: then its entry is stale, and is dropped sooner or later."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")

# A stale entry keeps alive what it names. With n live ones, stale ones are looked for after every n / 8 pushes: in
# overload they are less than a tenth of all. With n / 4 a unit took 80 bytes more.
_PART = 0.125
_FEWEST = 64


def pushes_until_cleared(live: int) -> int:
    """After how many more pushes stale entries are to be looked for, when so many were live the last time."""
    return _FEWEST + int(_PART * live)


class Heap(Generic[_T]):
    """Entries (key, number, item): the smallest key comes up first, of equal ones the smaller number."""

    __slots__ = ("_entries", "_is_live", "_pushes_left")

    def __init__(self, is_live: Callable[[tuple[float, int, _T]], bool]) -> None:
        """`is_live` tells whether an entry still stands for its item."""
        self._is_live = is_live
        self._entries: list[tuple[float, int, _T]] = []
        self._pushes_left = pushes_until_cleared(0)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[_T]:
        """The items of live entries, in no order."""
        return (entry[2] for entry in self._entries if self._is_live(entry))

    def push(self, entry: tuple[float, int, _T]) -> None:
        """One more."""
        self._pushes_left -= 1
        if not self._pushes_left:
            self._drop_stale()
        heapq.heappush(self._entries, entry)

    def first(self) -> tuple[float, int, _T] | None:
        """The one that comes up next; None if there is none."""
        entries = self._entries
        while entries:
            if self._is_live(entries[0]):
                return entries[0]
            heapq.heappop(entries)
        return None

    def first_key(self) -> float:
        """The key of the one that comes up next; infinite if there is none."""
        entry = self.first()
        return math.inf if entry is None else entry[0]

    def pop(self) -> None:
        """Drops the one that came up."""
        heapq.heappop(self._entries)

    def fill(self, entries: Iterable[tuple[float, int, _T]]) -> None:
        """These, all of them live, take the place of what it had."""
        self._entries = list(entries)
        heapq.heapify(self._entries)
        self._pushes_left = pushes_until_cleared(len(self._entries))

    def _drop_stale(self) -> None:
        live = [entry for entry in self._entries if self._is_live(entry)]
        if len(live) < len(self._entries):
            self.fill(live)
        else:
            # To sort them is most of the work, and while a queue grows nothing is stale.
            self._pushes_left = pushes_until_cleared(len(live))
