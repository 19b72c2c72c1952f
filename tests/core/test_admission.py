"""Letting units in: the prescale's choice (P4) and the pipelines that take a unit."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling import chain, pipelines, stage

from p3s_prefect.core import dag
from p3s_prefect.core.admission import admit_by_hand, admit_group, admit_unit, choose_pipelines
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, Rule, Stream
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState

UNITS = [DataId.of(run=run, part=part) for run in range(100) for part in range(100)]
# The 99.9 % points of chi-square for 9, 63 and 99 degrees of freedom.
_CHI_SQUARE = {9: 27.88, 63: 103.44, 99: 148.23}


def _chi_square(counts: Counter[int], bins: int) -> float:
    expected = counts.total() / bins
    return sum((counts[index] - expected) ** 2 / expected for index in range(bins))


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 20200218])
def test_the_share_is_the_prescale(q: float, seed: int) -> None:
    """P4: within 3 standard deviations of q over 10,000 units."""
    kept = sum(sample_number(unit, seed) < q for unit in UNITS)
    assert abs(kept - q * len(UNITS)) <= 3 * math.sqrt(len(UNITS) * q * (1 - q))


def test_the_choice_is_spread_evenly_over_parts_and_over_time() -> None:
    """P4: chi-square of what a prescale of 0.1 keeps, by part and by run, and of u in 64 bins."""
    kept = [unit for unit in UNITS if sample_number(unit, 7) < 0.1]
    for dimension in ("part", "run"):
        assert _chi_square(Counter(int(unit[dimension]) for unit in kept), 100) < _CHI_SQUARE[99]
    assert _chi_square(Counter(int(sample_number(unit, 7) * 64) for unit in UNITS), 64) < _CHI_SQUARE[63]


def test_u_is_uniform() -> None:
    """P4: Kolmogorov-Smirnov distance of 10,000 values below its 99.9 % point, 1.95 / sqrt(n)."""
    ordered = sorted(sample_number(unit, 3) for unit in UNITS)
    n = len(ordered)
    distance = max(max((rank + 1) / n - u, u - rank / n) for rank, u in enumerate(ordered))
    assert distance < 1.95 / math.sqrt(n)


def test_seeds_choose_independently() -> None:
    """P4: the second digit of u under one seed says nothing about that under another."""
    pairs = Counter(10 * int(sample_number(unit, 1) * 10) + int(sample_number(unit, 2) * 10) for unit in UNITS)
    assert _chi_square(pairs, 100) < _CHI_SQUARE[99]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers())
def test_u_is_a_pure_function_in_the_half_open_interval(run: int, part: int, seed: int) -> None:
    """P4."""
    u = sample_number(DataId.of(run=run, part=part), seed)
    assert 0.0 <= u < 1.0
    assert u == sample_number(DataId.parse(f"run={run} part={part}"), seed)


def test_u_never_changes_between_versions() -> None:
    """P4: the choice is part of the record; another value here would change what old data were chosen."""
    assert sample_number(DataId.of(run=2008, subrun=3), 0) == 0.3487233047837909


@given(pipelines(), st.floats(0.0, 1.0, exclude_max=True), st.floats(0.01, 1.0))
def test_admission_on_random_dags(pipeline: Pipeline, u: float, first_q: float) -> None:
    """P4, P9: a stage begins as prescaled just if u is not below its q; q never grows along the way."""
    admission = admit_unit("p", pipeline, u=u, first_q=first_q)
    begins = {plan.stage: plan for plan in admission.stages}
    assert set(begins) == {name for name, one in pipeline.stages.items() if one.per == "unit"}
    assert [plan.position for plan in admission.stages] == sorted(plan.position for plan in admission.stages)
    for name, plan in begins.items():
        parents = dag.parents(pipeline, name)
        assert plan.q <= min([first_q, pipeline.stages[name].prescale, *(begins[parent].q for parent in parents)])
        assert (plan.state is StageState.PRESCALED) == (u >= plan.q)
        if plan.state is not StageState.PRESCALED:
            assert plan.state is (StageState.WAITING if parents else StageState.QUEUED)
            assert all(begins[parent].state is not StageState.PRESCALED for parent in parents)


@given(pipelines(), st.floats(0.0, 1.0, exclude_max=True), st.floats(0.0, 1.0, exclude_max=True))
def test_kept_sets_are_nested(pipeline: Pipeline, one: float, other: float) -> None:
    """P4: who passes the stricter prescale passed the looser one: a smaller u keeps every stage a larger one keeps."""
    small, large = (
        {plan.stage for plan in admit_unit("p", pipeline, u=u, first_q=1.0).stages if u < plan.q}
        for u in sorted([one, other])
    )
    assert large <= small


@given(pipelines())
def test_a_group_gets_its_stages_once_and_unprescaled(pipeline: Pipeline) -> None:
    """P22."""
    admission = admit_group("p", pipeline)
    names = {name for name, one in pipeline.stages.items() if one.per == "group"}
    assert {plan.stage for plan in admission.stages} == names if admission else not names
    if admission is not None:
        assert {(plan.state, plan.q) for plan in admission.stages} == {(StageState.WAITING, 1.0)}


def test_admission_writes_the_prescale_of_the_whole_way() -> None:
    """P4: the minimum of the stream's and all stages' prescales, not their product."""
    pipeline = Pipeline(
        stages={"a": stage(prescale=0.5), "b": stage(after=["a"], prescale=0.8), "c": stage(after=["b"], prescale=0.2)}
    )
    admission = admit_unit("p", pipeline, u=0.35, first_q=0.4)
    assert [(plan.q, plan.state) for plan in admission.stages] == [
        (0.4, StageState.QUEUED),
        (0.4, StageState.WAITING),
        (0.2, StageState.PRESCALED),
    ]
    assert [plan.state for plan in admit_unit("p", chain("a", "b"), u=0.4, first_q=0.4).stages] == [
        StageState.PRESCALED
    ] * 2


@given(pipelines())
def test_what_is_asked_for_by_hand_is_all_let_in_and_stands_for_itself(pipeline: Pipeline) -> None:
    """P6, P10: no prescale leaves any of it out, and its weight 1/q is 1."""
    asked, offered = admit_by_hand("p", pipeline), admit_unit("p", pipeline, u=0.0, first_q=1.0)
    assert [(plan.stage, plan.state) for plan in asked.stages] == [(plan.stage, plan.state) for plan in offered.stages]
    assert not any(plan.state.is_terminal for plan in asked.stages)
    assert {plan.q for plan in asked.stages} == {1.0}


def _stream(*rules: Rule) -> Stream:
    return Stream(directory="in", pattern="r{run}.txt", dataset_type="raw", rules=list(rules))


def test_the_first_rule_that_matches_wins() -> None:
    """V7: none, or an empty list, means that the unit is ignored."""
    stream = _stream(
        Rule(when={"camera": "left", "run": 3}, pipelines=["special"]),
        Rule(when={"camera": "dark"}, pipelines=[]),
        Rule(when={"run": 4}, pipelines=["quick", "full"]),
    )
    assert choose_pipelines(stream, DataId.of(run=3, camera="left")) == ["special"]
    assert choose_pipelines(stream, DataId.of(run=4, camera="dark")) == []
    assert choose_pipelines(stream, DataId.of(run=4, camera="left")) == ["quick", "full"]
    assert choose_pipelines(stream, DataId.of(run=5, camera="left")) == []
    assert choose_pipelines(_stream(Rule(pipelines=["all"])), DataId.of(run=5)) == ["all"]
