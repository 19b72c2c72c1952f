"""The production dispatcher on a trace, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.shedding.traces import Trace, data_id
from benchmarks.table import percentile
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Order
from p3s_prefect.core.incidents import SlotChange, UnitArrival
from p3s_prefect.core.outcome import Outcome
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate

GROUP = DataId.of(run=1)
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "value": {"order": Order.EARLIEST_DEADLINE, "freshest_in_overload": False},
    "fresh": {},
}
"""What an experiment may declare. Most value in time: what is let in waits as long as its deadline allows, so that a
burst is carried over the pause behind it. Or, the default, fresh results: in overload nothing waits for longer than
keeps the slots busy. One excludes the other, as the mean wait is backlog over throughput in any order."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What became of a trace."""

    value: float
    """Delivered in time, before the trace ended."""
    expired: int
    """Units of which a stage was expired or stopped at its deadline."""
    latency_s: float
    """Median time from taken to done of what was done in time."""


def play(trace: Trace, policy: str = "value", *, sample_every_s: float = math.inf) -> Outcome:
    """Plays a trace to its end, under one of `POLICIES`."""
    arrivals = [
        UnitArrival(at=unit.at, taken_at=unit.at, pipeline=unit.kind, group=GROUP, data_id=data_id(number))
        for number, unit in enumerate(trace.units)
    ]
    services = _services(trace)
    (_, slots), *changes = trace.slots
    return simulate(
        trace.pipelines(POLICIES[policy]),
        arrivals,
        classes=trace.classes(),
        service_s=lambda pipeline, stage, unit: services[pipeline, stage][unit],
        slots=slots,
        slot_changes=[SlotChange(at=at, slots=number) for at, number in changes],
        seed=trace.seed,
        sample_every_s=sample_every_s,
        until=trace.length_s,
    )


def judge(outcome: Outcome) -> Played:
    """What counts of it."""
    expired = {id(run.data_id) for run in outcome.runs if run.state is StageState.EXPIRED}
    latencies_s = [run.latency_s for run in outcome.runs if run.in_time] or [math.nan]
    return Played(value=outcome.value(), expired=len(expired), latency_s=percentile(latencies_s, 50))


def _services(trace: Trace) -> dict[tuple[str, str], dict[DataId, float]]:
    return {
        (kind.name, stage): {
            data_id(number): unit.services_s[place] for number, unit in enumerate(trace.units) if unit.kind == kind.name
        }
        for kind in trace.kinds.values()
        for place, stage in enumerate(kind.stages)
    }
