"""How a command names what it acts on: a pipeline, a stage, a class, a group, a unit, or all.

``waveform-dqm``, ``waveform-dqm/quick``, ``class:dqm``, ``run=2008``, ``run=2008 subrun=3``, ``all``; a group or a unit
may stand together with a pipeline or a stage: ``waveform-dqm run=2008``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.overrides import (
    CLASS_PREFIX,
    EVERYTHING,
    PIPELINE_PREFIX,
    Controls,
    Override,
    OverrideKind,
    Target,
    Work,
)
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import UnitRow

_KINDS = f"pipeline, PIPELINE/STAGE, {CLASS_PREFIX}NAME, group, unit, or {EVERYTHING!r}"


def read_target(words: Iterable[str], experiment: Experiment, kinds: str = _KINDS) -> Target:
    """What the words of a command name; whether a group or unit exists, only the ledger knows.

    `kinds` is what a command can be about, for whoever has named something else.

    Raises:
        BadName: they name nothing that the experiment has, or contradict each other.
    """
    pieces = [piece for word in words for piece in word.split()]
    if not pieces:
        raise BadName("nothing is named", fix=f"Name a {kinds}.")
    data = [piece for piece in pieces if "=" in piece]
    names = [piece for piece in pieces if "=" not in piece]
    if len(names) > 1:
        raise BadName(f"{' '.join(names)!r} names more than one thing", fix="Give one command for each.")
    if names == [EVERYTHING]:
        if data:
            raise BadName(f"{EVERYTHING!r} together with {' '.join(data)}", fix=f"Leave {EVERYTHING!r} out.")
        return Target()
    target = _read_name(names[0], experiment, kinds) if names else Target()
    return _with_data(target, data, experiment) if data else target


def classes_of(experiment: Experiment) -> tuple[str, ...]:
    """The names of all classes of work: those that are declared, and those that only pipelines name."""
    named = [*experiment.classes, *(pipeline.work_class for pipeline in experiment.pipelines.values())]
    return tuple(dict.fromkeys(named))


def pipelines_of(target: Target, experiment: Experiment) -> frozenset[str] | None:
    """The pipelines of its class; None where it names no class."""
    if target.work_class is None:
        return None
    every = experiment.pipelines.items()
    return frozenset(name for name, pipeline in every if pipeline.work_class == target.work_class)


def acting_on(unit: UnitRow, experiment: Experiment, controls: Controls) -> tuple[Override, ...]:
    """What acts on the stage runs of a sub-job that are still open: what stops them first, then the narrowest."""
    pipeline = experiment.pipelines.get(unit.pipeline)
    if not controls or pipeline is None:
        return ()
    works = (
        Work(
            work_class=pipeline.work_class,
            pipeline=unit.pipeline,
            stage=stage.stage,
            group=DataId.parse(unit.group),
            unit=DataId.parse(unit.data_id) if unit.per == "unit" else None,
        )
        for stage in unit.stages
        if not StageState(stage.state).is_terminal
    )
    found = {one.id for work in works for one in controls.acting_on(work)}
    begun = any(StageState(stage.state) in BEGUN for stage in unit.stages)
    acting = [one for one in controls.overrides if one.id in found and not (begun and one.kind is OverrideKind.DRAIN)]
    return tuple(sorted(acting, key=lambda one: not one.stops))


def explained(units: Iterable[UnitRow], experiment: Experiment, controls: Controls) -> tuple[UnitRow, ...]:
    """The same units; open ones tell what stops them, else why they are where they are, and what acts on them.

    So one on standby tells that it is left out, and at which probability.
    """
    return tuple(_explained(unit, acting_on(unit, experiment, controls)) for unit in units)


BEGUN = frozenset({StageState.RUNNING, StageState.DONE, StageState.FAILED})
"""States of a stage run that show that its unit has begun."""


def _explained(unit: UnitRow, acting: Sequence[Override]) -> UnitRow:
    if unit.settled_at is not None or unit.reason:
        return unit
    if unit.activity == StageState.RUNNING:
        # What acts on its later stages keeps it from nothing now.
        return unit
    if unit.activity == StageState.HELD:
        acting = [one for one in acting if one.kind is OverrideKind.HOLD]
    told = [one.reason for one in acting[:1]]
    if not (acting and acting[0].stops) and unit.activity != StageState.HELD:
        told = [stage.reason for stage in unit.stages if stage.state == unit.activity and stage.reason][:1] + told
    return replace(unit, reason="; ".join(told))


def _read_name(name: str, experiment: Experiment, kinds: str) -> Target:
    if name.startswith(CLASS_PREFIX):
        work_class = name.removeprefix(CLASS_PREFIX)
        _require(work_class, classes_of(experiment), "class")
        return Target(work_class=work_class)
    pipeline, slash, stage = name.removeprefix(PIPELINE_PREFIX).partition("/")
    if pipeline not in experiment.pipelines:
        fix = did_you_mean(pipeline, experiment.pipelines)
        if pipeline in classes_of(experiment):
            fix = f"A class is named as {CLASS_PREFIX}{pipeline}. {fix}"
        raise BadName(f"there is no pipeline {pipeline[:120]!r}", fix=f"{fix} Name a {kinds}.")
    if slash:
        _require(stage, tuple(experiment.pipelines[pipeline].stages), f"stage of {pipeline}:")
    return Target(pipeline=pipeline, stage=stage if slash else None)


def _with_data(target: Target, pieces: Sequence[str], experiment: Experiment) -> Target:
    instrument = experiment.instrument
    data_id = DataId.parse(" ".join(pieces)).ordered(list(instrument.dimensions))
    for dimension, value in data_id.items:
        if instrument.dimensions[dimension] == "int" and not isinstance(value, int):
            raise BadName(f"{dimension}={value}: {dimension} is a whole number", fix=f"Such as {dimension}=3.")
    # Where a group is a unit too, the group is meant: it covers that unit.
    if data_id.dimensions == tuple(instrument.group):
        return replace(target, group=data_id)
    if data_id.dimensions == tuple(instrument.dimensions):
        return replace(target, unit=data_id)
    raise BadName(
        f"{data_id} is neither a group nor a unit",
        fix=f"A group is named by {' '.join(instrument.group)}, a unit by {' '.join(instrument.dimensions)}.",
    )


def _require(name: str, options: Sequence[str], what: str) -> None:
    if name not in options:
        raise BadName(f"there is no {what} {name[:120]!r}", fix=did_you_mean(name, options))
