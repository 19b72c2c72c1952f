"""The same for real, and small: a load that sleeps on two pilots of a real station, and the same night in virtual time.

Arrivals, decisions, hand-out and publication are the station's; `p3s simulate` plays what its ledger has recorded. Both
count the units that were done by their deadline, of all that arrived.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from benchmarks import rig
from benchmarks.shedding.ours import POLICIES
from benchmarks.shedding.traces import RECIPES, Trace, cook
from benchmarks.table import Row
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger.schema import attempt, stage_run, sub_job
from p3s_prefect.adapters.what_if import Question, answer
from p3s_prefect.core.reports import scope

SLOTS = 2
SERVICE_S = 0.8
"""Mean service time: long against what a station adds to each stage, some 0.03 s from one to the next."""
LENGTH = 50.0
"""Mean service times that a trace lasts."""
PLAYED = (("steady", 0.9, 5.0), ("steady", 3.0, 5.0), ("bursty", 1.2, 20.0), ("two classes", 3.0, 5.0))
MOST_APART = 0.05


@dataclass(frozen=True, kw_only=True)
class Both:
    """Share of the units that were in time."""

    units: int
    station: float
    simulator: float

    @property
    def apart(self) -> float:
        """How far they differ, as a share of the units."""
        return abs(self.station - self.simulator)


def rows() -> list[Row]:
    """A line for each trace that is played."""
    found = []
    for name, load, deadline in PLAYED:
        both = play(cook(RECIPES[name], name, load, deadline, seed=1, length_s=LENGTH, slots=SLOTS))
        shares = f"{both.station:.1%} and {both.simulator:.1%} of {both.units}"
        apart = f"{both.apart:.1%} apart (wanted: at most {MOST_APART:.0%})"
        found.append(Row(f"in time at the station and simulated: {name}, load {load:g}", shares, apart))
    return found


def play(trace: Trace) -> Both:
    """Plays a trace on a station of its own."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = Home(Path(folder) / "home")
        (home.path / "incoming").mkdir(parents=True)
        home.experiment_file.write_text(json.dumps(experiment(trace)))
        with rig.cluster(home) as (_, command), rig.station(home, command):
            feed(trace, home.path / "incoming")
            rig.until(lambda: _settled(home) == len(trace.units), 60)
        return compare(home)


def experiment(trace: Trace, policy: str = "value") -> dict[str, Any]:
    """An experiment whose stages sleep for as long as their data say, under one of `POLICIES`."""
    step = {
        "name": "sleep",
        "python": "benchmarks.payloads:asleep",
        "inputs": {"raw": "raw"},
        "outputs": {"out": "out"},
    }
    pipelines = {
        name: pipeline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, pipeline in trace.pipelines(POLICIES[policy]).items()
    }
    for pipeline in pipelines.values():
        for stage in pipeline["stages"].values():
            stage |= {"steps": [step], "deadline_s": trace.deadline_s * SERVICE_S}
    rules = [{"when": {"run": run}, "pipelines": [kind]} for run, kind in enumerate(trace.kinds, start=1)]
    return {
        "experiment": "bench",
        "seed": trace.seed,
        "instrument": {"name": "bench", "dimensions": {"run": "int", "unit": "int"}, "group": ["run"]},
        "dataset_types": {"raw": {"format": "file"}, "out": {"format": "text"}},
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
        "pilots": {"workers": SLOTS},
        "station": {"port": 0},
    }


def feed(trace: Trace, incoming: Path) -> None:
    """Renames a file into the watched place for each unit, at its time; it says how long its stage takes."""
    runs: Mapping[str, int] = {kind: run for run, kind in enumerate(trace.kinds, start=1)}
    began = time.monotonic()
    for number, unit in enumerate(trace.units):
        final = incoming / f"r{runs[unit.kind]:04d}_{number:06d}.dat"
        time.sleep(max(0.0, began + unit.at * SERVICE_S - time.monotonic()))
        hidden = final.with_name(f".{final.name}.tmp")
        hidden.write_text(str(unit.services_s[0] * SERVICE_S))
        hidden.replace(final)


def compare(home: Home) -> Both:
    """What the ledger says, and what the simulator makes of the same arrivals."""
    declared = home.read()
    deadline_s = next(stage.deadline_s for one in declared.pipelines.values() for stage in one.stages.values()) or 0.0
    ledger = home.ledger(declared)
    in_time = (
        select(func.count())
        .select_from(attempt)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(attempt.c.state == "done", attempt.c.ended_at <= sub_job.c.taken_at + deadline_s)
    )
    with ledger.reading() as connection:
        good = connection.scalar(in_time) or 0
        units = connection.scalar(select(func.count()).select_from(sub_job)) or 0
    ledger.close()
    asked = scope(declared.instrument, since="1970-01-01", now=time.time())
    played = answer(home, Question(scope=asked)).a
    simulated = sum(one.in_time for one in played.classes) / sum(one.seen for one in played.classes)
    return Both(units=units, station=good / units, simulator=simulated)


def _settled(home: Home) -> int:
    ledger = home.ledger(home.read())
    with ledger.reading() as connection:
        number = connection.scalar(select(func.count()).where(sub_job.c.settled_at.is_not(None)))
    ledger.close()
    return int(number or 0)
