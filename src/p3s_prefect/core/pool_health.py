"""Does somebody take what is to be run from Prefect? Data of a station are processed all the same."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.health import HealthRow, Status


@dataclass(frozen=True, kw_only=True)
class PoolFacts:
    """A work pool as Prefect sees it."""

    name: str
    type: str
    has_workers: bool
    """Whether a worker has asked for work lately."""
    is_paused: bool
    deployments: tuple[str, ...]
    """What is deployed to it, as ``flow/deployment``."""
    waiting: int
    """Runs whose time has come, and that nobody has taken."""


def pool(facts: PoolFacts, *, own: str) -> HealthRow:
    """Whether runs that are asked for will start. Without any, a pool may be without workers.

    `own` is the pool that the experiment's agent serves.
    """
    deployed = ", ".join(facts.deployments)
    row = {"name": f"pool {facts.name}", "nominal": f"a worker for {deployed}"}
    if facts.is_paused:
        return HealthRow(
            **row,
            actual=f"paused, {_runs(facts.waiting)}",
            status=Status.DEGRADED if facts.waiting else Status.OK,
            cause="somebody has paused the work pool in Prefect",
            action=f"`prefect work-pool resume {facts.name}` lets its runs start.",
        )
    if facts.has_workers:
        return HealthRow(**row, actual=f"a worker, {_runs(facts.waiting)}", status=Status.OK)
    return HealthRow(
        **row,
        actual=f"no worker, {_runs(facts.waiting)}",
        status=Status.DEGRADED if facts.waiting else Status.OK,
        cause=f"no worker takes runs of {deployed}",
        action=_start(facts, own),
    )


def untold(why: str, fix: str) -> HealthRow:
    """Where the server does not say: runs may wait for ever, and nobody sees it."""
    return HealthRow(
        name="pools", nominal="told by Prefect", actual="not told", status=Status.DEGRADED, cause=why, action=fix
    )


def _start(facts: PoolFacts, own: str) -> str:
    by_hand = f"`prefect worker start --pool {facts.name}` starts one, where the experiment's home can be reached."
    if facts.type != "p3s":
        return by_hand
    if facts.name == own:
        return f"`p3s up` starts it; or look into run/logs/agent.log. {by_hand}"
    return f"`p3s up` starts it in a home whose experiment file has `prefect: {{pool: {facts.name}}}`. {by_hand}"


def _runs(waiting: int) -> str:
    return {0: "nothing waits", 1: "1 run waits"}.get(waiting, f"{waiting} runs wait")
