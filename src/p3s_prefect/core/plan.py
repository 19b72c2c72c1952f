"""A pipeline as the dispatcher looks it up: each stage with its place, parents, priority and deadline, made once.

Open sub-jobs share their plan; one whose definition was replaced meanwhile keeps the plan with which it began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from p3s_prefect.core import dag
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Floor, Order, Pipeline, WorkClass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedStage:
    """A stage in its place. `parents` and `ancestors` are positions in the topological order."""

    name: str
    position: int
    per: Literal["unit", "group"]
    parents: tuple[int, ...]
    ancestors: frozenset[int]
    priority: int
    deadline_s: float
    """Infinite if it is never given up."""
    needed_in_s: float
    """The earliest deadline of it and of what comes after it in the unit; infinite if there is none."""
    prescale: float
    """The smallest on the way to it, without that of the stream."""
    value: float
    """What it is worth in time, its class counted in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A pipeline with its class."""

    name: str
    class_name: str
    work_class: WorkClass
    limit: int | None
    order: Order
    freshest_in_overload: bool
    stages: tuple[PlannedStage, ...]
    """In topological order."""
    positions: Mapping[str, int]
    roots: tuple[int, ...]
    """Positions of the stages with which a unit begins."""

    @classmethod
    def of(cls, name: str, pipeline: Pipeline, classes: Mapping[str, WorkClass]) -> Plan:
        """The plan of a pipeline; a class that is not declared is as the default one."""
        order = dag.topological_order(pipeline)
        positions = {stage: position for position, stage in enumerate(order)}
        work_class = classes.get(pipeline.work_class, WorkClass())
        return cls(
            name=name,
            class_name=pipeline.work_class,
            work_class=work_class,
            limit=pipeline.limit,
            order=pipeline.order,
            freshest_in_overload=pipeline.freshest_in_overload,
            stages=tuple(_planned(pipeline, work_class, stage, positions) for stage in order),
            positions=positions,
            roots=tuple(
                positions[stage]
                for stage in order
                if pipeline.stages[stage].per == "unit" and not pipeline.stages[stage].after
            ),
        )

    def floor(self, data_id: DataId) -> float:
        """The share of units such as this one that overload does not touch."""
        found = floor_of(self.work_class, data_id)
        return 0.0 if found is None else found.share


def floor_of(work_class: WorkClass, data_id: DataId) -> Floor | None:
    """The largest floor of a class that matches a unit; none where the class is never thinned."""
    if not (work_class.floors and work_class.shed):
        return None
    values = dict(data_id.items)
    matching = (floor for floor in work_class.floors if floor.when.items() <= values.items())
    return max(matching, key=lambda floor: floor.share, default=None)


def _planned(pipeline: Pipeline, work_class: WorkClass, name: str, positions: Mapping[str, int]) -> PlannedStage:
    stage = pipeline.stages[name]
    own = pipeline.priority if stage.priority is None else stage.priority
    return PlannedStage(
        name=name,
        position=positions[name],
        per=stage.per,
        parents=tuple(positions[parent] for parent in dag.parents(pipeline, name)),
        ancestors=frozenset(positions[before] for before in dag.ancestors(pipeline, name)),
        priority=work_class.priority if own is None else own,
        deadline_s=math.inf if stage.deadline_s is None else stage.deadline_s,
        needed_in_s=needed_in_s(pipeline, name),
        prescale=dag.reach(pipeline, name),
        value=work_class.value * stage.value,
    )


def needed_in_s(pipeline: Pipeline, name: str) -> float:
    """The earliest deadline of a stage and of what comes after it in the unit; infinite if there is none."""
    return min(
        (
            stage.deadline_s
            for other, stage in pipeline.stages.items()
            if stage.per == pipeline.stages[name].per
            and stage.deadline_s is not None
            and (other == name or name in dag.ancestors(pipeline, other))
        ),
        default=math.inf,
    )
