"""Live events for browsers and programs, thinned so that a busy station costs a reader no more than a quiet one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from p3s_prefect.web.face import face_of

# Nobody sees more than one change a second, and a page costs some milliseconds to make.
PERIOD_S = 1.0
# Proxies drop connections that are silent for a minute.
PING_S = 15


async def events(request: Request) -> EventSourceResponse:
    """Server-sent events named ``changed``: one at once, and one after something has happened."""
    return EventSourceResponse(_as_sent(thinned(face_of(request).events(), PERIOD_S)), ping=PING_S)


async def thinned(source: AsyncIterator[dict[str, Any]], period_s: float) -> AsyncIterator[dict[str, Any]]:
    """The events of `source`, at most one every `period_s`.

    The first goes out at once. Of those that follow within the period the last one goes out at its end, with their
    number as ``events``. Ends when the source does. Only the last event is kept.
    """
    last: dict[str, Any] = {}
    count = 0
    wake = asyncio.Event()

    async def take() -> None:
        nonlocal last, count
        async for event in source:
            last, count = event, count + 1
            wake.set()

    taker = asyncio.create_task(take())
    taker.add_done_callback(lambda _: wake.set())
    try:
        while not taker.done() or count:
            await wake.wait()
            wake.clear()
            if count:
                told, count = {**last, "events": count}, 0
                yield told
                await asyncio.wait([taker], timeout=period_s)
        taker.result()
    finally:
        taker.cancel()


async def _as_sent(source: AsyncIterator[dict[str, Any]]) -> AsyncIterator[ServerSentEvent]:
    # Who connects again may have missed something.
    yield ServerSentEvent(event="changed", data=json.dumps({"events": 0}))
    async for event in source:
        yield ServerSentEvent(event="changed", data=json.dumps(event))
