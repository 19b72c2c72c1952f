"""The books for notebooks and scripts: what the station took, what became of it, and its results.

::

    from p3s_prefect.api import open_experiment

    books = open_experiment("demo")
    books.units(state="failed")                      # a DataFrame
    books.trends()                                   # summary values over the latest units, with errors
    books.dataset("pixel_statistics", "run=2008 subrun=3")["pedestal"]

It reads the ledger and the store directly, so it works whether the station runs or not.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import reports, result_views, views
from p3s_prefect.adapters.ledger.archived import reading_about
from p3s_prefect.adapters.ledger.archiving import archives_of
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.adapters.ledger.why import case_of
from p3s_prefect.adapters.station_status import station_status, told_by_ledger, told_by_nobody
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.core.coverage import CoverageReport, coverage_record
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import LedgerAway, LedgerError, NoSuchRecord, ServiceError, StageFailed
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.experiment_changes import Change
from p3s_prefect.core.latency import LatencyReport, latency_record
from p3s_prefect.core.phases import PhaseKind, phases
from p3s_prefect.core.reports import Scope, scope
from p3s_prefect.core.simulation import Comparison
from p3s_prefect.core.simulation_results import PolicyResult, tally_record
from p3s_prefect.core.views import UnitDetail, UnitRow, plain
from p3s_prefect.core.weighted_values import WeightedValue
from p3s_prefect.core.why import explain
from p3s_prefect.core.why_arrivals import expected_files
from p3s_prefect.core.why_asked import asked_why
from p3s_prefect.core.why_facts import Explanation, StationCase

if TYPE_CHECKING:
    import pandas

_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_experiment(home: str | Path = ".") -> Bookkeeping:
    """The books of the experiment in this directory, the one with its ``experiment.yaml``.

    Raises:
        ExperimentFileErrors: no station runs, and the directory has no experiment file or a wrong one.
        LedgerError: nothing was ever processed there.
    """
    return Bookkeeping(Home(Path(home)))


def status(home: str | Path = ".") -> dict[str, Any]:
    """The health rows and the account, from the station if it answers, else from the ledger if it can be read.

    Raises:
        ExperimentFileErrors: no station runs, and the directory has no experiment file or a wrong one.
        LedgerError: nothing was ever processed there.
    """
    try:
        with open_experiment(home) as books:
            return books.status()
    except LedgerAway as away:
        at = Home(Path(home))
        try:
            return station_status(at)
        except ServiceError as error:
            return told_by_nobody(at.in_force(), error, away)


class Bookkeeping:
    """What the ledger and the store of one experiment hold. Tables are DataFrames; times are UTC.

    Use it as a context manager, or `close` it, where many are opened.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.experiment = home.in_force()
        self.store = home.store(self.experiment)
        self._ledger = home.ledger(self.experiment)
        if not self._ledger.exists():
            raise LedgerError(
                f"there is no ledger in {home.path.resolve()} yet", fix="Start the station with `p3s up`."
            )
        self._ledger.migrate()
        self.steer = Steering(self.experiment, self._ledger)
        """What is set by command: ``books.steer.pause("waveform-dqm", why="calibration")``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the ledger."""
        self._ledger.close()

    def read(self, view: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **keywords: _P.kwargs) -> _T:
        """The records of one of the views in `adapters.ledger`."""
        with self._ledger.reading() as connection:
            return view(connection, *args, **keywords)

    def read_about(
        self, data_id: str, view: Callable[Concatenate[Connection, _P], _T], *args: _P.args, **keywords: _P.kwargs
    ) -> _T:
        """The same of a view about one group or unit, with what of it is archived (S10)."""
        with reading_about(self._ledger, self.store, data_id) as connection:
            return view(connection, *args, **keywords)

    def archives(self, data_id: str | DataId) -> tuple[str, ...]:
        """The archives in the store that hold something of a group or unit, which is read from there."""
        return self.read(archives_of, self.named(data_id))

    def status(self) -> dict[str, Any]:
        """The health rows and the account, as `p3s status` shows them: from the station if it answers."""
        try:
            return station_status(self.home)
        except ServiceError as error:
            return told_by_ledger(self.experiment, self._ledger, error)

    def units(
        self,
        *,
        state: str | None = None,
        pipeline: str | None = None,
        group: str | None = None,
        limit: int = 200,
    ) -> pandas.DataFrame:
        """Units, newest first, with the seconds that each spent in each phase.

        `state` is one of the account, or ``open``, ``standby``, ``running``, ``queued``, ``held``, ``waiting``.

        Raises:
            BadName: there is no such state or pipeline.
            NoSuchRecord: there is no such group.
        """
        group = None if group is None else self.named(group)
        self.read(views.check_filters, self.experiment.pipelines, state=state, pipeline=pipeline, group=group)
        rows = self.read(views.units, state=state, pipeline=pipeline, group=group, limit=limit)
        now = time.time()
        return _frame({**_flat(row), **_seconds(row, now)} for row in rows)

    def groups(self, *, limit: int = 50) -> pandas.DataFrame:
        """Groups, newest first, one row for each pass, with its coverage."""
        rows = self.read(views.groups, limit=limit)
        return _frame({**_flat(row), **plain(pass_)} for row in rows for pass_ in row.coverage)

    def account(self, *, pipeline: str | None = None, group: str | None = None) -> pandas.DataFrame:
        """What became of all that was seen, by pipeline and stage (P7); sub-jobs have no stage.

        Raises:
            BadName: there is no such pipeline.
        """
        self.read(views.check_filters, self.experiment.pipelines, pipeline=pipeline)
        chosen = {"pipeline": pipeline, "group": group}
        rows = [*self.read(views.sub_job_account, **chosen), *self.read(views.account, **chosen)]
        return _frame(plain(row) for row in rows)

    def coverage(self, group: str | DataId | None = None, **words: Any) -> pandas.DataFrame:
        """What became of all that a group or a period has, by pipeline, pass, stage and part (P7).

        Takes what `scope` takes; shares are of 1.
        """
        return _frame(coverage_record(row) for row in self.coverage_report(group, **words).rows)

    def latency(self, group: str | DataId | None = None, **words: Any) -> pandas.DataFrame:
        """Seconds from data taken to results published, and the share within the deadline, by row of `coverage` (V24).

        Takes what `scope` takes. NaN where nothing is done, or no deadline declared.
        """
        found = [latency_record(row) for row in self.latency_report(group, **words).rows]
        return _frame(
            {**{name: value for name, value in row.items() if name not in ("total", "phases")}, **(row["total"] or {})}
            for row in found
        )

    def latency_phases(self, group: str | DataId | None = None, **words: Any) -> pandas.DataFrame:
        """What the seconds of `latency` went into: one row for each phase of each of its rows, in order."""
        found = [latency_record(row) for row in self.latency_report(group, **words).rows]
        names = ("pipeline", "pass_number", "per", "part", "stage")
        return _frame({**{name: row[name] for name in names}, **phase} for row in found for phase in row["phases"])

    def coverage_report(self, group: str | DataId | None = None, **words: Any) -> CoverageReport:
        """`coverage` as records.

        Raises:
            BadName: a word of `scope` means nothing.
            NoSuchRecord: nothing was processed in it.
        """
        return self.read(reports.coverage, self.scope(group, **words))

    def latency_report(self, group: str | DataId | None = None, **words: Any) -> LatencyReport:
        """`latency` as records.

        Raises:
            BadName: a word of `scope` means nothing.
            NoSuchRecord: nothing was processed in it.
        """
        return self.read(reports.latency, self.scope(group, **words))

    def scope(
        self,
        group: str | DataId | None = None,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        day: str | None = None,
        pipeline: str | None = None,
        by: str | None = None,
    ) -> Scope:
        """What a report is about: a group; what arrived in a period (default: the last 24 h); groups of a day.

        Times are ISO 8601 in UTC, or ``6h`` for six hours ago; `by` is a dimension to split by.

        Raises:
            BadName: it names no group, time, day, pipeline or dimension.
        """
        self.read(views.check_filters, self.experiment.pipelines, pipeline=pipeline)
        return scope(
            self.experiment.instrument,
            group,
            since=since,
            until=until,
            day=day,
            pipeline=pipeline,
            by=by,
            now=time.time(),
        )

    def summary(self, *, limit: int = 200) -> pandas.DataFrame:
        """Summary values of the latest units: one row for each value of each unit, which stands for `weight` units.

        `trends` has each of them over these units together.
        """
        return _frame(
            {
                "pipeline": trend.pipeline,
                "stage": trend.stage,
                "data_id": data_id,
                "name": trend.name,
                "value": value,
                "unit": trend.unit,
                "weight": weight,
            }
            for trend in self.read(result_views.trends, limit=limit)
            for data_id, value, weight in zip(trend.data_ids, trend.values, trend.weights, strict=True)
        )

    def trends(self, *, limit: int = 200) -> pandas.DataFrame:
        """Each summary value over its latest units together, as the overview shows it (P6); columns as in `values`.

        What is no number, and what groups gave, has no row.
        """
        wholes = (trend.whole for trend in self.read(result_views.trends, limit=limit))
        return _frame(_flat_value(whole) for whole in wholes if whole is not None)

    def values(self, group: str | DataId) -> pandas.DataFrame:
        """Each summary value of a group's units over all of them, with its error and what is missing (P6).

        The error is that of leaving units out at random; `missing_share` is by weight, of 1; what is missing could move
        the value from `lowest` to `highest`. NaN where it cannot be told, with `reason` and `range_reason`; see
        `core.weighting`.
        """
        return _frame(
            _flat_value(value) for value in self.read_about(self.named(group), group_values, self.named(group))
        )

    def unit(self, data_id: str | DataId, *, pipeline: str | None = None, pass_number: int | None = None) -> UnitDetail:
        """All about one unit; in its newest pass, where none is given.

        Raises:
            NoSuchRecord: there is no such unit.
        """
        name = self.named(data_id)
        return self.read_about(name, result_views.unit, name, pipeline=pipeline, pass_number=pass_number)

    def why(self, target: str | DataId, *, pass_number: int | None = None) -> Explanation:
        """Why a unit or group waits, and what would release it; or why it was dropped (B12).

        `target` is named as in commands: ``run=2008 subrun=3``, ``run=2008``; together with a pipeline or a stage,
        ``waveform-dqm/quick run=2008 subrun=3``, only that.

        Raises:
            BadName: the experiment has no such pipeline, stage or dimension.
            NoSuchRecord: it is not in that pipeline or pass.
        """
        asked = asked_why(self.experiment, str(target))
        files = expected_files(self.experiment, asked.data_id)
        case = self.read(
            case_of,
            asked.data_id,
            group=asked.group,
            files=files.values(),
            standing=frozenset(name for name, file in files.items() if self._stands(name, file)),
            controls=self.steer.controls(),
            station=_station_case(self.home),
            at=time.time(),
            pipeline=asked.pipeline,
            pass_number=pass_number,
        )
        return explain(self.experiment, case, pipeline=asked.pipeline, stage=asked.stage)

    def _stands(self, stream: str, file: str) -> bool:
        found = self.experiment.streams[stream]
        buffered_in = self.experiment.buffer_directory(found) if found.is_buffered_always else None
        directory = found.directory or buffered_in
        try:
            # In a bucket it could be below any prefix.
            return directory is not None and (self.home.path / directory / file).is_file()
        except OSError:
            # Where it cannot be looked, it cannot be told.
            return False

    def named(self, data_id: str | DataId) -> str:
        """A data id as the ledger has it: its dimensions may be given in any order.

        Raises:
            BadName: it is none, or the experiment has no such dimension.
        """
        parsed = DataId.parse(data_id) if isinstance(data_id, str) else data_id
        return str(parsed.ordered(list(self.experiment.instrument.dimensions)))

    def dataset(self, dataset_type: str, data_id: str | DataId, *, run_collection: str | None = None) -> Any:
        """A dataset's value in the Python form of its format (`core.payload`); a path where that is a file.

        Its checksum is verified. Without `run_collection` it is the newest one.

        Raises:
            NoSuchRecord: there is none.
            ChecksumMismatch: its bytes were damaged in the store.
        """
        name = self.named(data_id)
        rows = self.read(result_views.datasets, dataset_type, name)
        row = next((row for row in rows if run_collection in (None, row.run_collection)), None)
        if row is None:
            raise NoSuchRecord(
                f"no dataset {dataset_type} of {name}", fix="`unit(...).datasets` lists what a unit has."
            )
        from p3s_prefect.adapters.pilot import formats  # NumPy takes a quarter of a second to import

        return formats.read(self._fetched(row.key, row.sha256), Format(row.format))

    def product(self, title: str, data_id: str | DataId, *, pipeline: str | None = None) -> bytes:
        """A product's bytes, mostly PNG: ``IPython.display.Image(books.product("Pedestal", "run=2008 subrun=3"))``.

        Raises:
            NoSuchRecord: the unit has no product of that title.
        """
        found = self.unit(data_id, pipeline=pipeline)
        row = next((row for row in found.products if row.title == title), None)
        if row is None:
            titles = ", ".join(repr(row.title) for row in found.products) or "none"
            raise NoSuchRecord(f"no product {title!r} of {found.unit.data_id}", fix=f"It has: {titles}.")
        return self._fetched(row.key, row.sha256).read_bytes()

    def _fetched(self, key: str, sha256: str) -> Path:
        return self.store.fetch(key, self._scratch, sha256)

    @cached_property
    def _scratch(self) -> Path:
        """Where copies from a bucket are kept as long as these books are."""
        found = Path(tempfile.mkdtemp(prefix="p3s-fetched-"))
        weakref.finalize(self, shutil.rmtree, found, ignore_errors=True)
        return found


def process(
    files: Sequence[str | Path],
    home: str | Path = ".",
    *,
    pipelines: Sequence[str] = (),
    group: Literal["closed", "open"] = "closed",
    address: str | None = None,
) -> Bookkeeping:
    """Processes files here, without a station, on a Prefect server of its own if none is configured.

    See the flow `p3s_prefect.flows.produce.produce`, which runs here, for what the arguments mean.

    Raises:
        BadSelection: some files fit no stream; nothing was begun.
        LeaseLost: a station works on this home.
        StageFailed: some stages gave no results; all others have ended, and the books tell which.
    """
    # Prefect takes seconds to import, which nobody who only looks should pay.
    from prefect.exceptions import FailedRun

    from p3s_prefect.flows.produce import produce
    from p3s_prefect.tasks.server import prefect_server

    with prefect_server(Home(Path(home)).run / "prefect"):
        try:
            produce(
                [str(file) for file in files],
                home=str(home),
                pipelines=list(pipelines),
                group=group,
                address=address,
            )
        except FailedRun as failed:
            raise StageFailed(str(failed)) from failed
    return open_experiment(home)


def simulate(
    home: str | Path = ".",
    *,
    load: Mapping[str, Any] | str | Path = MappingProxyType({}),
    group: str | DataId | None = None,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    day: str | None = None,
    other: str | Path | None = None,
    changes: Sequence[str] = (),
    other_slots: int | None = None,
    seed: int = 0,
) -> Simulation:
    """What would this change do? Plays a load in virtual time as the experiment is (A) and changed (B).

    Args:
        home: the experiment's home.
        load: a file, or the keys that it would have (see `core.load_file`), such as ``{"streams": {"camera": {"rate":
            "5/s"}}, "service": {"quick": "lognormal:1.2s,0.5"}}``. Without `streams`, what the ledger has is played.
        group, since, until, day: which part of the ledger, as in `Bookkeeping.scope`.
        other: the changed experiment file. Default: the same.
        changes: changes of its keys, such as ``pipelines.dqm.stages.quick.prescale=0.5``.
        other_slots: how many slots there are after the change. Without any change only A is played.
        seed: of arrivals, service times and faults.

    Raises:
        ExperimentFileErrors: a file, the load or a change is wrong.
        P3sError: the load cannot be played.
    """
    from p3s_prefect.adapters.what_if import Question, answer  # the simulator takes a quarter of a second to import

    at = Home(Path(home))
    synthetic = not isinstance(load, Mapping) or "streams" in load
    instrument, now = at.read().instrument, time.time()
    asked = Question(
        scope=None if synthetic else scope(instrument, group, since=since, until=until, day=day, now=now),
        load_file=None if isinstance(load, Mapping) else Path(load),
        options=load if isinstance(load, Mapping) else {},
        other=None if other is None else Path(other),
        changes=tuple(Change.parse(text) for text in changes),
        other_slots=other_slots,
        seed=seed,
    )
    return Simulation(answer(at, asked))


@dataclass(frozen=True)
class Simulation:
    """What a simulation found: `record` has all of it."""

    record: Comparison

    def table(self) -> pandas.DataFrame:
        """What became of the stage runs: a row for each policy (A, B) and class, and for each policy and stage."""
        rows = [(found.name, row) for found in self._results for row in (*found.classes, *found.stages)]
        return _frame({"policy": name, **tally_record(row)} for name, row in rows)

    def series(self) -> pandas.DataFrame:
        """How it went over time: a row for each policy, class and interval; `after_s` is the interval's beginning."""
        return _frame(
            {
                "policy": found.name,
                "after_s": place * found.series.every_s,
                **{name: getattr(found.series, name)[place] for name in ("arrivals_hz", "queued", "busy", "slots")},
                "work_class": of.work_class,
                "in_time_share": of.in_time_share[place],
                "q": of.q[place],
            }
            for found in self._results
            for of in found.series.classes
            for place in range(len(found.series.queued))
        )

    def draw(self, path: str | Path) -> None:
        """Draws the series into a file (.png, .svg or .pdf)."""
        from p3s_prefect.adapters.simulation_picture import draw_comparison  # matplotlib takes a second to import

        draw_comparison(self.record, Path(path))

    @property
    def _results(self) -> list[PolicyResult]:
        return [found for found in (self.record.a, self.record.b) if found is not None]


def _station_case(home: Home) -> StationCase:
    try:
        station = station_status(home)["station"]
    except ServiceError as error:
        return StationCase(trouble=error.what, remedy=error.fix)
    try:
        return StationCase(
            slots=station["slots_actual"],
            started_at=station["started_at"],
            freshest_first=station["freshest_first"],
            owed_until={name: (at, number) for name, (at, number) in station["owed_until"].items()},
        )
    except KeyError:
        return StationCase(trouble="the station is of another version", remedy="Restart it: `p3s down`, then `p3s up`.")


def _flat(row: Any) -> dict[str, Any]:
    return {name: value for name, value in plain(row).items() if not isinstance(value, tuple)}


def _flat_value(found: WeightedValue) -> dict[str, Any]:
    row = plain(found)
    estimate, missing = row.pop("estimate"), row.pop("missing")
    row |= {**estimate, "missing": sum(missing.values())}
    # A column in which nothing can be told would not be one of numbers.
    return {name: math.nan if value is None else value for name, value in row.items()}


def _seconds(unit: UnitRow, now: float) -> dict[str, float]:
    spent = dict.fromkeys([f"{kind}_s" for kind in PhaseKind], 0.0)
    for phase in phases(unit, now):
        spent[f"{phase.kind}_s"] += phase.seconds
    return spent


def _frame(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    # Pandas takes half a second to import, which no command at the terminal should pay.
    import pandas

    frame = pandas.DataFrame(list(rows))
    for name in frame.columns:
        if name.endswith("_at"):
            frame[name] = pandas.to_datetime(frame[name], unit="s", utc=True)
    return frame
