"""The same for real, and small: a load that sleeps on some pilots of a real station, and the same in virtual time.

Arrivals, decisions, hand-out and publication are the station's; `p3s simulate` plays what its ledger has recorded, and
is told when pilots went and came, which no ledger knows. Both say how much of the value was done by its deadline.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Row as Found
from sqlalchemy import Select, func, select

from benchmarks import rig
from benchmarks.shedding.ours import POLICIES
from benchmarks.shedding.traces import RECIPES, Trace, Unit, cook
from benchmarks.table import Row
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger.schema import arrival, attempt, job, production_pass, stage_run, sub_job
from p3s_prefect.adapters.station_status import station_status
from p3s_prefect.adapters.what_if import Question, answer
from p3s_prefect.core.reports import scope

SLOTS = 2
MORE_SLOTS = {"heavy tails": 8}
"""With 2 slots 0.005 s more for each service move what the simulator itself says by up to 12 % of the value, as other
units are chosen then; with 8 by up to 4 %."""
SEED = 5
"""With it the bursts are one, a pause, and another."""
LASTS_S = 40.0
"""So long units arrive."""
SERVICE_S = 1.2
"""Mean service time of a unit: long against what a station adds to each stage, 0.02 to 0.1 s on a busy machine.

The simulator does not play what is added between two stages.
"""
LONGER_S = {"heavy tails": 2.4, "three stages": 2.4}
"""Where most stages take much less than the mean of a unit."""
PLAYED = (
    ("steady", 3.0, 5.0), ("bursty", 1.2, 5.0), ("ramp", 3.0, 5.0), ("heavy tails", 3.0, 5.0),
    ("two classes", 3.0, 5.0), ("three stages", 3.0, 5.0), ("worker loss", 1.2, 5.0), ("visits", 3.0, 5.0),
)  # fmt: skip
"""Of each recipe a load at which something is left out, and a deadline in mean service times."""
MOST_APART = 0.05

SlotChanges = Sequence[tuple[float, int]]
"""When (UTC, seconds since 1970) pilots came (+1) or went (-1)."""


@dataclass(frozen=True, kw_only=True)
class Both:
    """Share of the value that was in time."""

    units: int
    station: float
    simulator: float

    @property
    def apart(self) -> float:
        """How far they differ, as a share of the whole value."""
        return abs(self.station - self.simulator)

    @property
    def apart_of_done(self) -> float:
        """The same as a share of what the simulator says was done in time."""
        return self.apart / self.simulator if self.simulator else 0.0


def rows(only: str | None = None) -> list[Row]:
    """A line for each trace that is played."""
    return [_row(name, load, deadline) for name, load, deadline in PLAYED if only in (None, name)]


def _row(name: str, load: float, deadline: float) -> Row:
    service_s = LONGER_S.get(name, SERVICE_S)
    trace = cook(RECIPES[name], name, load, deadline, SEED, LASTS_S / service_s, MORE_SLOTS.get(name, SLOTS))
    both = play(slowed(trace, service_s))
    return Row(
        f"value in time at the station and simulated: {name}, load {load:g}, deadline {deadline:g}",
        f"{both.station:.1%} and {both.simulator:.1%} of {both.units} units",
        f"{both.apart:.1%} apart (wanted: at most {MOST_APART:.0%}), {both.apart_of_done:.1%} of what is done",
    )


def slowed(trace: Trace, service_s: float) -> Trace:
    """The trace in seconds of a clock, where a mean service takes so long."""
    units = (
        Unit(unit.at * service_s, unit.kind, tuple(stage_s * service_s for stage_s in unit.services_s))
        for unit in trace.units
    )
    return replace(
        trace,
        deadline_s=trace.deadline_s * service_s,
        units=tuple(units),
        slots=tuple((at * service_s, slots) for at, slots in trace.slots),
        length_s=trace.length_s * service_s,
    )


def play(trace: Trace) -> Both:
    """Plays a trace on a station of its own."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = Home(Path(folder) / "home")
        (home.path / "incoming").mkdir(parents=True)
        home.experiment_file.write_text(json.dumps(experiment(trace)))
        slots = trace.slots[0][1]
        with rig.cluster(home) as cluster, rig.station(home, cluster.station):
            rig.until(lambda: station_status(home)["station"]["slots_actual"] == slots, 60)
            feed(trace, home.path / "incoming", cluster.set_pilots)
            rig.until(lambda: _settled(home) == len(trace.units), 60)
            # The first to come are those that it begins with.
            changes = cluster.changes()[slots:]
        return compare(home, trace, changes)


def experiment(trace: Trace, policy: str = "value") -> dict[str, Any]:
    """An experiment whose stages sleep for as long as their data say, under one of `POLICIES`."""
    pipelines = {
        name: pipeline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, pipeline in trace.pipelines(POLICIES[policy]).items()
    }
    for pipeline in pipelines.values():
        for name, stage in pipeline["stages"].items():
            stage["steps"] = [_sleeping(name)]
    rules = [{"when": {"run": run}, "pipelines": [kind]} for run, kind in enumerate(trace.kinds, start=1)]
    made = {_made(stage): {"format": "text"} for kind in trace.kinds.values() for stage in kind.stages}
    return {
        "experiment": "bench",
        "seed": trace.seed,
        "instrument": {"name": "bench", "dimensions": {"run": "int", "unit": "int"}, "group": ["run"]},
        "dataset_types": {"raw": {"format": "file"}, **made},
        "classes": {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in trace.classes().items()},
        "pipelines": pipelines,
        "streams": {
            "files": {
                "directory": "incoming",
                "pattern": "r{run:04d}_{unit:06d}.dat",
                "dataset_type": "raw",
                "rules": rules,
            }
        },
        "pilots": {"workers": trace.slots[0][1]},
        "station": {"port": 0},
    }


def feed(trace: Trace, incoming: Path, set_pilots: Callable[[int], None]) -> None:
    """Each unit comes at its time, as a file that says how long its stages take; pilots come and go at theirs."""
    coming = [(unit.at, partial(_place, trace, number, incoming)) for number, unit in enumerate(trace.units)]
    changing = [(at, partial(set_pilots, slots)) for at, slots in trace.slots[1:]]
    began = time.monotonic()
    for at, act in sorted(chain(coming, changing), key=itemgetter(0)):
        time.sleep(max(0.0, began + at - time.monotonic()))
        act()


def compare(home: Home, trace: Trace, changes: SlotChanges = ()) -> Both:
    """What the ledger says, and what the simulator makes of the same arrivals and pilots."""
    asked = Question(
        scope=scope(home.read().instrument, since="1970-01-01", now=time.time()), options=_told(home, changes)
    )
    simulated = {(str(one.pipeline), str(one.stage)): one.in_time for one in answer(home, asked).a.stages}
    return Both(
        units=_settled(home),
        station=_value(trace, _in_time(home, trace.deadline_s)),
        simulator=_value(trace, simulated),
    )


def _value(trace: Trace, in_time: Mapping[tuple[str, str], int]) -> float:
    """What so many of each pipeline's stages are worth, as a share of what all would be."""
    number = Counter(unit.kind for unit in trace.units)
    worth = {
        (name, stage): value
        for name, kind in trace.kinds.items()
        for stage, value in zip(kind.stages, kind.stage_values(), strict=True)
    }
    whole = sum(value * number[name] for (name, _), value in worth.items())
    return sum(value * in_time.get(key, 0) for key, value in worth.items()) / whole


def _in_time(home: Home, deadline_s: float) -> Mapping[tuple[str, str], int]:
    query = (
        select(job.c.pipeline, stage_run.c.stage, func.count().label("number"))
        .select_from(attempt)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .where(attempt.c.state == "done", attempt.c.ended_at <= sub_job.c.taken_at + deadline_s)
        .group_by(job.c.pipeline, stage_run.c.stage)
    )
    return {(row.pipeline, row.stage): row.number for row in _read(home, query)}


def _told(home: Home, changes: SlotChanges) -> dict[str, Any]:
    """What `--lose-workers` would say: seconds after the first arrival."""
    ((began,),) = _read(home, select(func.min(arrival.c.arrived_at)))
    return {"lose_workers": [f"{'+' if sign > 0 else ''}{abs(sign)}@{at - began:.3f}s" for at, sign in changes]}


def _settled(home: Home) -> int:
    ((number,),) = _read(home, select(func.count()).where(sub_job.c.settled_at.is_not(None)))
    return int(number)


def _read(home: Home, query: Select[Any]) -> Sequence[Found[Any]]:
    ledger = home.ledger(home.read())
    with ledger.reading() as connection:
        found = connection.execute(query).all()
    ledger.close()
    return found


def _sleeping(stage: str) -> dict[str, Any]:
    return {
        "name": "sleep",
        "python": "benchmarks.payloads:asleep",
        "inputs": {"raw": "raw"},
        "outputs": {"out": _made(stage)},
        "params": {"stage": stage},
    }


def _made(stage: str) -> str:
    return f"made-{stage}"


def _place(trace: Trace, number: int, incoming: Path) -> None:
    """Renames a file into the watched place."""
    unit = trace.units[number]
    run = list(trace.kinds).index(unit.kind) + 1
    services_s = dict(zip(trace.kinds[unit.kind].stages, unit.services_s, strict=True))
    final = incoming / f"r{run:04d}_{number:06d}.dat"
    hidden = final.with_name(f".{final.name}.tmp")
    hidden.write_text(json.dumps(services_s))
    hidden.replace(final)
