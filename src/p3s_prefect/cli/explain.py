"""What an experiment would do, in words and as a drawing."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from p3s_prefect.cli.dag_text import draw_dag
from p3s_prefect.core.addresses import without_password
from p3s_prefect.core.dag import reach, topological_order
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Buffer, Complete, Experiment, Floor, Order, Pipeline, Rule, Stage, Step, Stream
from p3s_prefect.core.file_names import FilePattern
from p3s_prefect.core.findings import Finding
from p3s_prefect.core.health import size
from p3s_prefect.core.pipeline_checks import feeding_streams
from p3s_prefect.core.yaml_document import dotted

_LEGEND = "◆ stream   ● stage per unit   ◎ stage per group, once all units of the closed group are through"


def explain(experiment: Experiment, remarks: list[Finding]) -> RenderableType:
    """Streams, closing, pipelines with their DAGs, and where results go."""
    instrument = experiment.instrument
    unit, group = " + ".join(instrument.dimensions), " + ".join(instrument.group)
    head = Text.assemble(
        (experiment.experiment, "bold"), f": {instrument.name} takes data; a unit is one {unit}, a group one {group}."
    )
    parts: list[RenderableType] = [head]
    for name, stream in experiment.streams.items():
        parts.append(_section(f"Stream {name}", _stream(experiment, stream)))
    if experiment.buffer is not None:
        parts.append(_section("Online buffer", [_buffer(experiment.buffer)]))
    parts.append(_section("Groups", [closing(experiment)]))
    if told := [
        f"{name} ({kind.format}): {kind.about}" for name, kind in experiment.dataset_types.items() if kind.about
    ]:
        parts.append(_section("Data", told))
    for name, pipeline in experiment.pipelines.items():
        parts.append(_pipeline(experiment, name, pipeline))
    parts.append(_section("Results", _results(experiment)))
    parts += [_remark(remark) for remark in remarks]
    return Group(*parts)


def reaches(experiment: Experiment, pipeline: str, stage: str) -> dict[str, float]:
    """For each stream that feeds the pipeline, the share of its units (or groups) that get as far as the stage."""
    dag = experiment.pipelines[pipeline]
    return {
        name: reach(dag, stage, stream.prescale) if dag.stages[stage].per == "unit" else 1.0
        for name, stream in feeding_streams(experiment, pipeline).items()
    }


def closing(experiment: Experiment) -> str:
    """When a group is complete, as a sentence."""
    rule, instrument = experiment.instrument.closing, experiment.instrument
    ways = []
    if rule.marker is not None:
        pattern = FilePattern(rule.marker, {name: instrument.dimensions[name] for name in instrument.group})
        ways.append(f"a file such as {_example(pattern)} appears")
    if rule.count is not None:
        ways.append(f"{rule.count} of its units have arrived")
    if rule.quiet_s is not None:
        ways.append(f"nothing of it has arrived for {rule.quiet_s:g} s")
    return f"A {' + '.join(instrument.group)} is complete when {', or when '.join(ways)}."


def dag_lines(experiment: Experiment, name: str) -> list[str]:
    """The drawing of a pipeline with the streams that feed it; a join is where rails meet."""
    pipeline = experiment.pipelines[name]
    streams = {f"stream {stream}": found for stream, found in feeding_streams(experiment, name).items()}
    parents: dict[str, list[str]] = {stream: [] for stream in streams}
    labels = {stream: f"{stream}: {found.dataset_type}" for stream, found in streams.items()}
    marks = dict.fromkeys(streams, "◆")
    for stage_name in topological_order(pipeline):
        stage = pipeline.stages[stage_name]
        parents[stage_name] = list(stage.after) or list(streams)
        made = [dataset for step in stage.steps for dataset in step.outputs.values()]
        labels[stage_name] = stage_name + (f" -> {', '.join(made)}" if made else "")
        marks[stage_name] = "◎" if stage.per == "group" else "●"
    return draw_dag(parents, labels, marks)


def _remark(remark: Finding) -> Text:
    return Text.assemble(("Remark ", "yellow"), f"{dotted(remark.where)}: {remark.what}. {remark.fix}")


def _section(title: str, lines: list[str]) -> RenderableType:
    return Group(Text(), Text(title, style="bold"), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines))


def _stream(experiment: Experiment, stream: Stream) -> list[str]:
    pattern = FilePattern(stream.pattern, experiment.instrument.dimensions)
    buffered_in = experiment.buffer_directory(stream)
    if buffered_in is None or not stream.is_buffered_always:
        watched, listings = stream.comes_from, _listings(stream)
    else:
        watched, listings = f"{buffered_in} in the online buffer", _listings_of_directory(stream)
    lines = [
        f"Watches {watched} ({_hints(stream)}{listings}) for files such as "
        f"{_example(pattern)}; each is one {stream.dataset_type}.",
        *([] if buffered_in is None else _second_place(stream, buffered_in)),
        f"{_complete(stream.complete)} Never read: {', '.join(stream.exclude) or 'nothing is excluded'}.",
    ]
    if stream.prescale < 1:
        lines.append(f"{_percent(stream.prescale)} of the units are processed, chosen by their data id.")
    return [*lines, *(_rule(rule, first=index == 0) for index, rule in enumerate(stream.rules))]


def _hints(stream: Stream) -> str:
    return "notifications as hints, " if stream.notify else ""


def _second_place(stream: Stream, buffered_in: str) -> list[str]:
    if not stream.is_buffered_always:
        listings = f"{_hints(stream)}{_listings_of_directory(stream)}"
        return [f"While that cannot be reached: {buffered_in} in the online buffer ({listings})."]
    return [f"What cannot be read there is read from {stream.bucket}."] if stream.bucket else []


def _buffer(buffer: Buffer) -> str:
    rate = f" and {size(buffer.bytes_per_s)}/s" if buffer.bytes_per_s else ""
    files = "1 file" if buffer.max_reads == 1 else f"{buffer.max_reads} files"
    return f"{buffer.directory} is only read: at most {files} at once{rate}, by station and pilots together."


def _listings_of_directory(stream: Stream) -> str:
    return f"a full listing every {stream.list_every_s:g} s"


def _listings(stream: Stream) -> str:
    if stream.bucket is None:
        return _listings_of_directory(stream)
    return f"new keys every {stream.list_every_s:g} s, a full listing every {stream.reconcile_every_s:g} s"


def _complete(complete: Complete) -> str:
    if complete.by == "name":
        return "A file is complete when it bears its final name."
    if complete.by == "marker":
        return f"A file is complete when one of the same name with {complete.suffix} stands beside it."
    return f"A file is complete when its SHA-256 equals that in the file of the same name with {complete.suffix}."


def _rule(rule: Rule, *, first: bool) -> str:
    which = " and ".join(f"{dimension} = {value}" for dimension, value in rule.when.items())
    what = f"run {', '.join(rule.pipelines)}" if rule.pipelines else "ignored, and recorded so"
    return f"{'' if first else 'else '}{which or 'every unit' if first else which or 'any'}: {what}"


def _pipeline(experiment: Experiment, name: str, pipeline: Pipeline) -> RenderableType:
    limit = f"at most {pipeline.limit} of its stages run at once" if pipeline.limit else "no limit on stages at once"
    words = f"{_class(experiment, pipeline)} {_first(limit)}, {_order(pipeline)}. {_breaker(pipeline)}"
    drawing = Panel(Text("\n".join(dag_lines(experiment, name))), box=box.ROUNDED, expand=False, border_style="dim")
    table = Table.grid(padding=(0, 2))
    for stage_name in topological_order(pipeline):
        stage = pipeline.stages[stage_name]
        table.add_row(Text(stage_name, style="bold"), Text(_stage(experiment, name, stage_name)))
        for step in stage.steps:
            table.add_row("", Text(_step(step)))
    body = Group(Text(words), drawing, Text(_LEGEND, style="dim"), Text(), table)
    return Group(Text(), Text(f"Pipeline {name}", style="bold"), Padding(body, (0, 0, 0, 2)))


def _class(experiment: Experiment, pipeline: Pipeline) -> str:
    work_class = experiment.class_of(pipeline)
    priority = work_class.priority if pipeline.priority is None else pipeline.priority
    limit = f"at most {work_class.limit} of its stages run at once; " if work_class.limit else ""
    thinned = "thinned in overload" if work_class.shed else "never thinned in overload"
    floors = "".join(f", but at least {_percent(floor.share)} of {_units(floor)}" for floor in work_class.floors)
    return (
        f"Priority {priority}; class {pipeline.work_class}: {limit}a stage is worth {work_class.value:g}, "
        f"{thinned}{floors if work_class.shed else ''}."
    )


def _units(floor: Floor) -> str:
    return " and ".join(f"{dimension} = {value}" for dimension, value in floor.when.items()) or "all units"


def _order(pipeline: Pipeline) -> str:
    order = pipeline.order.value.replace("-", " ")
    switches = pipeline.freshest_in_overload and pipeline.order is not Order.FRESHEST_FIRST
    return f"{order}; in overload freshest first" if switches else order


def _breaker(pipeline: Pipeline) -> str:
    rule = pipeline.breaker
    if rule is None:
        return "It never pauses itself."
    canary = "by command only" if rule.canary_s is None else f"once a try after {rule.canary_s:g} s ends well"
    return (
        f"It pauses itself when {rule.failures} stages, and {_percent(rule.share)} of those that ended, fail within "
        f"{rule.window_s:g} s, and goes on {canary}."
    )


def _first(words: str) -> str:
    return words[0].upper() + words[1:]


def _stage(experiment: Experiment, pipeline: str, name: str) -> str:
    stage = experiment.pipelines[pipeline].stages[name]
    own = "" if stage.priority is None else f"; priority {stage.priority}"
    own += "" if stage.value == 1 else f"; worth {stage.value:g}"
    shares = _shares(reaches(experiment, pipeline, name))
    return f"{shares} of the {stage.per}s; {_deadline(stage)}; {_retries(stage)}{own}"


def _step(step: Step) -> str:
    payload = step.python or (step.command or [""])[0]
    inputs, outputs = ", ".join(step.inputs.values()), ", ".join(step.outputs.values())
    return (
        f"{step.name} ({payload}): {inputs or 'nothing'} -> {outputs or 'nothing'}; killed after {step.timeout_s:g} s"
    )


def _shares(shares: dict[str, float]) -> str:
    if not shares:
        return "by hand only: any"
    if len(set(shares.values())) == 1:
        return _percent(next(iter(shares.values())))
    return ", ".join(f"{_percent(share)} ({name})" for name, share in shares.items())


def _deadline(stage: Stage) -> str:
    if stage.deadline_s is None:
        return "never given up"
    since = "the group closed" if stage.per == "group" else "data taking"
    killed = " (killed then, if running)" if stage.stop_at_deadline else ""
    return f"given up {stage.deadline_s:g} s after {since}{killed}"


def _retries(stage: Stage) -> str:
    if stage.retries == 0:
        return "not tried again when it fails"
    return f"{stage.retries} more {'try' if stage.retries == 1 else 'tries'} when it fails, after {stage.backoff_s:g} s"


def _results(experiment: Experiment) -> list[str]:
    day = experiment.instrument.day
    where, pilots = experiment.station, experiment.pilots
    slots = f"the Dask scheduler at {pilots.address}" if pilots.address else f"{pilots.workers} pilots on this machine"
    page = f"at http://{where.host}:{where.port}" if where.port else "at a free port, which `p3s up` tells"
    return [
        f"Results are kept in {_store(experiment)}, in one collection for each pipeline and day "
        f"(which begins at {day.rolls_at} {day.zone}): {experiment.instrument.name}/<pipeline>/<day>/<configuration>.",
        f"The books are kept in {without_password(experiment.ledger.url)}. The page is {page}.",
        f"Work is done by {slots}.{_waiting(experiment)}",
    ]


def _waiting(experiment: Experiment) -> str:
    pilots = experiment.pilots
    if isinstance(experiment.store.place, str) or not pilots.waiting_bytes:
        return ""
    where = f" in {pilots.waiting_directory}" if pilots.waiting_directory else ""
    return (
        f" While the store cannot be reached, up to {size(pilots.waiting_bytes)} of results wait{where} on each of "
        "the pilots' machines."
    )


def _store(experiment: Experiment) -> str:
    place = experiment.store.place
    if isinstance(place, str):
        return place
    return f"{place.address} at {place.server}, with the keys that the environment has"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _example(pattern: FilePattern) -> str:
    return pattern.format(DataId(tuple((key, 1 if kind == "int" else "A") for key, kind in pattern.dimensions.items())))


def as_json(experiment: Experiment, remarks: list[Finding]) -> dict[str, object]:
    """The same for programs: the whole experiment with defaults, and each pipeline's order and shares."""
    pipelines = {
        name: [{"stage": stage, "reach": reaches(experiment, name, stage)} for stage in topological_order(pipeline)]
        for name, pipeline in experiment.pipelines.items()
    }
    return {
        "ok": True,
        "experiment": experiment.model_dump(mode="json"),
        "order": pipelines,
        "remarks": list(_plain(remarks)),
    }


def _plain(remarks: list[Finding]) -> Iterator[dict[str, str]]:
    for remark in remarks:
        yield {"key": dotted(remark.where), "what": remark.what, "fix": remark.fix}
