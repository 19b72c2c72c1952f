"""The plain road on a real Prefect server and real Dask workers."""

from __future__ import annotations

import base64
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from batches import LIMIT_S, Batch, expected_checksums, when
from sqlalchemy import select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.database import acquire
from p3s_prefect.cli.adopt import adopt
from p3s_prefect.core.at_limit import says_killed_at_limit
from p3s_prefect.core.errors import BadSelection, LeaseLost
from p3s_prefect.station.catalogue import Catalogue

pytestmark = pytest.mark.sockets

UNIT = "run=1 subrun={}"


class Produced:
    """A flow run that has ended, as Prefect has it."""

    def __init__(self, state: Any) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        self.state = state
        run_id = state.state_details.flow_run_id
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])), limit=200)
        self.tasks = {run.name: run for run in runs}
        self.run_id = run_id

    def artifacts(self) -> dict[str, Any]:
        """What each artifact holds, by its key."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        with get_client(sync_client=True) as client:
            chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.run_id]))
            return {str(found.key): found.data for found in client.read_artifacts(artifact_filter=chosen)}

    def names(self) -> dict[str, str]:
        """The name of the state of each task run."""
        return {name: run.state_name or "" for name, run in self.tasks.items()}


def produce(batch: Batch, address: str | None, **parameters: Any) -> Produced:
    from p3s_prefect.flows import produce as flows

    given = {"files": batch.files, "home": str(batch.path), "address": address} | parameters
    return Produced(flows.produce(**given, return_state=True))


@dataclass(frozen=True)
class Example:
    """A batch that was processed, for several tests to look at."""

    batch: Batch
    ended: Produced
    warnings: list[str] = field(default_factory=list)


@contextmanager
def warnings_of_flows() -> Iterator[list[str]]:
    """What flows warn of meanwhile."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def good(dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Three units that went well."""
    batch = Batch.of(tmp_path_factory.mktemp("good") / "home", {0: "a", 1: "b", 2: "c"})
    return Example(batch=batch, ended=produce(batch, dask_address))


@pytest.fixture(scope="module")
def one_failed(dask_address: str, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Three units of which the middle one fails."""
    batch = Batch.of(tmp_path_factory.mktemp("failed") / "home", {0: "a", 1: "fail", 2: "c"}, retries=1)
    with warnings_of_flows() as warnings:
        return Example(batch=batch, ended=produce(batch, dask_address), warnings=warnings)


def test_files_become_a_literal_dag(good: Example) -> None:
    """S2, S5, B9, P22: a task for each unit and stage, joined by its parents; the group's when all units are in."""
    assert good.ended.state.is_completed(), good.ended.state
    units = [UNIT.format(number) for number in range(3)]
    tasks = good.ended.tasks
    assert good.ended.names() == {f"{stage} {unit}": "Completed" for unit in units for stage in ("quick", "later")} | {
        "total run=1": "Completed"
    }
    for unit in units:
        waited_for = {found.id for found in tasks[f"later {unit}"].task_inputs["wait_for"]}
        assert waited_for == {tasks[f"quick {unit}"].id}
    gathered = {found.id for found in tasks["total run=1"].task_inputs["wait_for"]}
    assert gathered == {tasks[f"{stage} {unit}"].id for unit in units for stage in ("quick", "later")}
    assert good.batch.checksums() == expected_checksums({0: "a", 1: "b", 2: "c"})
    assert set(good.batch.states().values()) == {"done"}


def test_each_result_is_kept_under_collection_data_id_and_stage(good: Example) -> None:
    """S2: results persist in the central store, and the commit records stand beside what was published."""
    store = good.batch.path / "store"
    (collection,) = {row.run_collection for row in good.batch.rows(select(schema.production_pass))}
    kept = {path.relative_to(store / "prefect").as_posix() for path in store.glob("prefect/**/*.json")}
    units = {f"{collection}/run=1/subrun={n}/{stage}.json" for n in range(3) for stage in ("quick", "later")}
    assert kept == units | {f"{collection}/run=1/total.json"}
    assert all(
        (store / row.prefix / row.execution / "commit.json").is_file()
        for row in good.batch.rows(select(schema.attempt))
    )
    assert all(row.is_recorded for row in good.batch.rows(select(schema.attempt)))


def test_collections_are_named_as_the_station_names_them(good: Example) -> None:
    """V23: the same configuration, day and pass give the same name on this road."""
    experiment = good.batch.home.read()
    station = Catalogue(experiment, good.batch.path.resolve(), good.batch.home.store(experiment).url)
    (group,) = good.batch.rows(select(schema.data_group))
    (found,) = good.batch.rows(select(schema.run_collection))
    assert found.name == station.collections["dqm"].name(station.day(group.opened_at), 0)
    assert found.configuration_id == station.collections["dqm"].configuration_id


def test_the_lease_is_given_back(good: Example) -> None:
    """V20's kind: a station may start as soon as the flow has ended."""
    (lease,) = good.batch.rows(select(schema.lease))
    assert lease.expires_at <= time.time()


def test_a_second_run_of_the_same_files_does_no_work(dask_address: str, good: Example) -> None:
    """S2: what is done shows as cached; no attempt is opened."""
    before = good.batch.rows(select(schema.attempt))
    again = produce(good.batch, dask_address)
    assert again.state.is_completed()
    assert again.state.message == "everything was done before, and nothing was run: 7 done"
    assert set(again.names().values()) == {"Cached"}
    assert again.names().keys() == good.ended.names().keys()
    assert good.batch.rows(select(schema.attempt)) == before


def test_a_ledger_that_knows_nothing_is_believed_more_than_a_kept_result(dask_address: str, tmp_path: Path) -> None:
    """B11's kind: a result that Prefect has kept does not stand for work that the books do not have."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    produce(batch, dask_address)
    for file in batch.path.glob("ledger.db*"):
        file.unlink()
    for file in sorted((batch.path / "store/runs").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    refused = produce(batch, dask_address)
    assert refused.state.is_failed()
    assert "belongs to another ledger" in refused.state.message
    adopt(batch.path)
    again = produce(batch, dask_address)
    assert set(again.names().values()) == {"Completed"}
    assert set(batch.states().values()) == {"done"}


def test_a_unit_that_fails_stops_no_other(one_failed: Example) -> None:
    """P22, P9: its descendants are blocked; the group's stage runs over the others, and states what it covers."""
    batch, ended = one_failed.batch, one_failed.ended
    assert ended.state.is_failed()
    assert ended.state.message.startswith("1 stage runs failed")
    assert "p3s show" in ended.state.message
    assert batch.states() == {(UNIT.format(n), s): "done" for n in (0, 2) for s in ("quick", "later")} | {
        (UNIT.format(1), "quick"): "failed",
        (UNIT.format(1), "later"): "blocked",
        ("run=1", "total"): "done",
    }
    assert batch.dataset("total").splitlines()[:2] == ["A", "C"]
    assert json.loads(batch.dataset("total").splitlines()[2]) == {"done": 2, "failed": 1}
    assert ended.names()[f"quick {UNIT.format(1)}"] == "Failed"
    assert ended.names()[f"later {UNIT.format(1)}"] == "NotReady"


def test_what_is_blocked_is_shown_and_not_waited_for(one_failed: Example) -> None:
    """S2: Prefect leaves it pending for good; that is its end, and nothing is said to be missing."""
    assert not [line for line in one_failed.warnings if "does not record" in line]


def test_what_has_failed_as_often_as_it_may_is_not_tried_again(one_failed: Example) -> None:
    """S2: Prefect's retries end where the ledger says so."""
    assert one_failed.batch.attempts("quick", UNIT.format(1)) == ["failed", "failed"]


def test_the_table_names_what_failed_first(one_failed: Example) -> None:
    """S2: a table artifact for each group and pipeline, with unit, stage, state, times and the reason."""
    rows = json.loads(one_failed.ended.artifacts()["dqm-units-run-1"])
    assert {row["state"] for row in rows[:2]} == {"failed", "blocked"}
    assert "/bin/sh exited with 3" in rows[0]["why"]
    assert rows[0]["tries"] == 2
    assert rows[0]["started"] <= rows[0]["ended"]
    assert {row["unit"] for row in rows} == {*(UNIT.format(n) for n in range(3)), "run=1"}


def test_progress_and_pictures_are_shown(prefect_api: str, dask_address: str, tmp_path: Path) -> None:
    """S2: as the station's record has them: a bar that has reached its end, and products worth a look."""
    batch = Batch.of(tmp_path / "home", {0: "picture", 1: "a"})
    artifacts = produce(batch, dask_address).artifacts()
    assert float(artifacts["production"]) == 100
    picture = artifacts["dqm-quick-display-dot-run-1"]
    assert base64.b64decode(str(picture).partition("base64,")[2]) == b"\x89PNG\r\n"


def test_prefect_tries_again_and_each_try_is_an_attempt(dask_address: str, tmp_path: Path) -> None:
    """S2: the stage's `retries` are Prefect's, and the ledger has an attempt for each."""
    batch = Batch.of(tmp_path / "home", {0: "flaky"}, retries=3)
    ended = produce(batch, dask_address)
    assert ended.state.is_completed(), ended.state
    assert batch.attempts("quick") == ["failed", "done"]
    assert ended.tasks[f"quick {UNIT.format(0)}"].run_count == 2


def test_prefects_limit_kills_what_the_stage_runner_did_not(
    dask_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V18: `timeout_seconds` takes effect, and what ran is gone; here it is set before the runner's own limit."""
    from p3s_prefect.tasks import stages

    # The payload has time to begin, also on a busy machine.
    monkeypatch.setattr(stages, "_BEHIND_S", 8.0 - LIMIT_S)
    batch = Batch.of(tmp_path / "home", {0: "hang"})
    ended = produce(batch, dask_address)
    assert ended.names()[f"quick {UNIT.format(0)}"] == "TimedOut"
    assert batch.attempts("quick") == ["failed"]
    (attempt,) = batch.rows(select(schema.attempt))
    assert says_killed_at_limit(attempt.reason), attempt.reason
    assert batch.states()[UNIT.format(0), "quick"] == "failed"
    assert "1 stage runs failed" in ended.state.message
    with pytest.raises(ProcessLookupError):
        os.kill(int((batch.path / "hangs").read_text()), 0)


def test_what_its_worker_took_with_it_runs_elsewhere(dask_address: str, tmp_path: Path) -> None:
    """P12: a killed Dask worker's stage is run again by Dask; the ledger has the loss, and no result twice."""
    batch = Batch.of(tmp_path / "home", {0: "stuck"})

    with when(lambda: batch.hangs, lambda: batch.worker().kill()):
        ended = produce(batch, dask_address)
    assert ended.state.is_completed(), ended.state
    assert batch.attempts("quick") == ["lost", "done"]
    assert batch.dataset("total") == 'STUCK\n{"done": 1}\n'


def test_a_class_of_clusters_is_started_for_the_flow(prefect_api: str, tmp_path: Path) -> None:
    """S2, S5, B9: any class that Dask has, with what it is made with and how it follows the load."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    ended = produce(
        batch,
        None,
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={"n_workers": 0, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"},
        adapt_kwargs={"minimum": 1, "maximum": 1},
    )
    assert ended.state.is_completed(), ended.state
    # Without the workers that adapting brings, nothing would have run.
    assert batch.checksums() == expected_checksums({0: "a"})


def test_a_late_unit_opens_a_new_pass(dask_address: str, tmp_path: Path) -> None:
    """P22: the group's totals are made again in a new pass, from all units; the old ones stay."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    produce(batch, dask_address)
    batch.file(1).write_text("late\n")
    ended = produce(batch, dask_address)
    assert ended.state.is_completed(), ended.state
    assert [row.number for row in batch.rows(select(schema.production_pass.c.number))] == [0, 1]
    assert batch.dataset("total") == 'A\nLATE\n{"done": 2}\n'
    assert len(batch.rows(select(schema.dataset).where(schema.dataset.c.dataset_type == "total"))) == 2


def test_an_open_group_has_no_totals(dask_address: str, tmp_path: Path) -> None:
    """P22: with `group: open`, more may come; the group's stages wait."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    assert produce(batch, dask_address, group="open").state.is_completed()
    assert ("run=1", "total") not in batch.states()
    assert [row.is_open for row in batch.rows(select(schema.data_group.c.is_open))] == [True]


def test_all_files_that_do_not_fit_are_named_and_nothing_begins(dask_address: str, tmp_path: Path) -> None:
    """S8: one error for all wrong names; the ledger was not touched."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    (batch.path / "incoming/nonsense.txt").write_text("x")
    files = [*batch.files, str(batch.file(7))]
    ended = produce(batch, dask_address, files=files)
    error = ended.state.result(raise_on_failure=False)
    assert isinstance(error, BadSelection)
    assert "2 of 3 files" in str(error)
    assert "nonsense.txt" in str(error)
    assert "r001_0007.txt: there is no such file" in str(error)
    assert not ended.tasks
    assert not (batch.path / "ledger.db").exists()


def test_a_home_with_a_live_station_is_refused(dask_address: str, tmp_path: Path) -> None:
    """B7's kind: whoever holds the lease goes on; the flow says what to do."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    ledger = batch.home.ledger(batch.home.read())
    ledger.migrate()
    with ledger.transaction() as connection:
        holder = f"{platform.node()}:{os.getppid()}"
        acquire(connection, namespace="batch", holder=holder, lease_s=60, now=time.time())
    ledger.close()
    error = produce(batch, dask_address).state.result(raise_on_failure=False)
    assert isinstance(error, LeaseLost)
    assert "a station or another production works on this home" in str(error)
    assert "p3s down" in str(error)
    assert batch.rows(select(schema.arrival)) == []


def test_other_bytes_for_a_unit_are_kept_out(dask_address: str, tmp_path: Path) -> None:
    """P2: a file that brings other content for a unit is a conflict, told at the end; the first one stays."""
    batch = Batch.of(tmp_path / "home", {0: "a"})
    produce(batch, dask_address)
    other = tmp_path / "elsewhere" / batch.file(0).name
    other.parent.mkdir()
    other.write_text("b\n")
    ended = produce(batch, dask_address, files=[str(other)])
    assert ended.state.is_failed()
    assert "1 files were kept out" in ended.state.message
    assert batch.dataset("made", UNIT.format(0)) == "a\n"
