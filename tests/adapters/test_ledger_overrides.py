"""Overrides and requests in the ledger: set, replaced, lifted, ended, each with its line in the journal (S9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import NOW, arrival, take
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from p3s_prefect.adapters import steering
from p3s_prefect.adapters.ledger import overrides, requests, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.overrides import BREAKER, STOPPING, Override, OverrideKind, Target

_FILE = Path(__file__).parents[1] / "core" / "good_experiment.yaml"
PIPELINE = Target(pipeline="quality")
TARGETS = [
    Target(),
    PIPELINE,
    Target(pipeline="quality", stage="clean"),
    Target(work_class="default"),
    Target(group=DataId.of(run=1)),
    Target(unit=DataId.of(run=1, part=2)),
    Target(pipeline="quality", unit=DataId.of(run=1, part=2)),
]


class At:
    """A clock that stands still."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now


def experiment() -> Experiment:
    return parse_experiment(_FILE.read_text(), file=str(_FILE), environment={})


def give(
    connection: Connection, kind: OverrideKind, target: Target, now: float, *, expires_at: float | None = None
) -> Override:
    value = 3 if kind in (OverrideKind.PRIORITY, OverrideKind.LIMIT) else None
    return overrides.set_override(
        connection, kind=kind, target=target, value=value, by="ana", why="test", now=now, expires_at=expires_at
    )


def journaled(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.reading() as connection:
        rows = connection.execute(select(schema.journal).order_by(schema.journal.c.number))
        return [(row.kind, row.subject) for row in rows if row.detail.get("override")]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_is_read_as_it_was_set(ledger: Ledger, target: Target) -> None:
    """S9."""
    with ledger.transaction() as connection:
        made = give(connection, OverrideKind.HOLD, target, NOW, expires_at=NOW + 60)
    with ledger.reading() as connection:
        assert overrides.in_force(connection) == (made,)
        assert overrides.ids_in_force(connection) == (made.id,)
        assert overrides.in_force(connection, NOW + 60) == ()


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "clear", "expire"]),
        st.sampled_from(sorted(set(OverrideKind) - {OverrideKind.LIMIT})),
        st.sampled_from(TARGETS),
        st.none() | st.integers(1, 10),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_STEPS)
def test_in_force_is_what_was_set_and_neither_lifted_nor_over(
    new_ledger: Callable[[], Ledger], steps: list[tuple[str, OverrideKind, Target, int | None]]
) -> None:
    """S9: against a dictionary; each change has its line in the journal, and numbers are never used again."""
    model: dict[tuple[OverrideKind, Target], float | None] = {}
    lines, numbers = 0, set[int]()
    ledger = new_ledger()
    for tick, (what, kind, target, lasts) in enumerate(steps):
        now = NOW + tick
        with ledger.transaction() as connection:
            match what:
                case "set":
                    expires_at = None if lasts is None else now + lasts
                    made = give(connection, kind, target, now, expires_at=expires_at)
                    assert made.id not in numbers
                    numbers.add(made.id)
                    model[kind, target] = expires_at
                    lines += 1
                case "clear":
                    found = overrides.clear(connection, kinds=[kind], target=target, by="bo", why="", now=now)
                    assert [(one.kind, one.target) for one in found] == [(kind, target)] * ((kind, target) in model)
                    model.pop((kind, target), None)
                    lines += len(found)
                case "expire":
                    over = {key for key, expires_at in model.items() if expires_at is not None and expires_at <= now}
                    assert {(one.kind, one.target) for one in overrides.expire(connection, now)} == over
                    for key in over:
                        del model[key]
                    lines += len(over)
            there = overrides.in_force(connection)
            assert {(one.kind, one.target): one.expires_at for one in there} == model
            assert len(there) == len(model)
    assert len(journaled(ledger)) == lines


def test_a_line_about_data_stands_in_their_own_journal(ledger: Ledger) -> None:
    """S9: what acts on a unit is found under its name."""
    with ledger.transaction() as connection:
        give(connection, OverrideKind.PAUSE, TARGETS[-1], NOW)
        give(connection, OverrideKind.PRIORITY, Target(group=DataId.of(run=1)), NOW)
        give(connection, OverrideKind.LIMIT, PIPELINE, NOW)
        overrides.clear(connection, kinds=STOPPING, target=TARGETS[-1], by="bo", why="over", now=NOW)
    assert journaled(ledger) == [
        ("pause.set", "run=1 part=2"),
        ("priority.set", "run=1"),
        ("limit.set", "quality"),
        ("pause.cleared", "run=1 part=2"),
    ]


def test_who_and_why_are_kept(ledger: Ledger) -> None:
    """S9."""
    with ledger.transaction() as connection:
        give(connection, OverrideKind.PAUSE, PIPELINE, NOW)
        overrides.clear(connection, kinds=STOPPING, target=PIPELINE, by="bo", why="done with it", now=NOW + 1)
        rows = connection.execute(select(schema.journal).order_by(schema.journal.c.number)).all()
    assert [(row.at, row.detail["by"], row.detail["why"]) for row in rows] == [
        (NOW, "ana", "test"),
        (NOW + 1, "bo", "done with it"),
    ]


# --- by name --------------------------------------------------------------------------------------------------------


def test_commands_on_data_that_nobody_has_seen_are_refused(ledger: Ledger) -> None:
    """S8: and nothing is written."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
    steer = Steering(experiment(), ledger, by="ana")
    for target in ("run=99", "run=99 part=1", "quality run=99"):
        with pytest.raises(NoSuchRecord, match="99") as refused:
            steer.hold(target, why="test")
        assert "p3s list" in refused.value.fix
    with pytest.raises(BadName, match="qualty"):
        steer.pause("qualty", why="test")
    assert steer.in_force() == ()
    assert journaled(ledger) == []


@pytest.mark.parametrize(
    ("give", "told"),
    [
        (lambda steer: steer.limit("quality", math.nan, why="x"), "no whole number"),
        (lambda steer: steer.limit("quality", "3", why="x"), "no whole number"),
        (lambda steer: steer.limit("quality", True, why="x"), "no whole number"),
        (lambda steer: steer.priority("quality", "abc", why="x"), "no whole number"),
        (lambda steer: steer.priority("quality", 2.5, why="x"), "no whole number"),
        (lambda steer: steer.priority("quality", 2**70, why="x"), "out of range"),
        (lambda steer: steer.pause("quality", why="x", for_s=math.nan), "no time that could pass"),
        (lambda steer: steer.pause("quality", why="x", for_s=math.inf), "no time that could pass"),
        (lambda steer: steer.pause("quality", why="x", for_s=-1), "no time that could pass"),
        (lambda steer: steer.pause("quality", why="x", for_s="2h"), "no time that could pass"),
        (lambda steer: steer.pause("quality", why=5), "no reason is given"),
        (lambda steer: steer.pause(None, why="x"), "names nothing"),
        (lambda steer: steer.release({}), "names nothing"),
    ],
)
def test_what_python_gives_is_refused_before_it_is_written(
    ledger: Ledger, give: Callable[[Steering], object], told: str
) -> None:
    """S8, S9: a station, and whoever would lift it again, could not read it."""
    steer = Steering(experiment(), ledger, by="ana")
    with pytest.raises(BadName, match=told):
        give(steer)
    assert steer.in_force() == ()
    assert steer.priority("quality", np.int64(5), why="x").value == 5


def test_release_lifts_all_that_stop_and_nothing_else(ledger: Ledger) -> None:
    """P14, S9."""
    steer = Steering(experiment(), ledger, by="ana", clock=At(NOW))
    for give_ in (steer.pause, steer.drain, steer.hold):
        give_("quality", why="test", for_s=60)
    kept = steer.priority("quality", 5, why="test")
    elsewhere = steer.pause("all", why="test")
    assert [one.kind for one in steer.release("quality")] == list(STOPPING)
    assert steer.in_force() == (kept, elsewhere)
    assert [one.expires_at for one in steer.clear([OverrideKind.PRIORITY], "quality")] == [None]


def test_releasing_what_is_not_stopped_says_what_is(ledger: Ledger) -> None:
    """S8: a wider pause holds a unit too, and only its own release lifts it."""
    steer = Steering(experiment(), ledger, by="ana")
    with pytest.raises(NoSuchRecord, match="no pause or drain or hold of quality") as refused:
        steer.release("quality")
    assert "p3s limits" in refused.value.fix
    steer.pause("all", why="test")
    with pytest.raises(NoSuchRecord) as refused:
        steer.release("quality")
    assert "pause of all (`p3s release all`)" in refused.value.fix


def test_what_names_a_pipeline_that_is_gone_can_still_be_lifted(ledger: Ledger) -> None:
    """S9: the experiment file may have changed since."""
    with ledger.transaction() as connection:
        give(connection, OverrideKind.PAUSE, Target(pipeline="gone", stage="quick"), NOW)
    steer = Steering(experiment(), ledger, by="ana")
    assert len(steer.release("gone/quick")) == 1
    with pytest.raises(BadName, match="gone"):
        steer.release("gone/quick")


def test_nobody_gives_orders_as_a_breaker(ledger: Ledger) -> None:
    """V17, S9: the station would take them for its own, and lift them."""
    steer = Steering(experiment(), ledger, by=BREAKER)
    with pytest.raises(BadName, match="who gives the orders of circuit breakers"):
        steer.pause("all", why="a test")
    assert steer.in_force() == ()


def test_a_user_without_a_name_is_told_as_such() -> None:
    """S9: as in a container."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    assert steering.user(nobody) == "unknown"


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_request_is_answered_once(ledger: Ledger) -> None:
    """S9: the first answer counts, be it that nobody answered in time."""
    with ledger.transaction() as connection:
        number = requests.ask(connection, "reload", by="ana", why="new limits", now=NOW)
        (asked,) = requests.open_requests(connection)
        assert (asked.id, asked.is_granted, asked.answer) == (number, None, "")
        requests.answer(connection, asked, is_granted=False, text="too late", now=NOW + 1)
        requests.answer(connection, asked, is_granted=True, text="done", now=NOW + 2)
        found = requests.look_up(connection, number)
        assert (found.is_granted, found.answer) == (False, "too late")
        assert requests.open_requests(connection) == ()
        (row,) = connection.execute(select(schema.journal)).all()
    assert (row.kind, row.detail) == ("reload.refused", {"by": "ana", "why": "new limits", "answer": "too late"})
