"""The Prefect server as the agent sees it: a few requests, and what was sent lately."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from prefect.client.orchestration import PrefectClient

_T = TypeVar("_T")
# What was recorded lately is not sent again: enough for some minutes.
_REMEMBERED = 20_000


class PrefectServer:
    """Requests to a Prefect server, by the paths of its API."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._recorded: dict[str, None] = {}

    async def get(self, path: str) -> Any:
        """Asks for something; raises as `post`."""
        # The client's list of paths is there for its own methods.
        return (await self._client.request("GET", path)).json()  # type: ignore[arg-type]

    async def post(self, path: str, content: Any) -> Any:
        """Sends something, and gives the answer.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses.
        """
        answer = await self._client.request("POST", path, json=content)  # type: ignore[arg-type]
        return answer.json() if answer.content else None

    async def patch(self, path: str, content: Any) -> None:
        """Changes something; raises as `post`."""
        await self._client.request("PATCH", path, json=content)  # type: ignore[arg-type]

    async def delete(self, path: str) -> None:
        """Removes something; raises as `post`."""
        await self._client.request("DELETE", path)  # type: ignore[arg-type]

    def is_recorded(self, what: str) -> bool:
        """Whether something is known to stand there."""
        return what in self._recorded

    def remember(self, *what: str) -> None:
        """Notes that something stands there."""
        self._recorded |= dict.fromkeys(what)
        while len(self._recorded) > _REMEMBERED:
            del self._recorded[next(iter(self._recorded))]

    def forget(self) -> None:
        """Forgets all of it."""
        self._recorded.clear()


def portions(things: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """The same things, `size` at a time."""
    return (things[start : start + size] for start in range(0, len(things), size))


def any_of(ids: Iterable[object]) -> dict[str, list[str]]:
    """A filter that lets these through."""
    return {"any_": [str(found) for found in ids]}
