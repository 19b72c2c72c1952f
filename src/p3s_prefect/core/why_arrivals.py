"""Why a unit is not there, or not again: what became of the files that came for it, or where they would come by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from p3s_prefect.core.data_id import DataId, Value
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment, Rule, Stream
from p3s_prefect.core.file_names import FilePattern, is_excluded
from p3s_prefect.core.records import Verdict
from p3s_prefect.core.views import ArrivalRow
from p3s_prefect.core.why_facts import Case, Reason
from p3s_prefect.core.why_rules import rule, station_reasons

_COMES = {
    "name": "under its final name",
    "marker": "with its marker, a file of the same name and {suffix}",
    "manifest": "with its manifest, a file of the same name and {suffix} that holds its SHA-256",
}


def arrival_reasons(experiment: Experiment, case: Case) -> Iterator[Reason]:
    """What is to be said about the files of a unit; nothing where one was taken and all went well."""
    for seen in case.arrivals:
        match seen.verdict:
            case Verdict.IGNORED:
                yield _ignored(experiment, case.data_id, seen)
            case Verdict.CONFLICT | Verdict.REFUSED:
                yield _kept_out(experiment, seen)
    if not case.arrivals and not case.sub_jobs:
        yield from _never_seen(experiment, case)


def expected_files(experiment: Experiment, data_id: DataId) -> Mapping[str, str]:
    """The name under which the unit's file would come, by stream."""
    names = {}
    for name, stream in experiment.streams.items():
        try:
            names[name] = FilePattern(stream.pattern, experiment.instrument.dimensions).format(data_id)
        except BadName:
            continue
    return names


def _ignored(experiment: Experiment, data_id: DataId, seen: ArrivalRow) -> Reason:
    stream = experiment.streams.get(seen.stream)
    chosen = None if stream is None else _first_match(stream, data_id)
    which, key = "no rule matched", f"streams.{seen.stream}.rules"
    if chosen is not None and not chosen[1].pipelines:
        index, first = chosen
        which = "the first rule that matched names no pipeline"
        key = f"{key}[{index}]: {{when: {dict(first.when)}, pipelines: []}}"
    return Reason(
        why=f"the file {seen.key} came by stream {seen.stream}, and was ignored: {which}",
        rule=key,
        release="For what is still to come, change the rules; this unit stays ignored.",
    )


def _first_match(stream: Stream, data_id: DataId) -> tuple[int, Rule] | None:
    values: Mapping[str, Value] = dict(data_id.items)
    for index, one in enumerate(stream.rules):
        if all(values.get(dimension) == value for dimension, value in one.when.items()):
            return index, one
    return None


def _kept_out(experiment: Experiment, seen: ArrivalRow) -> Reason:
    stream = experiment.streams.get(seen.stream)
    verb = "is in conflict" if seen.verdict == Verdict.CONFLICT else "was refused"
    fits_name = stream is not None and "name does not fit" in seen.reason
    return Reason(
        why=f"the file {seen.key} came, and {verb}: {seen.reason}",
        rule=rule("streams", seen.stream, "pattern", stream.pattern) if stream is not None and fits_name else "",
        release=seen.remedy,
    )


def _never_seen(experiment: Experiment, case: Case) -> Iterator[Reason]:
    for name, file in expected_files(experiment, case.data_id).items():
        yield _how_it_comes(name, experiment.streams[name], file, is_there=name in case.standing)
    if case.near:
        yield Reason(
            why=f"what is known and most like it: {', '.join(case.near)}", release="Perhaps one of these is meant."
        )
    yield from station_reasons(case)


def _how_it_comes(name: str, stream: Stream, file: str, *, is_there: bool) -> Reason:
    complete = _COMES[stream.complete.by].format(suffix=stream.complete.suffix)
    if is_excluded(file, stream.exclude):
        return Reason(
            why=f"stream {name} would bring it as {file}, which is a temporary name there and never read",
            rule=rule("streams", name, "exclude", stream.exclude),
            release="Name it otherwise, or take that pattern out of `exclude`.",
        )
    if is_there and stream.complete.by == "name":
        return Reason(
            why=f"{file} stands in {stream.comes_from}, and was not taken yet",
            rule=rule("streams", name, "list_every_s", stream.list_every_s),
            release="The next listing takes it, if a station runs and can read it.",
        )
    if is_there:
        return Reason(
            why=f"{file} stands in {stream.comes_from}, and is not known to be complete",
            rule=rule("streams", name, "complete", "by", stream.complete.by),
            release=f"It is taken when it stands there {complete}.",
        )
    below = "below it" if stream.bucket and not stream.is_buffered_always else "a directory below it"
    return Reason(
        why=f"nothing of this name was ever seen: stream {name} would bring it as {file}",
        rule=rule("streams", name, "pattern", stream.pattern),
        release=f"It is taken when {file} stands in {stream.comes_from}, or {below}, {complete}{_meanwhile(stream)}.",
    )


def _meanwhile(stream: Stream) -> str:
    if stream.buffer is None or stream.is_buffered_always:
        return ""
    return f"; while that cannot be reached, when it stands so in {stream.buffer.directory} of the online buffer"
