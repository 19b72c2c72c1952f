"""A Prefect server by the paths of its API, for what looks first and changes only what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient

from p3s_prefect.core.deployment import Applied, Became, differences


class DeployedServer:
    """A server that is asked, and changed unless this is a dry run. All methods raise `httpx.HTTPError`."""

    def __init__(self, client: SyncPrefectClient, *, dry_run: bool = False) -> None:
        self._client = client
        self.is_dry_run = dry_run

    def ask(self, path: str, content: Any = None) -> Any:
        """What the server has: by POST for a filter, by GET without content."""
        return self._send("GET" if content is None else "POST", path, content)

    def one(self, path: str, content: Any) -> dict[str, Any] | None:
        """The first that a filter lets through."""
        found = self.ask(path, content)
        return dict(found[0]) if found else None

    def change(self, method: str, path: str, content: Any = None) -> Any:
        """Changes something; None in a dry run."""
        return None if self.is_dry_run else self._send(method, path, content)

    def bring(
        self, kind: str, name: str, wanted: Mapping[str, Any], found: Mapping[str, Any] | None, *, new: str, known: str
    ) -> Applied:
        """Makes something at the path `new`, or changes at `known` what is not as it is wanted."""
        changes = differences(wanted, found)
        if found is None:
            self.change("POST", new, dict(wanted))
        elif changes:
            self.change("PATCH", known, {key: value for key, value in wanted.items() if found.get(key) != value})
        return Applied(kind=kind, name=name, became=became(found, changes), changes=changes)

    def _send(self, method: str, path: str, content: Any) -> Any:
        # The client's list of methods and paths is there for its own functions.
        answer = self._client.request(method, path, json=content)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer.json() if answer.content else None


def became(found: object | None, changes: tuple[str, ...]) -> Became:
    """What was done, from what was found and what differs."""
    if found is None:
        return Became.CREATED
    return Became.UPDATED if changes else Became.UNCHANGED
