"""Heaps of what may leave otherwise than by coming up: then its entry is stale, and is dropped sooner or later."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

# A stale entry keeps alive what it names. Looked for once in an eighth as many pushes as there are live ones, they are
# some twentieth of all in overload, and a push costs a microsecond more.
_PART = 0.125
_FEWEST = 64


def pushes_until_cleared(live: int) -> int:
    """After how many more pushes stale entries are to be looked for, when so many were live the last time."""
    return _FEWEST + int(_PART * live)


class Heap(Generic[Item]):
    """Entries (key, number, item): the smallest key comes up first, of equal ones the smaller number."""

    __slots__ = ("_entries", "_is_live", "_pushes_left")

    def __init__(self, is_live: Callable[[tuple[float, int, Item]], bool]) -> None:
        """`is_live` tells whether an entry still stands for its item."""
        self._is_live = is_live
        self._entries: list[tuple[float, int, Item]] = []
        self._pushes_left = pushes_until_cleared(0)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Item]:
        """The items of live entries, in no order."""
        return (entry[2] for entry in self._entries if self._is_live(entry))

    def push(self, entry: tuple[float, int, Item]) -> None:
        """One more."""
        self._pushes_left -= 1
        if not self._pushes_left:
            self.fill(filter(self._is_live, self._entries))
        heapq.heappush(self._entries, entry)

    def first(self) -> tuple[float, int, Item] | None:
        """The one that comes up next; None if there is none."""
        entries = self._entries
        while entries:
            if self._is_live(entries[0]):
                return entries[0]
            heapq.heappop(entries)
        return None

    def first_key(self, otherwise: float) -> float:
        """Its key."""
        entry = self.first()
        return otherwise if entry is None else entry[0]

    def pop(self) -> None:
        """Drops the one that came up."""
        heapq.heappop(self._entries)

    def fill(self, entries: Iterable[tuple[float, int, Item]]) -> None:
        """These, all of them live, take the place of what it had."""
        self._entries = list(entries)
        heapq.heapify(self._entries)
        self._pushes_left = pushes_until_cleared(len(self._entries))
