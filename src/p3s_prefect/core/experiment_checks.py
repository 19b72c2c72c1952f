"""What must agree between the parts of an experiment: references, the graph, who makes which data, file names.

`mistakes` are errors; `remarks` are things that work but are probably not meant.
"""

from __future__ import annotations

from collections.abc import Iterator

from p3s_prefect.core import class_checks, pipeline_checks, stream_checks
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import Finding
from p3s_prefect.core.pipeline_checks import feeding_streams, steps


def mistakes(experiment: Experiment) -> list[Finding]:
    """Everything for which the experiment cannot run as written."""
    found: list[Finding] = []
    for name, pipeline in experiment.pipelines.items():
        found += pipeline_checks.graph(name, pipeline)
        found += pipeline_checks.stage_kinds(name, pipeline)
        found += pipeline_checks.datasets(experiment, name, pipeline)
        found += pipeline_checks.arrivals(experiment, name)
        for where, step in steps(name, pipeline):
            found += pipeline_checks.step_names(where, step)
    for name, stream in experiment.streams.items():
        found += stream_checks.rules(experiment, name, stream)
        found += stream_checks.files(experiment, name, stream)
    found += class_checks.names(experiment)
    found += class_checks.floors(experiment)
    found += stream_checks.marker(experiment.instrument)
    found += stream_checks.buffered(experiment)
    found += stream_checks.directories(experiment)
    return found


def remarks(experiment: Experiment) -> list[Finding]:
    """What works as written but is probably not meant."""
    return [
        *_unused(experiment),
        *class_checks.unused(experiment),
        *class_checks.cut_short(experiment),
        *_never_reached(experiment),
        *_unread(experiment),
    ]


def _unread(experiment: Experiment) -> Iterator[Finding]:
    if experiment.buffer is not None and not any(stream.buffer for stream in experiment.streams.values()):
        fix = "Say in a stream where its files lie in it: `buffer: {directory: lst1}`."
        yield Finding(where=("buffer",), what="no stream has files in the online buffer", fix=fix)


def _unused(experiment: Experiment) -> Iterator[Finding]:
    for name in experiment.pipelines:
        if not feeding_streams(experiment, name):
            what = f"no rule of any stream names the pipeline {name}, so it runs by hand only"
            yield Finding(where=("pipelines", name), what=what, fix="Name it in a rule, unless that is meant.")
    used = {stream.dataset_type for stream in experiment.streams.values()}
    for name, pipeline in experiment.pipelines.items():
        for _, step in steps(name, pipeline):
            used |= {*step.inputs.values(), *step.outputs.values()}
    for name in experiment.dataset_types:
        if name not in used:
            yield Finding(where=("dataset_types", name), what=f"nothing uses {name}", fix="Remove it, or use it.")


def _never_reached(experiment: Experiment) -> Iterator[Finding]:
    for name, stream in experiment.streams.items():
        for index, rule in enumerate(stream.rules):
            before = stream.rules[:index]
            if any(earlier.when.items() <= rule.when.items() for earlier in before):
                what = "this rule is never reached: an earlier one matches all that it matches"
                yield Finding(where=("streams", name, "rules", index), what=what, fix="Put the narrower rule first.")
