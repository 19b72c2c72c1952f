"""What breakers do in the ledger: an open one is a pause of its pipeline, a half-open one a limit of 1 (V17).

Both are overrides, so that they win over the experiment file, are shown wherever they act, and outlive the station.
What people have set on the same pipeline stays theirs: their pause is left alone, and their limit comes back.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger import journal, overrides
from p3s_prefect.adapters.ledger.schema import override
from p3s_prefect.core.breaker import BreakerState
from p3s_prefect.core.overrides import BREAKER, Override, OverrideKind, Target

_KINDS = (OverrideKind.PAUSE, OverrideKind.LIMIT)


def of_breakers(connection: Connection) -> tuple[Override, ...]:
    """The overrides in force that breakers have set."""
    return tuple(one for one in overrides.in_force(connection) if one.by == BREAKER and one.kind in _KINDS)


def write(connection: Connection, pipeline: str, state: BreakerState, why: str, now: float) -> Override | None:
    """Makes the overrides of a pipeline those of its breaker's state; returns the one in force.

    None if there is none: the breaker is closed, or somebody has paused the pipeline, who will know when to go on.
    """
    _lift(connection, pipeline, why, now)
    target = Target(pipeline=pipeline)
    if state is BreakerState.OPEN and _of_others(connection, OverrideKind.PAUSE, target):
        return None
    journal.write(connection, now, f"breaker.{state}", pipeline, why=why)
    if state is BreakerState.CLOSED:
        return None
    if state is BreakerState.OPEN:
        kind, value = OverrideKind.PAUSE, None
    else:
        # Where somebody lets none run, there is no canary either.
        kind, value = OverrideKind.LIMIT, min([1, *_limits_of_others(connection, target)])
    return overrides.set_override(connection, kind=kind, target=target, value=value, by=BREAKER, why=why, now=now)


def _lift(connection: Connection, pipeline: str, why: str, now: float) -> None:
    """Ends what this pipeline's breaker has set, and puts the limit in force again that it took the place of."""
    target = Target(pipeline=pipeline)
    for one in of_breakers(connection):
        if one.target == target:
            overrides.clear(connection, kinds=[one.kind], target=target, by=BREAKER, why=why, now=now)
            if one.kind is OverrideKind.LIMIT:
                _restore(connection, one, now)


def _restore(connection: Connection, ours: Override, now: float) -> None:
    replaced = connection.execute(
        select(override).where(
            override.c.kind == ours.kind,
            override.c.pipeline == ours.target.pipeline,
            override.c.stage.is_(None),
            override.c.ended_at == ours.set_at,
            override.c.id < ours.id,
            override.c.given_by != BREAKER,
        )
    ).one_or_none()
    if replaced is not None and (replaced.expires_at is None or replaced.expires_at > now):
        overrides.set_override(
            connection,
            kind=ours.kind,
            target=ours.target,
            value=replaced.value,
            by=replaced.given_by,
            why=replaced.why,
            now=now,
            expires_at=replaced.expires_at,
        )


def _limits_of_others(connection: Connection, target: Target) -> list[int]:
    return [one.value for one in _of_others(connection, OverrideKind.LIMIT, target) if one.value is not None]


def _of_others(connection: Connection, kind: OverrideKind, target: Target) -> list[Override]:
    found = overrides.in_force(connection)
    return [one for one in found if one.kind is kind and one.target == target and one.by != BREAKER]
