"""A gate: many may be inside at once, until somebody needs that nobody is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Open at first. Shut by one at a time."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """Enters, when the gate is open. Whoever is inside does not enter again."""
        # Woken waiters run later: it may have been shut again meanwhile.
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Lets nobody in, and waits until all are out."""
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()
