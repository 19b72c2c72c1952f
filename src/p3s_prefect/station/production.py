"""The plain road's books: what the station does for a stream of arrivals, done here for a given list of files.

A production takes the lease, takes its files into the ledger, closes their groups, and plans their stage runs. Each of
its tasks then begins and settles one stage run, in short transactions of its own that check the lease. Deadlines do not
count here: they say how long a result is of use to those who take the data, and who names files by hand wants them all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection

from p3s_prefect.adapters import store_owner
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import execution, selected
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.adapters.ledger.database import Lease, Ledger
from p3s_prefect.adapters.ledger.pass_facts import PassFacts
from p3s_prefect.adapters.ledger.projection import read_pass, with_pictures
from p3s_prefect.adapters.ledger.selected import SelectedStage
from p3s_prefect.core.at_limit import killed_at_limit
from p3s_prefect.core.commit_record import CommitRecord
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.errors import Conflict, InputMissing, LeaseLost, StageFailed
from p3s_prefect.core.experiment import Experiment, Stage
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Failure, StageOrder, StageReport, SubJobFact
from p3s_prefect.core.states import StageState
from p3s_prefect.station import settling
from p3s_prefect.station.catalogue import Catalogue
from p3s_prefect.station.recorder import RecordWriter
from p3s_prefect.station.recovery import manifests, recover
from p3s_prefect.station.upkeep import claim_lease, kept_lease

_ASK_AGAIN_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Production:
    """What every task of a production needs to keep the books; it crosses to Dask's workers."""

    home: Path
    experiment: Experiment
    lease: Lease

    @contextmanager
    def books(self) -> Iterator[Ledger]:
        """The ledger, open."""
        ledger = Home(self.home).ledger(self.experiment)
        try:
            yield ledger
        finally:
            ledger.close()

    def store(self) -> ObjectStore:
        """The central store."""
        return Home(self.home).store(self.experiment)

    def catalogue(self) -> Catalogue:
        """What the experiment means."""
        return Catalogue(self.experiment, self.home, Home(self.home).store_url(self.experiment))

    def stage(self, work: StageWork) -> Stage:
        """The definition of a stage run's stage."""
        return self.experiment.pipelines[work.pipeline].stages[work.stage]


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """One stage run of a production."""

    stage_run_id: int
    sub_job_id: int
    pass_id: int
    data_id: str
    pipeline: str
    stage: str
    per: str
    collection: str
    is_done: bool
    """Whether it was done before: then there is nothing to do."""
    after: tuple[int, ...]
    """Stage runs that must be done before."""
    after_all: tuple[int, ...]
    """Stage runs of units that must have ended before, well or not: those that a stage per group gathers."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a production is to do."""

    work: tuple[StageWork, ...]
    """Parents stand before what comes after them."""
    stage_run_ids: tuple[int, ...]
    """All stage runs, with those that ended before."""
    kept_out: Mapping[str, str] = field(default_factory=dict)
    """Files that were not taken, and why."""


def check_no_station(home: Home) -> None:
    """Says at once what `opened` would find out when all else has been started.

    Raises:
        LeaseLost: a station works here.
    """
    station = home.station()
    if station is not None:
        raise LeaseLost(f"a station works on this home (process {station.pid})", fix=_INSTEAD)


@contextmanager
def opened(home: Path, experiment: Experiment) -> Iterator[Production]:
    """A production that holds the lease of its ledger, after it has settled what an earlier one left running.

    Raises:
        LeaseLost: a station, or another production, holds it.
        StoreTaken: the store belongs to another ledger.
    """
    ledger = Home(home.resolve()).ledger(experiment)
    try:
        ledger.migrate()
        at = Home(home.resolve())
        store_owner.claim(at.store(experiment), store_owner.owner_of(ledger, at, experiment, SystemClock().now()))
        lease = _claim(ledger, experiment)
        with kept_lease(ledger, lease, experiment.station.lease_s):
            production = Production(home=home.resolve(), experiment=experiment, lease=lease)
            _recover(production, ledger)
            yield production
    finally:
        ledger.close()


def begin(production: Production, work: StageWork) -> StageOrder | None:
    """Opens an attempt of a stage run; None if it is done already.

    Raises:
        StageFailed: it cannot run; the ledger says why.
    """
    now = SystemClock().now()
    with production.books() as ledger:
        try:
            with ledger.transaction(production.lease) as connection:
                found = _ready(connection, production, work, now)
                if found.state is StageState.QUEUED:
                    order = production.catalogue().open_attempt(connection, work.stage_run_id, now)
                    # Nobody would take to the store what waits for it, once the production has ended.
                    return replace(order, stop_at=None, waiting_bytes=0)
        except InputMissing as error:
            with ledger.transaction(production.lease) as connection:
                _advance(connection, production, work, now)
                settling.block(connection, work.stage_run_id, error.what, now)
            raise StageFailed(error.what, data_id=work.data_id, fix=error.fix) from error
    if found.state is StageState.DONE:
        return None
    raise StageFailed(
        f"{work.stage} is {found.state}" + (f": {found.reason}" if found.reason else ""),
        data_id=work.data_id,
        fix=f"`p3s show '{work.data_id}'` tells its history.",
    )


def settle(production: Production, order: StageOrder, report: StageReport) -> None:
    """Publishes what an attempt gave, or records that it gave nothing.

    Raises:
        StageFailed: it gave nothing.
    """
    now, failure, reason = SystemClock().now(), report.failure, report.reason
    with production.books() as ledger:
        if report.manifest is not None:
            try:
                with ledger.transaction(production.lease) as connection:
                    record = settling.publish(connection, report.manifest, now)
            except Conflict as conflict:
                failure, reason = Failure.INPUT, conflict.what
            else:
                _record(production, ledger, [record])
                return
        if failure in (Failure.AWAY, Failure.DISTURBED):
            # Prefect tries again as often as the stage declares, and knows no tries that do not count.
            failure = Failure.STORE
        stage = production.catalogue().stage(order.pipeline, order.stage)
        with ledger.transaction(production.lease) as connection:
            after = settling.fail(connection, order, stage, report, now, failure=failure, reason=reason)
    raise StageFailed(
        f"{order.stage}: {reason}",
        may_try_again=after.state is StageState.QUEUED,
        data_id=order.data_id,
        fix=f"`p3s show '{order.data_id}'` has its log.",
    )


def overdue(production: Production, order: StageOrder, began_at: float, limit_s: float) -> None:
    """Records that an attempt did not end within Prefect's limit, which stands behind those of its steps.

    Raises:
        StageFailed: as for every other failure.
    """
    report = StageReport(
        attempt_id=order.attempt_id,
        stage_run_id=order.stage_run_id,
        execution="",
        pilot="",
        started_at=began_at,
        ended_at=SystemClock().now(),
        failure=Failure.TIMEOUT,
        reason=f"{killed_at_limit(limit_s)}, as its pilot had not ended it",
    )
    settle(production, order, report)


def lose(production: Production, work: StageWork, reason: str) -> SelectedStage:
    """Records that the attempt of a stage run, if one runs, has lost its pilot; and tells what became of it."""
    now = SystemClock().now()
    with production.books() as ledger, ledger.transaction(production.lease) as connection:
        return _without_pilot(connection, work, reason, now)


def await_stopped(production: Production, patience_s: float) -> None:
    """Waits until nothing runs any more, and gives back to the queue what does not end within `patience_s`."""
    until = time.monotonic() + patience_s
    with production.books() as ledger:
        while time.monotonic() < until and _running(ledger):
            time.sleep(_ASK_AGAIN_S)
        _recover(production, ledger)


def account(production: Production, plan: Plan) -> list[SelectedStage]:
    """What became of a plan, once nothing of it runs any more; what waited for a failed stage is blocked now."""
    with production.books() as ledger:
        _recover(production, ledger)
        passes = {work.pass_id for work in plan.work}
        with ledger.transaction(production.lease) as connection:
            _follow(connection, production, selected.sub_jobs(connection, passes), SystemClock().now())
        with ledger.reading() as connection:
            return selected.stages(connection, plan.stage_run_ids)


def pass_facts(production: Production, plan: Plan) -> list[PassFacts]:
    """The passes of a plan, each with the rows that a table holds, and with the pictures of its units."""
    most = production.experiment.prefect.record_units
    numbers = sorted({work.pass_id for work in plan.work})
    with production.books() as ledger, ledger.reading() as connection:
        passes = [read_pass(connection, number, most_units=most) for number in numbers]
        return [with_pictures(connection, facts) for facts in passes]


# --- inside ---------------------------------------------------------------------------------------------------------


_INSTEAD = "Stop it (`p3s down`), let it process the files, or use another home."


def _claim(ledger: Ledger, experiment: Experiment) -> Lease:
    try:
        return claim_lease(ledger, experiment.experiment, experiment.station.lease_s)
    except LeaseLost as error:
        what = f"a station or another production works on this home: {error.what}"
        raise LeaseLost(what, fix=_INSTEAD) from error


def _running(ledger: Ledger) -> bool:
    with ledger.reading() as connection:
        return bool(execution.interrupted(connection))


def _recover(production: Production, ledger: Ledger) -> None:
    store, now = production.store(), SystemClock().now()
    with ledger.transaction(production.lease) as connection:
        execution.wait_no_more(connection)
    with ledger.reading() as connection:
        complete = manifests(connection, store)
    with ledger.transaction(production.lease) as connection:
        recover(connection, complete, now)
        unrecorded = execution.unrecorded(connection)
        records = [commit_record(connection, attempt_id) for attempt_id in unrecorded]
    _record(production, ledger, records)


def _record(production: Production, ledger: Ledger, records: list[CommitRecord]) -> None:
    writer = RecordWriter(production.store(), ledger)
    for record in records:
        writer.write(record)
    if records:
        with ledger.transaction(production.lease) as connection:
            execution.mark_recorded(connection, [record.attempt.id for record in records])


def _ready(connection: Connection, production: Production, work: StageWork, now: float) -> SelectedStage:
    """A stage run whose parents have ended, with nobody else at it."""
    _advance(connection, production, work, now)
    # Dask runs a task again when its worker has died, or was taken for dead.
    return _without_pilot(connection, work, "its pilot was lost", now)


def _without_pilot(connection: Connection, work: StageWork, reason: str, now: float) -> SelectedStage:
    (found,) = selected.stages(connection, [work.stage_run_id])
    if found.state is not StageState.RUNNING or found.attempt_id is None:
        return found
    settling.lose(connection, found.attempt_id, work.stage_run_id, reason, now, by_stage=True)
    (found,) = selected.stages(connection, [work.stage_run_id])
    return found


def _advance(connection: Connection, production: Production, work: StageWork, now: float) -> None:
    if work.per == "group":
        facts = selected.sub_jobs(connection, [work.pass_id])
    else:
        facts = [selected.one_sub_job(connection, work.sub_job_id)]
    _follow(connection, production, facts, now)


def _follow(connection: Connection, production: Production, facts: Iterable[SubJobFact], now: float) -> None:
    """Moves on what waits for others, by the dispatcher's rules; units go before groups."""
    dispatcher = Dispatcher(production.experiment.pipelines, production.experiment.classes)
    for fact in facts:
        if not all(stage.state.is_terminal for stage in fact.stages):
            execution.apply(connection, dispatcher.add(fact, now), now)
