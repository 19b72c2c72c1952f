"""Live events for whoever listens: hints that something changed, never the record of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

Event = dict[str, Any]
_MOST_WAITING = 100


class Feed:
    """Hands each event to every listener; one that does not keep up misses some."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Event]] = set()
        self._ended = asyncio.Event()

    def tell(self, kind: str, **detail: Any) -> None:
        """Tells all listeners."""
        for listener in self._listeners:
            if not listener.full():
                listener.put_nowait({"kind": kind, **detail})

    def end(self) -> None:
        """Ends every listener's iterator."""
        self._ended.set()

    async def listen(self) -> AsyncIterator[Event]:
        """Events from now on, until the station stops."""
        listener: asyncio.Queue[Event] = asyncio.Queue(_MOST_WAITING)
        self._listeners.add(listener)
        ended = asyncio.create_task(self._ended.wait())
        event = asyncio.create_task(listener.get())
        try:
            while not ended.done():
                await asyncio.wait({event, ended}, return_when=asyncio.FIRST_COMPLETED)
                if event.done():
                    told, event = event.result(), asyncio.create_task(listener.get())
                    yield told
        finally:
            event.cancel()
            ended.cancel()
            self._listeners.discard(listener)
