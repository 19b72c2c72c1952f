"""The pipeline's graph, on random DAGs (P9) and with nested prescales (P4)."""

from graphlib import CycleError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.dag import ancestors, children, descendants, find_cycle, parents, reach, topological_order
from p3s_prefect.core.experiment import Pipeline, Stage, Step

_STEP = Step(name="work", command=["true"])


def _pipeline(after: dict[str, list[str]], prescales: dict[str, float] | None = None) -> Pipeline:
    shares = prescales or {}
    return Pipeline(
        stages={
            name: Stage(steps=[_STEP], after=names, prescale=shares.get(name, 1.0)) for name, names in after.items()
        }
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Random DAGs of up to 9 stages, declared in an order that has nothing to do with the graph's."""
    names = [f"s{index}" for index in range(draw(st.integers(1, 9)))]
    after = {
        name: draw(st.lists(st.sampled_from(names[:index]), max_size=4)) if index else []
        for index, name in enumerate(names)
    }
    declared = draw(st.permutations(names))
    shares = {name: draw(st.floats(0.01, 1.0)) for name in names}
    return _pipeline({name: after[name] for name in declared}, shares)


@given(pipelines())
def test_order_holds_every_stage_once_and_parents_first(pipeline: Pipeline) -> None:
    """P9."""
    order = topological_order(pipeline)
    assert sorted(order) == sorted(pipeline.stages)
    for stage in order:
        assert all(order.index(parent) < order.index(stage) for parent in parents(pipeline, stage))
    assert find_cycle(pipeline) is None


@given(pipelines())
def test_order_takes_the_stage_declared_first_among_those_that_are_ready(pipeline: Pipeline) -> None:
    """P9: the same file always gives the same order."""
    done: list[str] = []
    for stage in topological_order(pipeline):
        ready = [
            name
            for name in pipeline.stages
            if name not in done and all(parent in done for parent in pipeline.stages[name].after)
        ]
        assert stage == ready[0]
        done.append(stage)


@given(pipelines())
def test_ancestors_and_descendants_are_the_closure_of_parents_and_children(pipeline: Pipeline) -> None:
    """P9: a failed stage blocks its descendants and nobody else."""
    for stage in pipeline.stages:
        above = set(parents(pipeline, stage)).union(*(ancestors(pipeline, name) for name in parents(pipeline, stage)))
        below = set(children(pipeline, stage)).union(*(descendants(pipeline, n) for n in children(pipeline, stage)))
        assert ancestors(pipeline, stage) == above
        assert descendants(pipeline, stage) == below
        assert stage not in above
        assert all(stage in descendants(pipeline, name) for name in above)


@given(pipelines(), st.floats(0.01, 1.0), st.floats(0.0, 1.0, exclude_max=True))
def test_reach_is_the_share_of_u_that_passes_every_prescale_on_the_way(
    pipeline: Pipeline, first: float, u: float
) -> None:
    """P4: one u for all prescales, so passing all of them is passing the strictest."""
    for stage in pipeline.stages:
        on_the_way = [pipeline.stages[name].prescale for name in (*ancestors(pipeline, stage), stage)]
        assert (u < reach(pipeline, stage, first)) == (u < first and all(u < share for share in on_the_way))
        assert all(reach(pipeline, stage) <= reach(pipeline, name) for name in parents(pipeline, stage))


@given(pipelines(), st.data())
def test_an_arrow_back_is_found_as_a_cycle(pipeline: Pipeline, data: st.DataObject) -> None:
    """P9: what find_cycle names is a cycle indeed."""
    start = data.draw(st.sampled_from(sorted(pipeline.stages)))
    end = data.draw(st.sampled_from(sorted(descendants(pipeline, start) | {start})))
    after = {name: [*stage.after, *([end] if name == start else [])] for name, stage in pipeline.stages.items()}
    wrong = _pipeline(after)
    cycle = find_cycle(wrong)
    assert cycle is not None
    assert len(set(cycle)) == len(cycle)
    assert all(cycle[index - 1] in wrong.stages[cycle[index]].after for index in range(len(cycle)))
    assert start in ancestors(wrong, start)
    with pytest.raises(CycleError):
        topological_order(wrong)


def test_a_join_is_after_both_of_its_parents() -> None:
    """P9."""
    pipeline = _pipeline({"join": ["left", "right"], "right": ["first"], "left": ["first"], "first": []})
    assert topological_order(pipeline) == ("first", "right", "left", "join")
    assert children(pipeline, "first") == ("right", "left")
    assert ancestors(pipeline, "join") == {"left", "right", "first"}


def test_names_that_do_not_exist_and_names_given_twice_change_nothing() -> None:
    """P9."""
    pipeline = _pipeline({"a": ["nobody"], "b": ["a", "a"]})
    assert topological_order(pipeline) == ("a", "b")
    assert parents(pipeline, "a") == ()
    assert parents(pipeline, "b") == ("a",)


def test_a_chain_of_thousands_is_no_problem() -> None:
    """P9: nothing recurses."""
    pipeline = _pipeline({f"s{index}": [f"s{index - 1}"] if index else [] for index in range(2000)})
    assert len(ancestors(pipeline, "s1999")) == 1999
    assert topological_order(pipeline)[-1] == "s1999"
