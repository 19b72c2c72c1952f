"""Is the record in Prefect up to date? Data are processed without it: at worst it is degraded, never down."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.health import HealthRow, Status, duration

# The record follows within 5 s; an agent that starts takes 10 s, and the Prefect server's first start up to 30 s.
LATE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RecordFacts:
    """How far Prefect's record is behind the journal. `*_at` is UTC in seconds since 1970."""

    at: float
    behind: int
    """Lines of the journal that are not recorded."""
    oldest_at: float | None
    """When the oldest of them was written; None if there is none."""
    seen_at: float | None
    """Last sign of life of the agent; None if it never ran."""
    problem: str
    """Why the agent cannot record; empty if it can."""


def record(facts: RecordFacts) -> HealthRow:
    """Whether what people see in Prefect is what happened."""
    late_s = 0.0 if facts.oldest_at is None else facts.at - facts.oldest_at
    status, cause, action = _judged(facts, late_s)
    return HealthRow(
        name="prefect",
        nominal=f"recorded within {duration(LATE_S)}",
        actual=f"{facts.behind} entries, {duration(late_s)} behind" if facts.behind else "up to date",
        status=status,
        cause=cause,
        action=action,
    )


def _judged(facts: RecordFacts, late_s: float) -> tuple[Status, str, str]:
    late = "Data are processed all the same; what is missing in Prefect is recorded afterwards."
    if facts.problem:
        return Status.DEGRADED, facts.problem, f"Look into run/logs/prefect.log. {late}"
    if facts.behind and late_s > LATE_S:
        silent = facts.seen_at is None or facts.at - facts.seen_at > LATE_S
        cause = "the agent is silent" if silent else "the agent records more slowly than things happen"
        return Status.DEGRADED, cause, f"Look into run/logs/agent.log. {late}"
    return Status.OK, "", ""
