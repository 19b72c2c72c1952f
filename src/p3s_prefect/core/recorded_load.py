"""From what the ledger has recorded to a load that can be played again."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.incidents import GroupClosing
from p3s_prefect.core.load_file import RecordedOptions
from p3s_prefect.core.loads import Load, SeenUnit, StageKey, StageTimes, slot_changes, stage_times, stages_of, too_slow
from p3s_prefect.core.records import Failure
from p3s_prefect.core.service_times import ServiceTimes, chance, drawn_from
from p3s_prefect.core.states import StageState


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedAttempt:
    """One try of a stage run, in the order of their numbers."""

    pipeline: str
    stage: str
    data_id: DataId
    state: str
    """``done``, ``failed``, ``lost``, ``stopped`` or ``expired``."""
    started_at: float
    ended_at: float
    run_state: StageState
    """What became of its stage run."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the ledger has of a group or a period."""

    about: str
    units: tuple[SeenUnit, ...]
    """In the order of their arrival."""
    closings: tuple[GroupClosing, ...]
    attempts: tuple[RecordedAttempt, ...]
    open_before: int = 0
    """Sub-jobs that were open when the first of these units arrived."""
    beside: int = 0
    """Files that arrived meanwhile and are none of these units."""
    overrides: tuple[str, ...] = ()
    """Kinds of the overrides that were in force meanwhile, those of breakers too, once for each."""
    asked: int = 0
    """Sub-jobs that were asked for by hand meanwhile."""


def recorded_load(
    found: Recorded,
    experiment: Experiment,
    *others: Experiment,
    seed: int,
    options: RecordedOptions,
) -> Load:
    """The recorded arrivals, with the service times and failures that were measured.

    A stage run that was dropped has no measured time: it gets one drawn from those of its stage. `options` say
    otherwise about service times and slots; without, there are as many slots as the experiment has pilots, or as were
    busy at once. `others` are experiments that will be played the same load.

    Raises:
        P3sError: no stream of the experiment took part, or service times of a stage are missing.
    """
    if not any(unit.stream in experiment.streams for unit in found.units):
        streams = ", ".join(sorted({unit.stream for unit in found.units}))
        raise P3sError(
            f"what was recorded came in {streams}, and the experiment has no such stream",
            fix=f"It has: {', '.join(experiment.streams)}.",
        )
    stages = stages_of(experiment, *others)
    measured = measured_times(found.attempts)
    times = stage_times(options.service, stages, measured, seed)
    history = _History(found.attempts, times, replaced=_replaced(options.service, stages), retries=_retries(experiment))
    nominal, most = experiment.pilots.workers, most_at_once(found.attempts)
    slots = options.slots or max(nominal, most)
    missing = Counter(unit.stream for unit in found.units if unit.stream not in experiment.streams)
    return Load(
        about=f"{found.about}, recorded",
        units=found.units,
        closings=found.closings,
        slots=slots,
        slot_changes=slot_changes(options.lose_workers, slots, begins_at=found.units[0].at),
        service_s=history.service_s,
        fate=history.fate,
        notes=(
            *_drawn_notes(found, measured),
            *(f"{n} units of the stream {name} are left out: there is no such stream" for name, n in missing.items()),
            *_slots_notes(options, nominal, most),
            *_left_out_notes(found),
            *too_slow(times, experiment, *others),
        ),
    )


def measured_times(attempts: Iterable[RecordedAttempt]) -> dict[StageKey, tuple[float, ...]]:
    """Service times [s], sorted, by pipeline and stage: what was done, and what was stopped as it may have gone on.

    Without what was stopped at its deadline, the long ones would be too rare.
    """
    found: defaultdict[StageKey, list[tuple[float, bool]]] = defaultdict(list)
    for attempt in attempts:
        if attempt.state in ("done", "expired"):
            found[attempt.pipeline, attempt.stage].append((_seconds(attempt), attempt.state == "expired"))
    return {key: _completed(sorted(ends)) for key, ends in found.items() if not all(stopped for _, stopped in ends)}


def _completed(ends: list[tuple[float, bool]]) -> tuple[float, ...]:
    """As many times as there are ends [s], by Kaplan and Meier (J. Am. Stat. Assoc. 53, 1958, 457).

    What was stopped gives its share to all that took longer; the longest keeps its own, as no more is known.
    """
    values: list[float] = []
    reached = 0.0
    for place, (seconds, stopped) in enumerate(ends):
        at_risk = len(ends) - place
        if not stopped or at_risk == 1:
            reached += (1 - reached) / at_risk
            values += [seconds] * (round(reached * len(ends)) - len(values))
    return tuple(values)


def most_at_once(attempts: Iterable[RecordedAttempt]) -> int:
    """The largest number of attempts that were running at the same time."""
    edges = sorted(edge for one in attempts for edge in ((one.started_at, 1), (one.ended_at, -1)))
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


@dataclass
class _Tries:
    """What is known about one stage run."""

    seconds: float | None = None
    """Of the attempt that was done, else of the last one that failed."""
    at_least_s: float = 0.0
    """It was stopped after so long."""
    failures: int = 0
    ended: StageState = StageState.DONE


class _History:
    """How long each stage run took, and which of its attempts failed."""

    def __init__(
        self,
        attempts: Iterable[RecordedAttempt],
        times: StageTimes,
        *,
        replaced: frozenset[StageKey],
        retries: Mapping[StageKey, int],
    ) -> None:
        self._times, self._replaced, self._retries = times, replaced, retries
        self._tries: defaultdict[tuple[str, str, DataId], _Tries] = defaultdict(_Tries)
        for attempt in attempts:
            self._note(self._tries[attempt.pipeline, attempt.stage, attempt.data_id], attempt)

    def _note(self, tries: _Tries, attempt: RecordedAttempt) -> None:
        tries.ended = attempt.run_state
        if attempt.state in ("done", "failed"):
            tries.seconds = _seconds(attempt)
            tries.failures += attempt.state == "failed"
        elif attempt.state == "expired":
            tries.at_least_s = _seconds(attempt)

    def service_s(self, pipeline: str, stage: str, data_id: DataId) -> float:
        tries = self._tries.get((pipeline, stage, data_id))
        if tries is None or (pipeline, stage) in self._replaced:
            return self._times(pipeline, stage, data_id)
        if tries.seconds is not None:
            return tries.seconds
        return self._longer_than(tries.at_least_s, pipeline, stage, data_id)

    def _longer_than(self, at_least_s: float, pipeline: str, stage: str, data_id: DataId) -> float:
        """Drawn from those that took longer than it had before it was stopped."""
        measured = self._times.measured[pipeline, stage]
        share = chance(self._times.seed, pipeline, stage, data_id)
        return drawn_from(measured[bisect_left(measured, at_least_s) :], share)

    def fate(self, pipeline: str, stage: str, data_id: DataId, attempt: int) -> Failure | None:
        tries = self._tries.get((pipeline, stage, data_id))
        if tries is None or not tries.failures:
            return None
        if tries.ended is not StageState.FAILED:
            return Failure.PAYLOAD if attempt <= tries.failures else None
        # It failed for good though it had retries left: such as for an input that is corrupt.
        final = tries.failures <= self._retries.get((pipeline, stage), 0) and attempt >= tries.failures
        return Failure.INPUT if final else Failure.PAYLOAD


def _seconds(attempt: RecordedAttempt) -> float:
    # A clock that stepped back between begin and end must not give back time.
    return max(attempt.ended_at - attempt.started_at, 1e-6)


def _replaced(service: Mapping[str, ServiceTimes], stages: Iterable[StageKey]) -> frozenset[StageKey]:
    given = {name for name, times in service.items() if times.kind != "measured"}
    return frozenset(key for key in stages if {key[1], "/".join(key)} & given)


def _retries(experiment: Experiment) -> dict[StageKey, int]:
    return {
        (name, stage): declared.retries
        for name, pipeline in experiment.pipelines.items()
        for stage, declared in pipeline.stages.items()
    }


def _drawn_notes(found: Recorded, measured: Mapping[StageKey, tuple[float, ...]]) -> Iterator[str]:
    ended = Counter((one.pipeline, one.stage, one.state) for one in found.attempts)
    for key, times in measured.items():
        stopped = ended[*key, "expired"]
        completed = f" and {stopped} of what was stopped at its deadline, as it may have gone on" if stopped else ""
        yield (
            f"{'/'.join(key)}: {ended[*key, 'done']} service times as measured{completed}, "
            f"{times[0]:.3g} to {times[-1]:.3g} s; what was not done then gets one drawn from these"
        )


def _slots_notes(options: RecordedOptions, nominal: int, most: int) -> Iterator[str]:
    if options.slots is None and most > nominal:
        yield f"{most} slots: so many stages ran at once, though the experiment declares {nominal} pilots"
    elif options.slots is None and not options.lose_workers:
        yield f"{nominal} slots throughout, as the experiment declares: the ledger does not tell when pilots were lost"


def _left_out_notes(found: Recorded) -> Iterator[str]:
    lost = sum(attempt.state in ("lost", "stopped") for attempt in found.attempts)
    if lost:
        yield f"{lost} attempts that ended with their pilot or station are not played"
    if found.open_before:
        yield f"{found.open_before} sub-jobs that were open when the first unit arrived are not played: it begins idle"
    if found.beside:
        yield f"{found.beside} others that arrived meanwhile, and took slots, are not played"
    if found.overrides:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(found.overrides).items())
        yield f"what people and breakers had set meanwhile is not played: {kinds}"
    if found.asked:
        yield f"{found.asked} sub-jobs that were asked for by hand meanwhile are not played"
