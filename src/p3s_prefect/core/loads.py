"""A load as a simulation plays it: what arrives when, how long each stage takes, and what goes wrong with it.

It knows nothing of pipelines: which of them take a unit, and which share, is the policy's, so that two policies can be
played the same load. Chance is a function of seed and names, the same for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from p3s_prefect.core.admission import choose_pipelines
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.health import duration
from p3s_prefect.core.incidents import Fate, GroupClosing, ServiceTime, SlotChange, UnitArrival
from p3s_prefect.core.load_file import WorkerChange
from p3s_prefect.core.service_times import MEASURED, ServiceTimes, chance, drawn_from

StageKey = tuple[str, str]
"""Pipeline and stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenUnit:
    """A unit that arrives in a stream."""

    at: float
    taken_at: float
    stream: str
    data_id: DataId


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is played. Times are seconds on the clock of the arrivals."""

    about: str
    """For people, such as ``run=2008, recorded``."""
    units: tuple[SeenUnit, ...]
    closings: tuple[GroupClosing, ...]
    slots: int
    slot_changes: tuple[SlotChange, ...]
    service_s: ServiceTime
    fate: Fate
    notes: tuple[str, ...] = ()
    """What to know before believing a result."""

    @property
    def begins_at(self) -> float:
        """When the first unit arrives."""
        return self.units[0].at

    @property
    def ends_at(self) -> float:
        """When the last unit arrives."""
        return self.units[-1].at


def arrivals(load: Load, experiment: Experiment) -> Iterator[UnitArrival]:
    """What arrives for each pipeline, as the experiment's rules and prescales have it; of streams that it has."""
    group = experiment.instrument.group
    for unit in load.units:
        stream = experiment.streams.get(unit.stream)
        if stream is None:
            continue
        for pipeline in choose_pipelines(stream, unit.data_id):
            yield UnitArrival(
                at=unit.at,
                taken_at=unit.taken_at,
                pipeline=pipeline,
                group=unit.data_id.subset(group),
                data_id=unit.data_id,
                first_q=stream.prescale,
            )


def stages_of(*experiments: Experiment) -> tuple[StageKey, ...]:
    """Every pipeline's stages, each once, in the order in which they are declared."""
    return tuple(
        dict.fromkeys(
            (name, stage)
            for experiment in experiments
            for name, pipeline in experiment.pipelines.items()
            for stage in pipeline.stages
        )
    )


def slot_changes(changes: Iterable[WorkerChange], slots: int, *, begins_at: float = 0.0) -> tuple[SlotChange, ...]:
    """The number of slots after each change.

    Raises:
        P3sError: fewer than none would be left.
    """
    found = []
    for change in sorted(changes, key=lambda change: change.at_s):
        slots += change.change
        if slots < 0:
            raise P3sError(
                f"after {change.at_s:g} s there would be {slots} workers",
                fix="Lose fewer (--lose-workers), or begin with more (--slots).",
            )
        found.append(SlotChange(at=begins_at + change.at_s, slots=slots))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """The service times of every stage: a pure function of seed, pipeline, stage and data id."""

    declared: Mapping[StageKey, ServiceTimes]
    measured: Mapping[StageKey, tuple[float, ...]]
    """Sorted, in seconds, of the stages that the ledger has times of."""
    seed: int

    def __call__(self, pipeline: str, stage: str, data_id: DataId) -> float:
        """How long this stage takes [s]."""
        times = self.declared[pipeline, stage]
        share = chance(self.seed, pipeline, stage, data_id)
        if times.kind == MEASURED:
            return drawn_from(self.measured[pipeline, stage], share)
        return times.quantile_s(share)


def stage_times(
    given: Mapping[str, ServiceTimes],
    stages: tuple[StageKey, ...],
    measured: Mapping[StageKey, tuple[float, ...]],
    seed: int,
) -> StageTimes:
    """Service times for all of these stages: as given, by ``stage`` or ``pipeline/stage``, else as measured.

    Raises:
        P3sError: a name is no stage of these, or nothing is known about a stage.
    """
    known = list(dict.fromkeys([*(stage for _, stage in stages), *(f"{name}/{stage}" for name, stage in stages)]))
    for name in given:
        if name not in known:
            raise P3sError(f"service times for {name[:120]!r}, which is no stage", fix=did_you_mean(name, known))
    default = ServiceTimes(kind=MEASURED)
    declared = {key: given.get("/".join(key), given.get(key[1], default)) for key in stages}
    unknown = [key for key, times in declared.items() if times.kind == MEASURED and not measured.get(key)]
    if unknown:
        raise P3sError(
            f"how long {', '.join('/'.join(key) for key in unknown)} takes is not known: the ledger has no times of it",
            fix=f"Give them, such as --service {unknown[0][1]}=1.2s or --service {unknown[0][1]}=lognormal:1.2s,0.5.",
        )
    return StageTimes(declared=declared, measured=measured, seed=seed)


def too_slow(service_s: StageTimes, *experiments: Experiment) -> Iterator[str]:
    """Notes on stages that take so long by themselves that most of them miss their deadline."""
    for pipeline, stage in stages_of(*experiments):
        times = service_s.declared[pipeline, stage]
        measured = service_s.measured.get((pipeline, stage), ())
        median_s = drawn_from(measured, 0.5) if times.kind == MEASURED else times.quantile_s(0.5)
        deadlines = {
            deadline_s
            for experiment in experiments
            if pipeline in experiment.pipelines
            and stage in experiment.pipelines[pipeline].stages
            and (deadline_s := experiment.pipelines[pipeline].stages[stage].deadline_s) is not None
        }
        for deadline_s in sorted(deadlines):
            if median_s > deadline_s:
                takes, deadline = duration(median_s), duration(deadline_s)
                yield f"{pipeline}/{stage} takes {takes}, longer than its deadline of {deadline}"
