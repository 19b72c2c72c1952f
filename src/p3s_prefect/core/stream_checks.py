"""Checks of streams, of their rules, and of how groups close."""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import normpath

from p3s_prefect.core.bucket_place import BucketPlace
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


def buffered(experiment: Experiment) -> Iterator[Finding]:
    """A stream's directory in the online buffer lies in it, and there is a buffer."""
    for name, stream in experiment.streams.items():
        if stream.buffer is None:
            continue
        where: Where = ("streams", name, "buffer")
        if experiment.buffer is None:
            fix = "Say where it is: `buffer: {directory: /daq/disk}` at the top of the file, beside `streams`."
            yield Finding(where=where, what="the experiment has no online buffer", fix=fix)
        if normpath(stream.buffer.directory).startswith(("/", "..")):
            what = f"{stream.buffer.directory!r} does not lie below the directory of the buffer"
            fix = "Write it relative to `buffer.directory`, such as lst1."
            yield Finding(where=(*where, "directory"), what=what, fix=fix)


def directories(experiment: Experiment) -> Iterator[Finding]:
    """No place that is read holds another one, or the store: files would be taken twice, or results as arrivals."""
    store = experiment.store.place
    before: list[tuple[str, str | BucketPlace]] = []
    for name, stream in experiment.streams.items():
        own = list(_places(experiment, name, stream))
        for where, place, kind in own:
            if _overlap(place, store):
                what = f"{_shown(place)} and the store's {_shown(store)} lie in one another"
                yield Finding(where=where, what=what, fix="Keep arrivals and results apart.")
            for other_name, other in before:
                if _overlap(place, other):
                    what = f"{_shown(place)} and {_shown(other)} of stream {other_name} lie in one another"
                    yield Finding(where=where, what=what, fix=f"Give each stream a {kind} of its own.")
        before += [(name, place) for _, place, _ in own]


def _places(experiment: Experiment, name: str, stream: Stream) -> Iterator[tuple[Where, str | BucketPlace, str]]:
    """Where a stream's files are: the key that says so, the place, and what it is."""
    place, buffered_in = stream.place, experiment.buffer_directory(stream)
    if isinstance(place, BucketPlace):
        yield ("streams", name, "bucket"), place, "prefix"
    elif place is not None:
        yield ("streams", name, "directory"), place, "directory"
    if buffered_in is not None:
        yield ("streams", name, "buffer", "directory"), buffered_in, "directory"


def _overlap(one: str | BucketPlace, other: str | BucketPlace) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return _holds(one, other) or _holds(other, one)
    if isinstance(one, str) or isinstance(other, str):
        return False
    first, second = f"{one.prefix}/".lstrip("/"), f"{other.prefix}/".lstrip("/")
    return (one.bucket, one.endpoint) == (other.bucket, other.endpoint) and (
        first.startswith(second) or second.startswith(first)
    )


def _shown(place: str | BucketPlace) -> str:
    return f"directory {place!r}" if isinstance(place, str) else place.address


def _holds(outer: str, inner: str) -> bool:
    outer_path, inner_path = normpath(outer), normpath(inner)
    if outer_path == ".":
        return not inner_path.startswith(("/", ".."))
    return f"{inner_path}/".startswith(f"{outer_path.rstrip('/')}/")
