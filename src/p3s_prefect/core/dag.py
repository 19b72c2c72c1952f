"""A pipeline as a graph: order, ancestors, descendants, and the probability of reaching a stage.

All functions take a `Pipeline` and stage names. A name in `after` that the pipeline does not have is passed over:
that it is wrong is said by `p3s_prefect.core.experiment_checks`, which needs these functions on wrong pipelines too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter

from p3s_prefect.core.experiment import Pipeline


def parents(pipeline: Pipeline, stage: str) -> tuple[str, ...]:
    """The stages that `stage` comes directly after, each once, as written."""
    return tuple(name for name in dict.fromkeys(pipeline.stages[stage].after) if name in pipeline.stages)


def children(pipeline: Pipeline, stage: str) -> tuple[str, ...]:
    """The stages that come directly after `stage`, in the order of declaration."""
    return tuple(name for name, other in pipeline.stages.items() if stage in other.after)


def ancestors(pipeline: Pipeline, stage: str) -> frozenset[str]:
    """Every stage that must be done before `stage`, itself excluded (unless it is in a cycle)."""
    return _closure(stage, lambda name: parents(pipeline, name))


def descendants(pipeline: Pipeline, stage: str) -> frozenset[str]:
    """Every stage that `stage` must be done before, itself excluded (unless it is in a cycle)."""
    return _closure(stage, lambda name: children(pipeline, name))


def topological_order(pipeline: Pipeline) -> tuple[str, ...]:
    """All stages, parents first; among those that could come next, the one declared first.

    Raises:
        graphlib.CycleError: the stages wait for each other.
    """
    names = list(pipeline.stages)
    place = {name: index for index, name in enumerate(names)}
    sorter = _sorter(pipeline)
    sorter.prepare()
    ready: list[int] = []
    order: list[str] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, place[name])
        order.append(names[heapq.heappop(ready)])
        sorter.done(order[-1])
    return tuple(order)


def find_cycle(pipeline: Pipeline) -> tuple[str, ...] | None:
    """Stages that wait for each other, each once, each before the next and the last before the first; None if none."""
    try:
        _sorter(pipeline).prepare()
    except CycleError as error:
        return tuple(error.args[1][:-1])
    return None


def reach(pipeline: Pipeline, stage: str, first: float = 1.0) -> float:
    """Probability that a unit gets as far as `stage`; `first` is the prescale of its stream.

    It is the minimum of all prescales on the way, never their product: one number u per unit is compared with each of
    them, so that the chosen sets are nested and whoever passes the strictest one has passed the others.
    """
    passed = ancestors(pipeline, stage) | {stage}
    return min(first, *(pipeline.stages[name].prescale for name in passed))


def _sorter(pipeline: Pipeline) -> TopologicalSorter[str]:
    return TopologicalSorter({name: parents(pipeline, name) for name in pipeline.stages})


def _closure(start: str, neighbours: Callable[[str], tuple[str, ...]]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(neighbours(start))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(neighbours(name))
    return frozenset(found)
