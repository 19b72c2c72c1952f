"""What several explanations share: keys of the experiment file, overrides and the station, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum

from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import duration
from p3s_prefect.core.overrides import BREAKER, STOPPING, Override, OverrideKind, Target, Work
from p3s_prefect.core.views import UnitRow
from p3s_prefect.core.why_facts import Case, Queued, Reason
from p3s_prefect.core.yaml_document import Where, dotted

_DOES = {
    OverrideKind.PAUSE: "it is paused",
    OverrideKind.DRAIN: "no new unit may begin: it is drained",
    OverrideKind.HOLD: "it is held",
    OverrideKind.LIMIT: "it is limited",
    OverrideKind.PRIORITY: "it has another priority",
}


def rule(*path: object) -> str:
    """A key of the experiment file with its value, which comes last: ``streams.camera.prescale: 0.1``."""
    *where, value = path
    return f"{dotted(_place(where))}: {_value(value)}"


def stage_rule(experiment: Experiment, pipeline: str, stage: str, key: str) -> str:
    """A key of a stage, with its value unless that is a mapping; empty if there is no such stage any more."""
    declared = experiment.pipelines.get(pipeline)
    found = None if declared is None else declared.stages.get(stage)
    if found is None:
        return ""
    where = ("pipelines", pipeline, "stages", stage, key)
    return dotted(where) if key == "steps" else rule(*where, getattr(found, key))


def in_pipeline(found: UnitRow | Queued) -> str:
    """A unit or group in its pipeline, as commands name it."""
    return f"{Target(pipeline=found.pipeline)} {found.data_id}"


def asked_for(found: UnitRow | Queued, *, every: bool = False) -> str:
    """How a unit is asked for by hand; with `every` also where it failed, or has other results."""
    return f"`p3s request {in_pipeline(found)}{' --all' if every else ''}` asks for it whatever the load."


def times(number: int) -> str:
    """How often, in words."""
    return "once" if number == 1 else f"{number} times"


def of_override(one: Override, now: float) -> Reason:
    """What an override that stops things does, whose it is, since when, until when, and how it is lifted."""
    because = f': "{one.why}"' if one.why else ""
    until = f" At {clock(one.expires_at, now)} it ends by itself." if one.expires_at is not None else ""
    return Reason(
        why=f"{_DOES[one.kind]}, as a part of {one.target}, by {one.by} since {clock(one.set_at, now)} "
        f"({duration(max(0.0, now - one.set_at))} ago){because}",
        rule=one.command if one.by != BREAKER else f"pipelines.{one.target.pipeline}.breaker",
        release=f"`{one.lift}` lifts it.{until}",
    )


def stops_of(case: Case, work: Work, *, begun: bool) -> list[Override]:
    """The holds, pauses and drains for which a stage run may not start: what puts it aside first, then the narrower."""
    acting = (one for one in case.controls.acting_on(work) if one.kind in STOPPING)
    found = [one for one in acting if not (begun and one.kind is OverrideKind.DRAIN)]
    return sorted(found, key=lambda one: one.kind is not OverrideKind.HOLD)


def station_reasons(case: Case) -> Iterator[Reason]:
    """Why nothing goes on at all, where that is so."""
    if case.station.trouble:
        yield Reason(why=case.station.trouble, release=case.station.remedy)
    elif case.station.slots == 0:
        yield Reason(
            why="no pilot is connected to the scheduler",
            rule="pilots",
            release="`p3s up` starts pilots that have died; their logs say why. Everything waits until one is there.",
        )


def clock(at: float, now: float) -> str:
    """A moment as people read it: ``14:03:20 UTC``, with its date where that is not today's."""
    then, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return then.strftime("%H:%M:%S UTC" if then.date() == today.date() else "%Y-%m-%d %H:%M:%S UTC")


def _place(parts: list[object]) -> Where:
    return tuple(part if isinstance(part, int) else str(part) for part in parts)


def _value(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
