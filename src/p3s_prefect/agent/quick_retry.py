"""Answers of a Prefect server that was busy for a moment are asked for again at once.

On SQLite two requests may want to write at the same moment; one of them is answered with 503, nothing of it is
written, and Prefect's client waits 2 s before it asks again. That was the 2 to 3 s that now and then stood between a
run's "submitting" and "submitted": about one run in ten under load. Asked again after some milliseconds, it is done.
"""

from __future__ import annotations

import asyncio

import httpx
from prefect.client.orchestration import PrefectClient

# A commit of the server takes 5 to 50 ms.
_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)


class QuickRetry(httpx.AsyncBaseTransport):
    """A transport that asks again soon, where the server does not say when; then Prefect's own patience counts."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request; see httpx."""
        for pause_s in _PAUSES_S:
            answer = await self._inner.handle_async_request(request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or "Retry-After" in answer.headers:
                return answer
            await answer.aclose()
            await asyncio.sleep(pause_s)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Closes what it stands before."""
        await self._inner.aclose()


def retry_quickly(client: PrefectClient) -> None:
    """Lets a client ask again soon."""
    # Prefect sets its own transport in this way: given to httpx beforehand, it would do without proxies.
    inner = client._client
    inner._transport = QuickRetry(inner._transport)
