"""A stage run as a Prefect task: its names, retries, limit and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import Task

from p3s_prefect.adapters.ledger.database import Lease
from p3s_prefect.blocks import CentralStore
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.station.production import Production, StageWork
from p3s_prefect.tasks.stages import as_task, result_key


def _work(**fields: Any) -> StageWork:
    known: dict[str, Any] = {
        "stage_run_id": 1,
        "sub_job_id": 1,
        "pass_id": 1,
        "data_id": "run=1 subrun=2",
        "pipeline": "dqm",
        "stage": "quick",
        "per": "unit",
        "collection": "Cam/dqm/20260101/abc/pass1",
        "is_done": False,
        "after": (),
        "after_all": (),
    }
    return StageWork(**(known | fields))


def _task(tmp_path: Path, work: StageWork, **stage: Any) -> Task[..., Any]:
    step = {"name": "s", "command": ["true"], "timeout_s": 5}
    experiment = Experiment.model_validate(
        {
            "experiment": "test",
            "instrument": {"name": "Cam", "dimensions": {"run": "int", "subrun": "int"}, "group": ["run"]},
            "dataset_types": {"raw": {"format": "text"}},
            "pipelines": {"dqm": {"stages": {"quick": {"steps": [step, step | {"name": "t"}], **stage}}}},
            "streams": {
                "s": {"directory": "i", "pattern": "x", "dataset_type": "raw", "rules": [{"pipelines": ["dqm"]}]}
            },
        }
    )
    store = CentralStore(directory=str(tmp_path))
    store._block_document_id = uuid4()
    lease = Lease(namespace="test", holder="h", token=1)
    return as_task(Production(home=tmp_path, experiment=experiment, lease=lease), work, store)


def test_a_task_is_named_by_stage_and_unit(tmp_path: Path) -> None:
    """S2: so they are found in Prefect's pages."""
    task = _task(tmp_path, _work())
    assert (task.name, task.task_run_name) == ("dqm/quick", "quick run=1 subrun=2")


def test_retries_and_delays_are_those_of_the_stage(tmp_path: Path) -> None:
    """S2: the delays double up to 64 times; Prefect takes at most 50 of them."""
    task = _task(tmp_path, _work(), retries=60, backoff_s=0.5)
    assert task.retries == 60
    assert isinstance(task.retry_delay_seconds, list)
    assert task.retry_delay_seconds[:8] == [0.5, 1, 2, 4, 8, 16, 32, 32]
    assert len(task.retry_delay_seconds) == 50


def test_prefects_limit_stands_behind_that_of_the_stage_runner(tmp_path: Path) -> None:
    """V18: 10 s behind what the steps may take together."""
    assert _task(tmp_path, _work()).timeout_seconds == 20


@pytest.mark.parametrize("is_done", [True, False])
def test_only_what_the_ledger_has_may_come_from_the_cache(tmp_path: Path, is_done: bool) -> None:
    """S2: the books decide, not what Prefect has kept."""
    assert _task(tmp_path, _work(is_done=is_done)).refresh_cache is not is_done


def test_the_key_is_made_of_collection_pass_data_id_and_stage() -> None:
    """V23: another configuration, day or pass has another key, as it has another collection."""
    key = result_key(None, {"work": _work()})  # type: ignore[arg-type]
    assert key == "Cam/dqm/20260101/abc/pass1/run=1/subrun=2/quick.json"
