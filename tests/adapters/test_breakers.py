"""What breakers write into the ledger, beside what people have set (V17, S9)."""

from __future__ import annotations

from typing import Any

import pytest
from builders import NOW
from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger import breakers, overrides, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.breaker import BreakerState
from p3s_prefect.core.overrides import BREAKER, Override, OverrideKind, Target

OPEN, HALF_OPEN, CLOSED = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED
DQM = Target(pipeline="dqm")


def given(connection: Connection) -> list[tuple[str, str]]:
    return [(one.effect, one.by) for one in overrides.in_force(connection)]


def order(connection: Connection, kind: OverrideKind, target: Target = DQM, **fields: Any) -> Override:
    return overrides.set_override(connection, kind=kind, target=target, by="anna", why="mine", now=NOW, **fields)


def test_open_is_a_pause_half_open_a_limit_and_closed_nothing(ledger: Ledger) -> None:
    """V17: each with its reason, in the journal too."""
    with ledger.transaction() as connection:
        made = breakers.write(connection, "dqm", OPEN, "5 of 6 failed", NOW)
        assert made is not None
        assert (made.effect, made.why, made.set_at, made.by) == ("pause of dqm", "5 of 6 failed", NOW, BREAKER)
        assert breakers.of_breakers(connection) == (made,)
        breakers.write(connection, "dqm", HALF_OPEN, "a canary", NOW + 60)
        assert given(connection) == [("limit 1 of dqm", BREAKER)]
        breakers.write(connection, "dqm", OPEN, "again", NOW + 61)
        assert given(connection) == [("pause of dqm", BREAKER)]
        assert breakers.write(connection, "dqm", CLOSED, "well", NOW + 62) is None
        assert given(connection) == []
        told = connection.execute(select(schema.journal.c.kind, schema.journal.c.subject)).all()
    assert [kind for kind, subject in told if kind.startswith("breaker.") and subject == "dqm"] == [
        *("breaker.open", "breaker.half-open", "breaker.open", "breaker.closed")
    ]


def test_somebodys_pause_is_left_alone(ledger: Ledger) -> None:
    """V17, S9: a canary must not end what a person wanted."""
    with ledger.transaction() as connection:
        order(connection, OverrideKind.PAUSE)
        assert breakers.write(connection, "dqm", OPEN, "5 of 6 failed", NOW + 1) is None
        assert given(connection) == [("pause of dqm", "anna")]


def test_somebodys_limit_comes_back(ledger: Ledger) -> None:
    """V17, S9: with its own value, reason and end; that of a class is never touched."""
    with ledger.transaction() as connection:
        order(connection, OverrideKind.LIMIT, Target(work_class="prompt"), value=7)
        order(connection, OverrideKind.LIMIT, value=5, expires_at=NOW + 1000)
        breakers.write(connection, "dqm", OPEN, "failed", NOW + 1)
        breakers.write(connection, "dqm", HALF_OPEN, "canary", NOW + 2)
        breakers.write(connection, "dqm", CLOSED, "well", NOW + 3)
        assert given(connection) == [("limit 7 of class:prompt", "anna"), ("limit 5 of dqm", "anna")]
        *_, limit = overrides.in_force(connection)
    assert (limit.why, limit.expires_at) == ("mine", NOW + 1000)


@pytest.mark.parametrize("ends_at", [NOW + 2.5, NOW + 3])
def test_a_limit_whose_time_has_passed_meanwhile_does_not_come_back(ledger: Ledger, ends_at: float) -> None:
    """V17, S9: while the breaker had set its own."""
    with ledger.transaction() as connection:
        order(connection, OverrideKind.LIMIT, value=5, expires_at=ends_at)
        breakers.write(connection, "dqm", HALF_OPEN, "canary", NOW + 2)
        breakers.write(connection, "dqm", CLOSED, "well", NOW + 3)
        assert given(connection) == []


def test_where_somebody_lets_none_run_there_is_no_canary(ledger: Ledger) -> None:
    """V17, S9: half-open must not let through what a person has stopped; their limit comes back as it was."""
    with ledger.transaction() as connection:
        order(connection, OverrideKind.LIMIT, value=0)
        breakers.write(connection, "dqm", HALF_OPEN, "canary", NOW + 1)
        assert given(connection) == [("limit 0 of dqm", BREAKER)]
        breakers.write(connection, "dqm", CLOSED, "well", NOW + 2)
        assert given(connection) == [("limit 0 of dqm", "anna")]


def test_other_pipelines_are_not_touched(ledger: Ledger) -> None:
    """V17: the breaker is that of one."""
    with ledger.transaction() as connection:
        breakers.write(connection, "dqm", OPEN, "failed", NOW)
        breakers.write(connection, "alerts", OPEN, "failed", NOW)
        breakers.write(connection, "dqm", CLOSED, "well", NOW + 3)
        assert given(connection) == [("pause of alerts", BREAKER)]
