"""Checks of classes of work: they exist, and their floors can be kept."""

from __future__ import annotations

from collections.abc import Iterator

from p3s_prefect.core import dag
from p3s_prefect.core.experiment import Experiment, Floor, Pipeline, WorkClass
from p3s_prefect.core.findings import Finding, did_you_mean, never_matching
from p3s_prefect.core.pipeline_checks import feeding_streams

DEFAULT = "default"


def names(experiment: Experiment) -> Iterator[Finding]:
    """Every pipeline's class is declared, or the default one, which need not be."""
    declared = [*experiment.classes, *({DEFAULT} - experiment.classes.keys())]
    for name, pipeline in experiment.pipelines.items():
        if pipeline.work_class not in declared:
            fix = did_you_mean(pipeline.work_class, declared)
            yield Finding(where=("pipelines", name, "class"), what=f"no class {pipeline.work_class!r}", fix=fix)


def floors(experiment: Experiment) -> Iterator[Finding]:
    """Floors can match, do not contradict each other, and ask for no more than the prescale leaves."""
    for name, work_class in experiment.classes.items():
        for index, floor in enumerate(work_class.floors):
            where = ("classes", name, "floors", index)
            yield from never_matching(floor.when, experiment.instrument.dimensions, (*where, "when"))
            for before in work_class.floors[:index]:
                if before.when == floor.when:
                    what = f"shares of {before.share:g} and {floor.share:g} for the same units"
                    yield Finding(where=where, what=what, fix=f"Keep one, such as {max(before.share, floor.share):g}.")
            for pipeline_name, pipeline in experiment.pipelines.items():
                if pipeline.work_class == name:
                    yield from _room(experiment, where, floor, pipeline_name, pipeline)


def unused(experiment: Experiment) -> Iterator[Finding]:
    """Classes, and floors, that have no effect."""
    used = {pipeline.work_class for pipeline in experiment.pipelines.values()}
    for name, work_class in experiment.classes.items():
        if name not in used:
            fix = f"Write `class: {name}` in a pipeline, or remove it."
            yield Finding(where=("classes", name), what=f"no pipeline is of the class {name}", fix=fix)
        if work_class.floors and not work_class.shed:
            what = "with `shed: false` nothing is left out in overload, so that floors have no effect"
            yield Finding(where=("classes", name, "floors"), what=what, fix="Remove the floors, or `shed: false`.")
            continue
        for index, floor in enumerate(work_class.floors):
            if (wider := _wider(work_class, floor)) is not None:
                yield Finding(
                    where=("classes", name, "floors", index),
                    what=f"the floor of {floor.share:g} of {floor.units} has no effect: there is one of "
                    f"{wider.share:g} of {wider.units}, which they are part of, and the largest counts",
                    fix=f"Raise it above {wider.share:g}, or remove it; or lower the other.",
                )


def cut_short(experiment: Experiment) -> Iterator[Finding]:
    """Floors that a stage does not keep, as its own prescale leaves less, where the pipeline begins with enough."""
    for name, pipeline in experiment.pipelines.items():
        work_class = experiment.class_of(pipeline)
        for index, floor in enumerate(work_class.floors if work_class.shed else []):
            for stage, one in pipeline.stages.items():
                if one.prescale < floor.share and _wider(work_class, floor) is None:
                    left = dag.reach(pipeline, stage)
                    yield Finding(
                        where=("classes", pipeline.work_class, "floors", index, "share"),
                        what=f"the floor of {floor.share:g} of {floor.units} does not hold at {name}/{stage}: at most "
                        f"{left:g} get as far (the prescale of the stage is {one.prescale:g})",
                        fix=f"Raise the prescale to {floor.share:g}, or lower the floor to {left:g}, unless that is "
                        "meant.",
                    )


def _wider(work_class: WorkClass, floor: Floor) -> Floor | None:
    """The largest floor of more units, all of its own among them, that is at least as large."""
    wider = (one for one in work_class.floors if one.when.items() < floor.when.items() and one.share >= floor.share)
    return max(wider, key=lambda one: one.share, default=None)


def _room(
    experiment: Experiment, where: tuple[str | int, ...], floor: Floor, name: str, pipeline: Pipeline
) -> Iterator[Finding]:
    """The floor is not above the share that streams and prescales leave to the first stages."""
    if dag.find_cycle(pipeline):
        return
    first = [stage for stage, one in pipeline.stages.items() if not one.after]
    for stream_name, stream in feeding_streams(experiment, name).items():
        left, stage = max(((dag.reach(pipeline, one, stream.prescale), one) for one in first), default=(1.0, ""))
        if floor.share > left:
            prescale = pipeline.stages[stage].prescale
            what = (
                f"the floor of {floor.share:g} cannot be kept: of {stream_name}'s units at most {left:g} get as far as "
                f"{name}/{stage} (the prescale of the stream is {stream.prescale:g}, of the stage {prescale:g})"
            )
            yield Finding(where=(*where, "share"), what=what, fix=f"Lower it to {left:g}, or raise the prescale.")
