"""Where a stage's inputs come from."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.experiment import Pipeline


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A dataset type that a stage reads from outside itself."""

    dataset_type: str
    producer: str | None
    """The stage of this pipeline that makes it; None if it is what arrives."""
    is_gathered: bool
    """Whether a stage per group reads it from every unit."""


def external_inputs(pipeline: Pipeline, stage: str) -> tuple[Wire, ...]:
    """The dataset types that a stage reads and no earlier step of it has made, each once, in the order of use."""
    makers = {
        made: name for name, other in pipeline.stages.items() for step in other.steps for made in step.outputs.values()
    }
    wires: dict[str, Wire] = {}
    inside: set[str] = set()
    for step in pipeline.stages[stage].steps:
        for needed in step.inputs.values():
            if needed not in inside:
                producer = makers.get(needed)
                by_unit = producer is None or pipeline.stages[producer].per == "unit"
                gathered = pipeline.stages[stage].per == "group" and by_unit
                wires[needed] = Wire(dataset_type=needed, producer=producer, is_gathered=gathered)
        inside |= set(step.outputs.values())
    return tuple(wires.values())
