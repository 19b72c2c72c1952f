"""Faces of a station, and browsers that look at them without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from starlette.applications import Starlette

NewFace = Callable[..., Starlette]


class Browser:
    """Asks for pages, keeps cookies, follows no redirect."""

    def __init__(self, app: Starlette, **headers: str) -> None:
        self._app = app
        self._headers = {"Accept": "text/html", **headers}
        self._cookies = httpx.Cookies()

    def request(self, method: str, address: str, *, hide_defects: bool = False, **request: Any) -> httpx.Response:
        """The answer to one request."""
        return asyncio.run(self._request(method, address, hide_defects, request))

    def get(self, address: str, **request: Any) -> httpx.Response:
        """See `request`."""
        return self.request("GET", address, **request)

    async def _request(self, method: str, address: str, hide_defects: bool, request: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=not hide_defects)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", headers=self._headers, cookies=self._cookies
        ) as client:
            answer = await client.request(method, address, **request)
            self._cookies = client.cookies
            return answer
