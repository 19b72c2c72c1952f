"""The plain road on a real Slurm, through dask-jobqueue."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import Batch, expected_checksums, when
from slurm_site import SlurmSite, needs_slurm
from test_produce import UNIT, produce

pytestmark = pytest.mark.sockets


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmSite]:
    """A site with one node."""
    needs_slurm()
    path = tmp_path / "slurm"
    path.mkdir(mode=0o755)
    site = SlurmSite(path)
    monkeypatch.setenv("SLURM_CONF", str(site.conf))
    site.start()
    yield site
    site.close()


def test_slurm_by_configuration_alone(prefect_api: str, slurm: SlurmSite, tmp_path: Path) -> None:
    """S5, B9, P12: jobs are submitted, one that is cancelled is replaced, what it took with it runs in the next."""
    batch = Batch.of(tmp_path / "home", {0: "stuck", 1: "a"})
    cancelled: list[str] = []

    def cancel() -> None:
        cancelled.extend(slurm.jobs())
        slurm.ask("scancel", *cancelled)

    with when(lambda: batch.hangs, cancel):
        ended = produce(
            batch,
            None,
            cluster_class="dask_jobqueue.SLURMCluster",
            cluster_kwargs={
                "cores": 1,
                "processes": 1,
                "memory": "500MB",
                "walltime": "00:10:00",
                "interface": "lo",
                "local_directory": str(tmp_path),
                "log_directory": str(tmp_path / "logs"),
                "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
            },
            adapt_kwargs={"minimum_jobs": 1, "maximum_jobs": 1},
        )
    assert ended.state.is_completed(), ended.state
    assert len(cancelled) == 1
    assert batch.attempts("quick", UNIT.format(0)) == ["lost", "done"]
    # By the same rule as on a local cluster, at an address and from a work pool.
    assert batch.checksums() == expected_checksums({0: "stuck", 1: "a"})
    until = time.monotonic() + 60
    while slurm.jobs():
        assert time.monotonic() < until, "jobs outlive their flow"
        time.sleep(0.1)
