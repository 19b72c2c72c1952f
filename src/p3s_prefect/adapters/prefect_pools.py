"""Asks a Prefect server about its work pools, over HTTP: no Prefect is needed here, which takes seconds to import."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import httpx

from p3s_prefect.core.errors import ServiceError
from p3s_prefect.core.pool_health import PoolFacts

# Whoever asks waits for this long at most, also where the server hangs.
_PATIENCE_S = 3.0
_TAG = "p3s"
_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


def pools(api_url: str) -> tuple[PoolFacts, ...]:
    """The work pools to which something of this package is deployed; empty too if no Prefect server answers.

    That none does is told by the agent. Who asks is told by the variables that Prefect's own client reads.

    Raises:
        ServiceError: the server tells nothing to whoever asks so.
    """
    try:
        with httpx.Client(base_url=f"{api_url.rstrip('/')}/", timeout=_PATIENCE_S, headers=_credential()) as client:
            return tuple(_facts(client))
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in _REFUSED:
            return ()
        raise ServiceError(
            f"the Prefect server at {api_url} answers {error.response.status_code}: it does not know who asks",
            fix="Set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY, to what it wants.",
        ) from error
    except (httpx.HTTPError, ValueError, KeyError, TypeError):  # or something else does
        return ()


def _credential() -> dict[str, str]:
    """As Prefect's client sends it: of both, the first counts."""
    if name_and_password := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {b64encode(name_and_password.encode()).decode()}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}


def _facts(client: httpx.Client) -> Iterable[PoolFacts]:
    deployed = _ask(client, "deployments/filter", {"deployments": {"tags": {"all_": [_TAG]}}})
    flows = {one["id"]: one["name"] for one in _ask(client, "flows/filter", _any("flows", "id", deployed, "flow_id"))}
    for found in _ask(client, "work_pools/filter", _any("work_pools", "name", deployed, "work_pool_name")):
        yield PoolFacts(
            name=found["name"],
            type=found["type"],
            has_workers=found["status"] == "READY",
            is_paused=found["is_paused"],
            deployments=tuple(
                f"{flows[one['flow_id']]}/{one['name']}" for one in deployed if one["work_pool_name"] == found["name"]
            ),
            waiting=_waiting(client, found["name"]),
        )


def _waiting(client: httpx.Client, pool: str) -> int:
    due = {"state": {"type": {"any_": ["SCHEDULED"]}}, "next_scheduled_start_time": {"before_": _now()}}
    content = {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": due}
    return int(client.post("flow_runs/count", json=content).raise_for_status().json())


def _any(what: str, key: str, found: Iterable[dict[str, Any]], of: str) -> dict[str, Any]:
    return {what: {key: {"any_": sorted({str(one[of]) for one in found if one[of]})}}}


def _ask(client: httpx.Client, path: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    return list(client.post(path, json=content).raise_for_status().json())


def _now() -> str:
    return datetime.now(UTC).isoformat()
