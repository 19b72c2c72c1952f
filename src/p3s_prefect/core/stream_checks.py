"""Checks of streams, of their rules, and of how groups close."""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import normpath

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment, Instrument, Stream
from p3s_prefect.core.file_names import FilePattern, is_excluded
from p3s_prefect.core.findings import Finding, did_you_mean, never_matching
from p3s_prefect.core.yaml_document import Where


def rules(experiment: Experiment, name: str, stream: Stream) -> Iterator[Finding]:
    """Rules name pipelines that exist, and dimension values that can match."""
    dimensions = experiment.instrument.dimensions
    for index, rule in enumerate(stream.rules):
        where: Where = ("streams", name, "rules", index)
        for place, pipeline in enumerate(rule.pipelines):
            at: Where = (*where, "pipelines", place)
            if pipeline not in experiment.pipelines:
                fix = did_you_mean(pipeline, experiment.pipelines)
                yield Finding(where=at, what=f"no pipeline {pipeline!r}", fix=fix)
            elif pipeline in rule.pipelines[:place]:
                yield Finding(where=at, what=f"{pipeline!r} is given twice", fix="Name it once.")
        yield from never_matching(rule.when, dimensions, (*where, "when"))


def files(experiment: Experiment, name: str, stream: Stream) -> Iterator[Finding]:
    """A file of the stream is one unit of a declared type, and is not excluded."""
    where = ("streams", name)
    if stream.dataset_type not in experiment.dataset_types:
        what, fix = (
            f"no dataset type {stream.dataset_type!r}",
            did_you_mean(stream.dataset_type, experiment.dataset_types),
        )
        yield Finding(where=(*where, "dataset_type"), what=what, fix=fix)
    try:
        pattern = FilePattern(stream.pattern, experiment.instrument.dimensions)
    except BadName as error:
        yield Finding(where=(*where, "pattern"), what=error.what, fix=error.fix)
        return
    kinds = experiment.instrument.dimensions.items()
    example = pattern.format(DataId(tuple((key, 1 if kind == "int" else "a") for key, kind in kinds)))
    if is_excluded(example, stream.exclude):
        what = f"a file of the stream's own pattern, such as {example}, is excluded"
        yield Finding(where=(*where, "exclude"), what=what, fix="Exclude temporary names only.")


def marker(instrument: Instrument) -> Iterator[Finding]:
    """A marker names one group."""
    if instrument.closing.marker is None:
        return
    try:
        FilePattern(instrument.closing.marker, {name: instrument.dimensions[name] for name in instrument.group})
    except BadName as error:
        fix = f"{error.fix} A marker closes one group, so it names the group's dimensions and no others."
        yield Finding(where=("instrument", "closing", "marker"), what=error.what, fix=fix)


def directories(experiment: Experiment) -> Iterator[Finding]:
    """No watched directory holds another one, or the store: files would be taken twice, or results as arrivals."""
    places = [(("streams", name, "directory"), stream.directory) for name, stream in experiment.streams.items()]
    for index, (where, directory) in enumerate(places):
        store = experiment.store.place
        if isinstance(store, str) and (_holds(directory, store) or _holds(store, directory)):
            what = f"{directory!r} and the store's directory {store!r} lie in one another"
            yield Finding(where=where, what=what, fix="Keep arrivals and results apart.")
        for (_, name, _), other in places[:index]:
            if _holds(directory, other) or _holds(other, directory):
                what = f"{directory!r} and the directory {other!r} of stream {name} lie in one another"
                yield Finding(where=where, what=what, fix="Give each stream a directory of its own.")


def _holds(outer: str, inner: str) -> bool:
    outer_path, inner_path = normpath(outer), normpath(inner)
    if outer_path == ".":
        return not inner_path.startswith(("/", ".."))
    return f"{inner_path}/".startswith(f"{outer_path.rstrip('/')}/")
