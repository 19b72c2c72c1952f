"""Checks of pipelines: the graph, who makes which data, and names that must stay apart."""

from __future__ import annotations

from collections.abc import Iterator

from p3s_prefect.core.dag import ancestors, descendants, find_cycle
from p3s_prefect.core.experiment import Experiment, Pipeline, Step, Stream
from p3s_prefect.core.findings import Finding, did_you_mean
from p3s_prefect.core.payload import RESERVED_OUTPUTS, environment_name
from p3s_prefect.core.yaml_document import Where

# What a Python payload is told besides its inputs and parameters.
_TOLD = {
    "unit": "`unit` is the data id.",
    "coverage": "`coverage` counts a group's units by state.",
    "weights": "`weights` tells how many units each of a group's units stands for.",
}


def feeding_streams(experiment: Experiment, pipeline: str) -> dict[str, Stream]:
    """The streams of which some rule names the pipeline."""
    return {
        name: stream
        for name, stream in experiment.streams.items()
        if any(pipeline in rule.pipelines for rule in stream.rules)
    }


def steps(name: str, pipeline: Pipeline) -> Iterator[tuple[Where, Step]]:
    """Every step of a pipeline with its place in the experiment."""
    for stage_name, stage in pipeline.stages.items():
        for index, step in enumerate(stage.steps):
            yield ("pipelines", name, "stages", stage_name, "steps", index), step


def graph(name: str, pipeline: Pipeline) -> Iterator[Finding]:
    """Stages come after stages that exist, and never after themselves."""
    stages = pipeline.stages
    for stage_name, stage in stages.items():
        where = ("pipelines", name, "stages", stage_name, "after")
        for index, parent in enumerate(stage.after):
            if parent not in stages:
                yield Finding(where=(*where, index), what=f"no stage {parent!r} here", fix=did_you_mean(parent, stages))
            elif parent in stage.after[:index]:
                yield Finding(where=(*where, index), what=f"{parent!r} is given twice", fix="Name it once.")
    if cycle := find_cycle(pipeline):
        yield Finding(
            where=("pipelines", name, "stages", cycle[0], "after"),
            what=f"stages wait for each other: {' -> '.join((*cycle, cycle[0]))}",
            fix=f"Remove one of the arrows, such as {cycle[-1]} from the `after` of {cycle[0]}.",
        )


def stage_kinds(name: str, pipeline: Pipeline) -> Iterator[Finding]:
    """Stages per group gather stages per unit, and nothing per unit comes after them."""
    for stage_name, stage in pipeline.stages.items():
        where = ("pipelines", name, "stages", stage_name)
        if stage.per == "group" and not stage.after:
            yield Finding(
                where=where,
                what="a stage per group waits for stages of every unit, but `after` names none",
                fix="Write `after: [<the stage whose results it gathers>]`.",
            )
        if stage.per == "group" and stage.prescale < 1:
            fix = "Remove it; prescale the stages per unit, or the stream."
            yield Finding(where=(*where, "prescale"), what="a stage per group is never prescaled", fix=fix)
        for index, parent in enumerate(stage.after if stage.per == "unit" else []):
            if parent in pipeline.stages and pipeline.stages[parent].per == "group":
                yield Finding(
                    where=(*where, "after", index),
                    what=f"a stage per unit cannot come after {parent}, which runs once per group",
                    fix=f"Make {stage_name} `per: group` too, or remove {parent} from its `after`.",
                )


def datasets(experiment: Experiment, name: str, pipeline: Pipeline) -> Iterator[Finding]:
    """Types are declared, made once, and made before they are read."""
    types = experiment.dataset_types
    made: dict[str, str] = {
        stream.dataset_type: f"comes from the stream {stream_name}"
        for stream_name, stream in (feeding_streams(experiment, name) or experiment.streams).items()
    }
    from_streams = set(made)
    for where, step in steps(name, pipeline):
        stage_name = str(where[3])
        for key, dataset in [*step.inputs.items(), *step.outputs.items()]:
            if dataset not in types:
                side = "inputs" if step.inputs.get(key) == dataset else "outputs"
                yield Finding(
                    where=(*where, side, key), what=f"no dataset type {dataset!r}", fix=did_you_mean(dataset, types)
                )
        for key, dataset in step.outputs.items():
            if dataset in made:
                yield Finding(
                    where=(*where, "outputs", key),
                    what=f"{dataset!r} already {made[dataset]}",
                    fix="Declare a dataset type of its own for each output of a pipeline.",
                )
            made.setdefault(dataset, f"is made by {stage_name}.{step.name}")
        for key, dataset in step.inputs.items():
            if dataset in types and dataset not in from_streams | _made_before(pipeline, stage_name, int(where[5])):
                yield Finding(
                    where=(*where, "inputs", key),
                    what=f"nothing that comes before makes {dataset!r}",
                    fix=_who_makes(experiment, name, stage_name, dataset),
                )


def arrivals(experiment: Experiment, name: str) -> Iterator[Finding]:
    """A unit is one file, so the streams that feed a pipeline bring one dataset type."""
    streams = list(feeding_streams(experiment, name).items())
    for stream_name, stream in streams[1:]:
        first_name, first = streams[0]
        if stream.dataset_type != first.dataset_type:
            yield Finding(
                where=("streams", stream_name, "dataset_type"),
                what=f"the pipeline {name} is fed with {first.dataset_type!r} by the stream {first_name} already",
                fix="A unit is one file: give each type a pipeline of its own.",
            )


def _made_before(pipeline: Pipeline, stage: str, step: int) -> set[str]:
    """Dataset types made by the steps before this one and by all stages before this one."""
    earlier = [*pipeline.stages[stage].steps[:step]]
    for ancestor in ancestors(pipeline, stage) - {stage}:
        earlier += pipeline.stages[ancestor].steps
    return {dataset for step in earlier for dataset in step.outputs.values()}


def _who_makes(experiment: Experiment, name: str, stage: str, dataset: str) -> str:
    pipeline = experiment.pipelines[name]
    for where, step in steps(name, pipeline):
        if dataset in step.outputs.values():
            maker = str(where[3])
            if maker == stage:
                return f"Step {step.name} of this stage makes it: move it further up."
            if maker in descendants(pipeline, stage):
                return f"Stage {maker} makes it, but only after {stage}."
            return f"Stage {maker} makes it: add `after: [{maker}]` to {stage}."
    for stream_name, stream in experiment.streams.items():
        if stream.dataset_type == dataset:
            return f"Stream {stream_name} brings it: name {name} in its rules."
    for other_name, other in experiment.pipelines.items():
        if any(dataset in step.outputs.values() for _, step in steps(other_name, other)):
            return f"Pipeline {other_name} makes it, but a pipeline reads only its own: add the step that makes it."
    return "Nothing makes it: give it to the outputs of a step, or to a stream."


def step_names(where: Where, step: Step) -> Iterator[Finding]:
    """What is handed to a payload, or taken from it, has a name of its own."""
    for key in step.outputs:
        if key in RESERVED_OUTPUTS:
            fix = "Give the output another name; summary.json and products.json are collected without being declared."
            yield Finding(where=(*where, "outputs", key), what=f"the name {key!r} is reserved", fix=fix)
    for side, names in (("inputs", step.inputs), ("outputs", step.outputs)):
        seen: dict[str, str] = {}
        for key in names:
            variable = environment_name(key)
            if variable in seen:
                yield Finding(
                    where=(*where, side, key),
                    what=f"{key!r} and {seen[variable]!r} are both handed over as P3S_{side.upper()[:-1]}_{variable}",
                    fix="Rename one of them.",
                )
            seen[variable] = key
    for key in step.params if step.python else []:
        if key in step.inputs:
            fix = "Rename the parameter or the input."
            yield Finding(where=(*where, "params", key), what=f"{key!r} would be handed over twice", fix=fix)
    for side, given in (("inputs", step.inputs), ("params", step.params)) if step.python else ():
        for key in _TOLD.keys() & given.keys():
            what = f"{key!r} would be handed over twice"
            yield Finding(where=(*where, side, key), what=what, fix=_TOLD[key])
