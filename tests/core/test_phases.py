"""Where a unit's time went, and what people can be shown."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.phases import PhaseKind, phases
from p3s_prefect.core.views import AttemptRow, StageRow, StepSpan, UnitRow, printable

_TIMES = st.floats(0, 100).map(lambda seconds: 1_800_000_000.0 + round(seconds, 3))


def _attempt(number: int, *times: float | None, steps: tuple[StepSpan, ...] = ()) -> AttemptRow:
    opened_at, started_at, ended_at, published_at = times
    return AttemptRow(
        id=number,
        number=number,
        state="done" if published_at is not None else "running",
        reason="",
        opened_at=opened_at or 0.0,
        started_at=started_at,
        ended_at=ended_at,
        published_at=published_at,
        pilot="p",
        steps=steps,
        log_key=None,
    )


def _unit(taken_at: float, arrived_at: float, settled_at: float | None, stages: list[list[AttemptRow]]) -> UnitRow:
    return UnitRow(
        id=1,
        data_id="run=1 subrun=1",
        per="unit",
        group="run=1",
        pipeline="dqm",
        pass_number=0,
        state="arrived" if settled_at is None else "done",
        reason="",
        taken_at=taken_at,
        arrived_at=arrived_at,
        queued_at=arrived_at,
        started_at=None,
        ended_at=None,
        published_at=None,
        settled_at=settled_at,
        stages=tuple(
            StageRow(
                id=index,
                stage=f"s{index}",
                state="done",
                reason="",
                q=1.0,
                queued_at=arrived_at,
                settled_at=settled_at,
                failures=0,
                losses=0,
                attempts=tuple(attempts),
            )
            for index, attempts in enumerate(stages)
        ),
    )


@st.composite
def units(draw: st.DrawFn) -> UnitRow:
    """Units with up to three stages of up to three attempts, at any times: clocks of pilots may disagree."""
    taken_at, arrived_at, *_ = sorted(draw(st.lists(_TIMES, min_size=2, max_size=2)))
    stages = []
    for _ in range(draw(st.integers(0, 3))):
        attempts = []
        for number in range(draw(st.integers(0, 3))):
            started_at, ended_at = draw(_TIMES), draw(_TIMES)
            steps = (StepSpan(step="a", started_at=draw(_TIMES), ended_at=draw(_TIMES)),)
            attempts.append(_attempt(number, draw(_TIMES), started_at, ended_at, draw(_TIMES), steps=steps))
        stages.append(attempts)
    settled_at = draw(st.one_of(st.none(), _TIMES.map(lambda at: max(at, arrived_at))))
    return _unit(taken_at, arrived_at, settled_at, stages)


@given(units(), _TIMES)
def test_phases_cover_the_time_once(unit: UnitRow, now: float) -> None:
    """They follow each other without gap or overlap, whatever the clocks said."""
    found = phases(unit, now)
    assert found[0].started_at == unit.taken_at
    assert found[-1].ended_at == (max(now, unit.arrived_at) if unit.settled_at is None else unit.settled_at)
    assert all(one.ended_at == other.started_at for one, other in itertools.pairwise(found))
    assert all(phase.ended_at >= phase.started_at for phase in found)


def test_what_is_asked_for_by_hand_has_not_waited_for_its_data() -> None:
    """They came long before; its time counts from then on, as its deadlines do."""
    unit = replace(_unit(0.0, 500.0, None, []), asked_at=500.0)
    assert [(one.kind, one.seconds) for one in phases(unit, now=600.0)] == [
        (PhaseKind.ARRIVAL, 0.0),
        (PhaseKind.WAITING, 100.0),
    ]


def test_phases_of_a_unit_with_a_second_try() -> None:
    steps = (StepSpan(step="work", started_at=6.0, ended_at=8.0),)
    first = _attempt(0, 2.0, 3.0, 4.0, None)
    second = _attempt(1, 5.0, 6.0, 8.0, 8.5, steps=steps)
    found = phases(_unit(0.0, 1.0, 8.5, [[first, second]]), now=100.0)
    assert [(phase.kind, phase.started_at, phase.ended_at) for phase in found] == [
        (PhaseKind.ARRIVAL, 0.0, 1.0),
        (PhaseKind.WAITING, 1.0, 3.0),
        (PhaseKind.RUNNING, 3.0, 4.0),
        (PhaseKind.WAITING, 4.0, 6.0),
        (PhaseKind.RUNNING, 6.0, 8.0),
        (PhaseKind.PUBLISHING, 8.0, 8.5),
    ]
    assert found[4].label == "s0: work"


def test_after_the_end_of_a_failed_unit_nothing_is_waited_for() -> None:
    attempt = _attempt(0, 2.0, 3.0, 4.0, None)
    failed = replace(_unit(0.0, 1.0, 5.0, [[attempt]]), state="failed")
    assert [phase.label for phase in phases(failed, now=9.0)] == [
        *("waited for arrival", "waited", "s0: running", "recorded")
    ]
    expired = replace(failed, state="expired")
    assert phases(expired, now=9.0)[-1].label == "waited"


def test_an_open_unit_runs_until_now() -> None:
    """The ledger learns of a start only with the report: until then the hand-out counts."""
    found = phases(_unit(0.0, 1.0, None, [[_attempt(0, 2.0, None, None, None)]]), now=7.0)
    assert (found[-1].kind, found[-1].seconds) == (PhaseKind.RUNNING, 5.0)


@given(st.text())
def test_printable_leaves_nothing_that_acts(text: str) -> None:
    """S7: a log or a file name cannot move the cursor, ring the bell or turn the reading direction."""
    assert all(letter.isprintable() or letter in "\n\t" for letter in printable(text))


def test_printable_keeps_plain_text_and_escapes_the_rest() -> None:
    assert printable("µs\tσ = 2\n") == "µs\tσ = 2\n"
    assert printable("\x1b[31m\u202etxt.exe\x00") == r"\x1b[31m\u202etxt.exe\x00"
