"""From a declared load to one that can be played: arrivals at random or in visits, groups, faults, lost workers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import partial

from p3s_prefect.core.data_id import DataId, Value
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment, Instrument
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.incidents import GroupClosing
from p3s_prefect.core.load_file import DEFAULT_DURATION_S, MOST_UNITS, LoadFile, StreamLoad
from p3s_prefect.core.loads import Load, SeenUnit, StageKey, slot_changes, stage_times, stages_of, too_slow
from p3s_prefect.core.records import Failure
from p3s_prefect.core.service_times import chance


def synthetic_load(
    declared: LoadFile,
    experiment: Experiment,
    *others: Experiment,
    seed: int,
    measured: Mapping[StageKey, tuple[float, ...]],
) -> Load:
    """The declared load on an experiment's streams, from the time 0 on.

    `others` are experiments that will be played the same load; `measured` are the ledger's service times, sorted.

    Raises:
        P3sError: it names a stream or stage that does not exist, has too many units, leaves no worker, or service
            times are missing.
    """
    for name in declared.streams:
        if name not in experiment.streams:
            raise P3sError(
                f"a load for the stream {name!r}, which does not exist", fix=did_you_mean(name, experiment.streams)
            )
    service_s = stage_times(declared.service, stages_of(experiment, *others), measured, seed)
    units: list[SeenUnit] = []
    closings: list[GroupClosing] = []
    first_group = 1
    for name, stream in declared.streams.items():
        found = tuple(_stream(name, stream, declared, experiment.instrument, first_group, seed))
        units += found
        closings += _closings(found, experiment.instrument)
        # Streams do not share groups: their units would otherwise have the same names.
        first_group += len({unit.data_id.subset(experiment.instrument.group) for unit in found})
    if not units:
        raise P3sError("nothing arrives in this load", fix="Give a longer duration, or a higher rate.")
    slots = declared.slots or experiment.pilots.workers
    return Load(
        about=_about(declared),
        units=tuple(sorted(units, key=lambda unit: unit.at)),
        closings=tuple(closings),
        slots=slots,
        slot_changes=slot_changes(declared.lose_workers, slots),
        service_s=service_s,
        fate=partial(_fate, seed, declared.failures, _broken_parts(declared.part_failures, units, seed)),
        notes=tuple(too_slow(service_s, experiment, *others)),
    )


def _stream(
    name: str, stream: StreamLoad, declared: LoadFile, instrument: Instrument, first_group: int, seed: int
) -> Iterator[SeenUnit]:
    if stream.rate is None:
        times, size = _visits(name, stream, declared.duration), stream.parts or 1
    else:
        times = _at_rate(name, stream, declared.duration or DEFAULT_DURATION_S, seed)
        size = stream.units_per_group
    for number, taken_at in enumerate(times):
        group, unit = divmod(number, size)
        data_id = _data_id(instrument, first_group + group, unit)
        yield SeenUnit(at=taken_at + stream.delay, taken_at=taken_at, stream=name, data_id=data_id)


def _visits(name: str, stream: StreamLoad, duration_s: float | None) -> Iterator[float]:
    visits, parts, every_s = stream.visits or 1, stream.parts or 1, stream.every or 0.0
    if duration_s is not None:
        visits = min(visits, int(duration_s / every_s) + 1)
    _check_number(name, visits * parts)
    return (visit * every_s for visit in range(visits) for _ in range(parts))


def _at_rate(name: str, stream: StreamLoad, duration_s: float, seed: int) -> Iterator[float]:
    """Moments at random (Poisson); in bursts, those of the on-times put one behind the other."""
    mean_hz = stream.rate or 0.0
    _check_number(name, mean_hz * duration_s)
    on_s, off_s = stream.bursts or (duration_s, 0.0)
    rate_hz, draws = mean_hz * (on_s + off_s) / on_s, random.Random(f"{seed} {name}")  # noqa: S311 - chance, not secrecy
    busy_s = 0.0
    while True:
        busy_s += draws.expovariate(rate_hz)
        at = busy_s + busy_s // on_s * off_s
        if at >= duration_s:
            return
        yield at


def _check_number(name: str, units: float) -> None:
    if units > MOST_UNITS:
        raise P3sError(
            f"the load of the stream {name} has {units:,.0f} units, more than {MOST_UNITS:,}",
            fix="Give a shorter duration, a lower rate, or fewer visits.",
        )


def _data_id(instrument: Instrument, group: int, unit: int) -> DataId:
    """Group and unit are counted in the first and the last dimension; those between are 0."""
    counted = dict.fromkeys(instrument.dimensions, 0)
    last = list(counted)[-1]
    counted[instrument.group[0]] = group
    if last in instrument.group:
        # A unit is its own group: all are counted in one dimension.
        counted[instrument.group[0]] = group * 1_000_000 + unit
    else:
        counted[last] = unit
    values: dict[str, Value] = {
        name: counted[name] if kind == "int" else f"{name}{counted[name]}"
        for name, kind in instrument.dimensions.items()
    }
    return DataId.of(**values)


def _closings(units: tuple[SeenUnit, ...], instrument: Instrument) -> Iterator[GroupClosing]:
    """A marker or a count closes a group with its last unit; without them, quiet time does."""
    rule = instrument.closing
    quiet_s = rule.quiet_s if rule.quiet_s is not None and rule.marker is None and rule.count is None else 0.0
    last: dict[DataId, float] = {}
    for unit in units:
        last[unit.data_id.subset(instrument.group)] = unit.at
    return (GroupClosing(at=at + quiet_s, group=group) for group, at in last.items())


def _broken_parts(share: float, units: list[SeenUnit], seed: int) -> frozenset[tuple[str, Value]]:
    """The values of the last dimension whose data are broken: so many of them, chosen at random."""
    parts = sorted({unit.data_id.items[-1] for unit in units}, key=lambda part: chance(seed, "part", *part))
    return frozenset(parts[: round(share * len(parts))])


def _fate(
    seed: int,
    failures: float,
    broken: frozenset[tuple[str, Value]],
    pipeline: str,
    stage: str,
    data_id: DataId,
    attempt: int,
) -> Failure | None:
    if broken and data_id.items[-1] in broken:
        return Failure.PAYLOAD
    if failures and chance(seed, "failure", pipeline, stage, data_id, attempt) < failures:
        return Failure.PAYLOAD
    return None


def _about(declared: LoadFile) -> str:
    told = []
    for name, stream in declared.streams.items():
        if stream.rate is None:
            told.append(f"{name}: {stream.visits} visits x {stream.parts} parts every {stream.every:g} s")
        else:
            bursts = f" in bursts of {stream.bursts[0]:g} s every {sum(stream.bursts):g} s" if stream.bursts else ""
            duration_s = declared.duration or DEFAULT_DURATION_S
            told.append(f"{name}: {stream.rate:g}/s for {duration_s:g} s{bursts}")
    return "; ".join(told)
