"""Why is this waiting, or why was it dropped? In words, with the rule and with what would release it (B12).

`explain` makes an `Explanation` from a `Case`, which is all that the ledger knows about one data id, and from the
experiment file, whose keys name the rules. The words for stage runs are in `why_stages` and `why_queue`, those for
files that were not taken in `why_arrivals`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from p3s_prefect.core import dag
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.file_names import FilePattern
from p3s_prefect.core.health import duration
from p3s_prefect.core.views import Coverage, GroupRow
from p3s_prefect.core.why_arrivals import arrival_reasons
from p3s_prefect.core.why_facts import Case, Explanation, Reason, StageWhy, SubJobCase, SubJobWhy
from p3s_prefect.core.why_rules import clock, rule, station_reasons
from p3s_prefect.core.why_stages import explain_stage

NOT_BEGUN = "not begun"


def explain(
    experiment: Experiment, case: Case, *, pipeline: str | None = None, stage: str | None = None
) -> Explanation:
    """Why everything of this data id is as it is; with `pipeline` and `stage`, only of those."""
    instrument, reasons = experiment.instrument, list[Reason]()
    found = [_sub_job(experiment, case, one, stage) for one in case.sub_jobs if pipeline in (None, one.unit.pipeline)]
    # Where groups and units have the same dimensions, it is both.
    if case.data_id.dimensions == tuple(instrument.group):
        reasons += _group_reasons(experiment, case)
        found += [_only(one, stage) for one in _not_begun(experiment, case) if pipeline in (None, one.pipeline)]
    if case.data_id.dimensions == tuple(instrument.dimensions):
        reasons += arrival_reasons(experiment, case)
    if case.archives:
        reasons.append(_archived(case))
    return Explanation(data_id=str(case.data_id), at=case.at, reasons=tuple(reasons), sub_jobs=tuple(found))


def _archived(case: Case) -> Reason:
    return Reason(
        why=f"its products, summary values, lineage and journal are in the store, in {', '.join(case.archives)}",
        rule="`p3s ledger archive`",
        release="`p3s show` and `p3s list journal --subject` read them there.",
    )


def _sub_job(experiment: Experiment, case: Case, found: SubJobCase, stage: str | None) -> SubJobWhy:
    unit = found.unit
    chosen = (run for run in unit.stages if stage in (None, run.stage))
    return SubJobWhy(
        data_id=unit.data_id,
        pipeline=unit.pipeline,
        pass_number=unit.pass_number,
        state=unit.activity,
        others=found.others,
        stages=tuple(explain_stage(experiment, case, found, run) for run in chosen),
    )


def _only(found: SubJobWhy, stage: str | None) -> SubJobWhy:
    return replace(found, stages=tuple(one for one in found.stages if stage in (None, one.stage)))


# --- groups ---------------------------------------------------------------------------------------------------------


def _group_reasons(experiment: Experiment, case: Case) -> Iterator[Reason]:
    group = case.group
    if group is None:
        patterns = "; ".join(
            f"{stream.pattern} in {stream.comes_from} (stream {name})" for name, stream in experiment.streams.items()
        )
        yield Reason(
            why=f"nothing of the group {case.data_id} was ever seen",
            release=f"It opens with its first unit, which comes by a file like one of these: {patterns}.",
        )
        yield from station_reasons(case)
        return
    if group.is_open:
        yield from _open(experiment, case, group)
        yield from station_reasons(case)
    else:
        yield Reason(
            why=f"the group is closed: {group.closed_by}",
            rule=_closing_rule(experiment, group.closed_by or ""),
            release="A unit that comes late opens it again, for a pass of its own.",
        )
    for one in group.coverage:
        if one.open:
            yield _units_open(group, one)


def _open(experiment: Experiment, case: Case, group: GroupRow) -> Iterator[Reason]:
    closing = experiment.instrument.closing
    came = f"the group is open: {_counted(group.arrivals)} arrived"
    if closing.marker is not None:
        yield Reason(
            why=came,
            rule=rule("instrument", "closing", "marker", closing.marker),
            release=f"It closes when the file {_marker(experiment, case)} appears in {_directories(experiment)}.",
        )
    if closing.count is not None:
        yield Reason(
            why=f"{came}, of {closing.count}",
            rule=rule("instrument", "closing", "count", closing.count),
            release=f"It closes when {closing.count - group.arrivals} more have arrived.",
        )
    if closing.quiet_s is not None:
        quiet_at = group.last_arrival_at + closing.quiet_s
        yield Reason(
            why=f"{came}, the last one {duration(max(0.0, case.at - group.last_arrival_at))} ago",
            rule=rule("instrument", "closing", "quiet_s", closing.quiet_s),
            release=f"It closes at {clock(quiet_at, case.at)} if nothing more of it arrives; a station that was "
            "started since counts from its start.",
        )


def _marker(experiment: Experiment, case: Case) -> str:
    instrument = experiment.instrument
    kinds = {name: instrument.dimensions[name] for name in instrument.group}
    return FilePattern(instrument.closing.marker or "", kinds).format(case.data_id)


def _directories(experiment: Experiment) -> str:
    return " or ".join(dict.fromkeys(stream.comes_from for stream in experiment.streams.values()))


def _closing_rule(experiment: Experiment, closed_by: str) -> str:
    """The key that a group was closed by, which is known from the first word of the reason."""
    closing, word = experiment.instrument.closing, closed_by.partition(" ")[0].strip(":")
    key = {"marker": "marker", "count": "count", "quiet": "quiet_s"}.get(word)
    value = None if key is None else getattr(closing, key)
    return "" if value is None else rule("instrument", "closing", key, value)


def _units_open(group: GroupRow, one: Coverage) -> Reason:
    return Reason(
        why=f"in {one.pipeline}, pass {one.pass_number}, {one.open} of {_counted(one.seen)} are open",
        release=f"`p3s list units --state open --group '{group.data_id}'` lists them; "
        "`p3s why` says what each waits for.",
    )


def _not_begun(experiment: Experiment, case: Case) -> Iterator[SubJobWhy]:
    """The group stages of passes that have not closed, for which the ledger has nothing yet."""
    group = case.group
    if group is None or not group.is_open:
        return
    begun = {(one.unit.pipeline, one.unit.pass_number) for one in case.sub_jobs if one.unit.per == "group"}
    newest = {one.pipeline: one for one in group.coverage}
    for name, one in newest.items():
        if (name, one.pass_number) in begun or name not in experiment.pipelines:
            continue
        pipeline = experiment.pipelines[name]
        per_group = [found for found in dag.topological_order(pipeline) if pipeline.stages[found].per == "group"]
        if per_group:
            yield SubJobWhy(
                data_id=group.data_id,
                pipeline=name,
                pass_number=one.pass_number,
                state=NOT_BEGUN,
                others=(),
                stages=tuple(_until_closed(name, found, one) for found in per_group),
            )


def _until_closed(pipeline: str, stage: str, one: Coverage) -> StageWhy:
    reason = Reason(
        why=f"it runs once, when the group has closed; {one.open} of {_counted(one.seen)} are open",
        rule=rule("pipelines", pipeline, "stages", stage, "per", "group"),
        release="It goes on when the group has closed (see above) and these units have settled.",
    )
    return StageWhy(stage=stage, state=NOT_BEGUN, since=None, reasons=(reason,))


def _counted(units: int) -> str:
    return f"{units} unit{'' if units == 1 else 's'}"
