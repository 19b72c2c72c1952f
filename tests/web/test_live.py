"""Live events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
from faces import NewFace

from p3s_prefect.web.live import thinned


async def _burst(count: int, then: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    for number in range(count):
        yield {"number": number}
    await then.wait()
    yield {"number": "last"}


async def test_a_burst_becomes_one_event_and_nothing_is_missed() -> None:
    end = asyncio.Event()
    told = thinned(_burst(10_000, end), 0.02)
    heard = [await anext(told)]
    while sum(event["events"] for event in heard) < 10_000:
        heard.append(await anext(told))
    assert len(heard) <= 2
    assert heard[-1]["number"] == 9999
    end.set()
    assert [event["number"] async for event in told] == ["last"]


async def test_an_error_of_the_source_is_not_swallowed() -> None:
    async def broken() -> AsyncIterator[dict[str, Any]]:
        yield {}
        raise RuntimeError("the feed broke")

    with pytest.raises(RuntimeError, match="the feed broke"):
        [event async for event in thinned(broken(), 0.0)]


async def test_who_leaves_ends_the_source() -> None:
    ended = asyncio.Event()

    async def source() -> AsyncIterator[dict[str, Any]]:
        try:
            yield {}
            await asyncio.Event().wait()
        finally:
            ended.set()

    told = thinned(source(), 0.0)
    await anext(told)
    await told.aclose()
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.sockets
async def test_events_over_http_until_the_station_stops(new_face: NewFace) -> None:
    """A browser hears at once that it should look, then of each change, and the end when the station stops."""
    stop = asyncio.Event()

    async def events() -> AsyncIterator[dict[str, Any]]:
        yield {"kind": "stage.done"}
        await stop.wait()

    heard = []
    async with (
        _serving(new_face(events=events)) as url,
        httpx.AsyncClient(trust_env=False) as client,
        client.stream("GET", f"{url}/api/events", timeout=10) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                heard.append(json.loads(line.removeprefix("data:")))
                if len(heard) == 2:
                    stop.set()
    assert heard == [{"events": 0}, {"kind": "stage.done", "events": 1}]


@contextlib.asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[str]:
    # Listening from the beginning, so that nobody has to wait until the server is up.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        running = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running
