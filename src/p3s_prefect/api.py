"""The books for notebooks and scripts: what the station took, what became of it, and its results.

::

    from p3s_prefect.api import open_experiment

    books = open_experiment("demo")
    books.units(state="failed")                      # a DataFrame
    books.dataset("pixel_statistics", "run=2008 subrun=3")["pedestal"]

It reads the ledger and the store directly, so it works whether the station runs or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import httpx
from sqlalchemy import Connection, make_url

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import result_views, views
from p3s_prefect.adapters.pilot import formats
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import LedgerError, NoSuchRecord, ServiceError, StageFailed
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.health import START_STATION, arrivals, overall, results, station_down
from p3s_prefect.core.views import PhaseKind, UnitDetail, UnitRow, phases, plain
from p3s_prefect.settings import Settings

if TYPE_CHECKING:
    import pandas

_P = ParamSpec("_P")
_T = TypeVar("_T")

# The station answers in milliseconds; whoever waits longer wants to know that it hangs.
_ANSWER_TIMEOUT_S = 10.0


def open_experiment(home: str | Path = ".") -> Bookkeeping:
    """The books of the experiment in this directory, the one with its ``experiment.yaml``.

    Raises:
        ExperimentFileErrors: the directory has no experiment file, or a wrong one.
        LedgerError: nothing was ever processed there.
    """
    return Bookkeeping(Home(Path(home)))


class Bookkeeping:
    """What the ledger and the store of one experiment hold. Tables are DataFrames; times are UTC.

    Use it as a context manager, or `close` it, where many are opened.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.experiment = home.read()
        self.store = home.store(self.experiment)
        self._ledger = home.ledger(self.experiment)
        if not Path(make_url(self._ledger.url).database or "").is_file():
            raise LedgerError(
                f"there is no ledger in {home.path.resolve()} yet", fix="Start the station with `p3s up`."
            )
        self._ledger.migrate()

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

    def status(self) -> dict[str, Any]:
        """The health rows and the account, from the station if it answers, else from the ledger."""
        try:
            return station_status(self.home)
        except ServiceError as error:
            now = time.time()
            kept_out, outcomes = self.read(views.kept_out, now=now), self.read(views.outcomes, now=now)
            rows = (station_down(error.what, error.fix), arrivals(kept_out), results(outcomes))
            return {
                "experiment": self.experiment.experiment,
                "instrument": self.experiment.instrument.name,
                "station": None,
                "status": overall(rows),
                "health": [plain(row) for row in rows],
                "account": [plain(row) for row in self.read(views.account)],
                "sub_jobs": [plain(row) for row in self.read(views.sub_job_account)],
            }

    def units(
        self,
        *,
        state: str | None = None,
        pipeline: str | None = None,
        group: str | None = None,
        limit: int = 200,
    ) -> pandas.DataFrame:
        """Units, newest first, with the seconds that each spent in each phase; `state` may be ``open``.

        Raises:
            BadName: there is no such state or pipeline.
        """
        self.read(views.check_filters, self.experiment.pipelines, state=state, pipeline=pipeline)
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

    def summary(self, *, limit: int = 200) -> pandas.DataFrame:
        """Summary values of the latest units: one row for each value of each unit."""
        return _frame(
            {
                "pipeline": trend.pipeline,
                "stage": trend.stage,
                "data_id": data_id,
                "name": trend.name,
                "value": value,
                "unit": trend.unit,
            }
            for trend in self.read(result_views.trends, limit=limit)
            for data_id, value in zip(trend.data_ids, trend.values, strict=True)
        )

    def unit(self, data_id: str | DataId, *, pipeline: str | None = None, pass_number: int | None = None) -> UnitDetail:
        """All about one unit; in its newest pass, where none is given.

        Raises:
            NoSuchRecord: there is no such unit.
        """
        return self.read(result_views.unit, self.named(data_id), pipeline=pipeline, pass_number=pass_number)

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
        return formats.read(self.store.fetch(row.key, self.home.run, row.sha256), Format(row.format))

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
        return self.store.fetch(row.key, self.home.run, row.sha256).read_bytes()


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


def station_status(home: Home) -> dict[str, Any]:
    """What a running station says about itself.

    Raises:
        ServiceError: it does not run, does not answer, or wants another token.
    """
    address = home.station()
    if address is None:
        if Services(home).pid() is not None:
            raise ServiceError(
                "the station is being started again", fix="See run/logs/station.log: it says why it ended."
            )
        raise ServiceError("no station runs here", fix=START_STATION)
    token = Settings().token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    try:
        answer = httpx.get(f"{address.url}/api/status", headers=headers, timeout=_ANSWER_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        return dict(answer.json())
    except httpx.HTTPStatusError as error:
        why = "it wants the token in P3S_TOKEN" if error.response.status_code == 401 else str(error)
        raise ServiceError(f"the station at {address.url} refuses: {why}", fix="Set P3S_TOKEN.") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(
            f"the station (process {address.pid}) does not answer at {address.url}: {type(error).__name__}",
            fix="Look into run/logs/station.log; `p3s down` and `p3s up` restart it.",
        ) from error


def _flat(row: Any) -> dict[str, Any]:
    return {name: value for name, value in plain(row).items() if not isinstance(value, tuple)}


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
