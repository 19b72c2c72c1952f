"""What is in force by command: which of several counts, and on what it acts."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.health import Status, steering
from p3s_prefect.core.overrides import STOPPING, Controls, Override, OverrideKind, Target, Work

WORK = Work(
    work_class="dqm",
    pipeline="waveform",
    stage="quick",
    group=DataId.of(run=1),
    unit=DataId.of(run=1, subrun=2),
)
KINDS = st.sampled_from(OverrideKind)


def override(number: int, kind: OverrideKind, target: Target, *, value: int = 0) -> Override:
    counted = kind in (OverrideKind.PRIORITY, OverrideKind.LIMIT)
    return Override(
        id=number,
        kind=kind,
        target=target,
        value=value if counted else None,
        by="ana",
        why="test",
        set_at=float(number),
    )


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """Some of what `WORK` is, and now and then something else."""
    chosen: dict[str, object] = {}
    for name, others in (("work_class", "cal"), ("pipeline", "tracks"), ("stage", "full")):
        chosen[name] = draw(st.sampled_from([None, getattr(WORK, name), others]))
    chosen["group"] = draw(st.sampled_from([None, WORK.group, DataId.of(run=9)]))
    chosen["unit"] = draw(st.sampled_from([None, WORK.unit, DataId.of(run=9, subrun=9)]))
    if chosen["pipeline"] is None:
        chosen["stage"] = None
    return Target(**chosen)  # type: ignore[arg-type]


@st.composite
def several(draw: st.DrawFn) -> list[Override]:
    numbers = draw(st.permutations(range(draw(st.integers(0, 8)))))
    kinds = st.sampled_from([kind for kind in OverrideKind if kind is not OverrideKind.LIMIT])
    return [override(number, draw(kinds), draw(targets()), value=number) for number in numbers]


def covers(target: Target, work: Work) -> bool:
    """By definition: it agrees with all that is given."""
    return all(getattr(target, one.name) in (None, getattr(work, one.name)) for one in fields(target))


def given_of(target: Target) -> set[str]:
    return {one.name for one in fields(target) if getattr(target, one.name) is not None}


@given(several(), st.booleans())
def test_the_narrowest_counts_and_of_equally_narrow_ones_the_newest(found: list[Override], begun: bool) -> None:
    """S9, P10: nothing that covers the work is narrower than what counts, nor as narrow and newer."""
    controls = Controls(found)
    pause = controls.stopped(WORK, begun=True)
    answers = {
        OverrideKind.PRIORITY: controls.priority(WORK),
        OverrideKind.PAUSE: pause,
        OverrideKind.HOLD: controls.held(WORK),
    }
    for kind, answer in answers.items():
        there = [one for one in found if one.kind is kind and covers(one.target, WORK)]
        assert (answer is None) == (not there)
        for other in there:
            assert answer is not None
            assert not given_of(other.target) > given_of(answer.target)
            assert given_of(other.target) != given_of(answer.target) or other.id <= answer.id
    drained = any(one.kind is OverrideKind.DRAIN and covers(one.target, WORK) for one in found)
    assert (controls.stopped(WORK, begun=begun) is not None) == (pause is not None or (drained and not begun))
    assert {one.id for one in controls.acting_on(WORK)} == {one.id for one in found if covers(one.target, WORK)}
    assert bool(controls) == bool(found)


@given(several())
def test_the_order_in_which_they_are_told_does_not_matter(found: list[Override]) -> None:
    """S9."""
    assert Controls(found).overrides == Controls(reversed(found)).overrides


def test_a_unit_is_narrower_than_its_group_and_data_are_narrower_than_code() -> None:
    """P10: the order that `Target.narrowness` promises, from wide to narrow."""
    stage = Target(pipeline="waveform", stage="quick")
    ranked = [
        Target(),
        Target(work_class="dqm"),
        Target(pipeline="waveform"),
        stage,
        Target(group=WORK.group),
        replace(stage, group=WORK.group),
        Target(unit=WORK.unit),
        replace(stage, unit=WORK.unit),
    ]
    for number, wider in enumerate(ranked):
        for narrower in ranked[number + 1 :]:
            found = [override(1, OverrideKind.PRIORITY, narrower, value=7), override(2, OverrideKind.PRIORITY, wider)]
            chosen = Controls(found).priority(WORK)
            assert chosen is not None
            assert chosen.value == 7


def test_a_stage_per_group_is_covered_by_its_group_and_not_by_a_unit() -> None:
    """P14."""
    whole = replace(WORK, unit=None)
    assert Controls([override(1, OverrideKind.HOLD, Target(group=WORK.group))]).held(whole)
    assert not Controls([override(1, OverrideKind.HOLD, Target(unit=WORK.unit))]).held(whole)


def test_limits_are_those_of_a_class_or_a_pipeline() -> None:
    """P14: each has its own, the newest counts, and one of the class is none of its pipelines."""
    of_class, of_pipeline = Target(work_class="dqm"), Target(pipeline="waveform")
    given_limits = [
        override(1, OverrideKind.LIMIT, of_class, value=5),
        override(2, OverrideKind.LIMIT, of_pipeline, value=3),
        override(3, OverrideKind.LIMIT, of_pipeline, value=0),
    ]
    controls = Controls(given_limits)
    assert controls.limit(work_class="dqm") == given_limits[0]
    assert controls.limit(work_class="dqm", pipeline="waveform") == given_limits[2]
    assert controls.limit(work_class="cal") is None
    assert controls.limit(work_class="dqm", pipeline="tracks") is None


@pytest.mark.parametrize(
    ("target", "instead"),
    [
        (Target(), "`p3s limits class:NAME 3`"),
        (Target(work_class="dqm", pipeline="waveform"), "`p3s limits class:NAME 3`"),
        (Target(group=WORK.group), "`p3s priority run=1 -1`"),
        (Target(pipeline="waveform", unit=WORK.unit), "`p3s pause waveform run=1 subrun=2`"),
        (Target(pipeline="waveform", stage="quick"), "`p3s limits waveform 3`"),
    ],
)
def test_nothing_else_has_a_limit(target: Target, instead: str) -> None:
    """S8: and it is said what comes nearest."""
    with pytest.raises(BadName, match="a limit of") as refused:
        override(1, OverrideKind.LIMIT, target, value=3)
    assert "class:NAME" in str(refused.value)
    assert instead in str(refused.value)


def test_what_contradicts_itself_is_refused() -> None:
    """S8."""
    with pytest.raises(BadName, match="without its pipeline"):
        Target(stage="quick")
    with pytest.raises(BadName, match="a limit of -1"):
        override(1, OverrideKind.LIMIT, Target(pipeline="waveform"), value=-1)
    for kind in OverrideKind:
        told = None if kind in (OverrideKind.PRIORITY, OverrideKind.LIMIT) else 3
        with pytest.raises(BadName):
            Override(id=1, kind=kind, target=Target(pipeline="waveform"), value=told, by="ana", why="", set_at=0.0)


@given(KINDS, st.floats(0, 1e9), st.floats(0, 1e9))
def test_it_is_over_at_its_time_and_not_before(kind: OverrideKind, expires_at: float, now: float) -> None:
    """S9."""
    made = override(1, kind, Target(pipeline="waveform"))
    assert not made.is_over(now)
    assert replace(made, expires_at=expires_at).is_over(now) == (expires_at <= now)


@pytest.mark.parametrize(
    ("kind", "lift"),
    [
        (OverrideKind.PAUSE, "p3s release waveform"),
        (OverrideKind.PRIORITY, "p3s priority waveform --clear"),
        (OverrideKind.LIMIT, "p3s limits waveform --clear"),
    ],
)
def test_each_tells_how_it_is_lifted(kind: OverrideKind, lift: str) -> None:
    """S9."""
    assert override(1, kind, Target(pipeline="waveform")).lift == lift


@given(st.lists(KINDS, max_size=4))
def test_the_health_row_names_what_stops_work_and_how_to_lift_it(kinds: list[OverrideKind]) -> None:
    """S9, P19: what only re-orders is told too, and is well."""
    found = [override(number, kind, Target(pipeline="waveform"), value=7) for number, kind in enumerate(kinds)]
    rows = steering(found)
    assert len(rows) == bool(found)
    for row in rows:
        stopped = any(kind in STOPPING for kind in kinds)
        assert row.status is (Status.DEGRADED if stopped else Status.OK)
        assert not stopped or ("by ana: test" in row.cause and "p3s release waveform" in row.action)
