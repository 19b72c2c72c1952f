"""Where a pilot's files are, and that they go with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import distributed
import pytest

from p3s_prefect.adapters.pilot import worker

_PRINTS_WHERE = """
from p3s_prefect.adapters.pilot.worker import stage_runner
scratch = stage_runner()._scratch
assert scratch.is_dir()
(scratch / "left").write_text("left")
print(scratch)
"""


def test_outside_dask_the_files_go_with_the_process(tmp_path: Path) -> None:
    """P12: nothing is left in the directory of temporary files."""
    command = [sys.executable, "-c", _PRINTS_WHERE]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env={"TMPDIR": str(tmp_path)})
    assert Path(said.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sockets
def test_a_task_of_dask_works_below_the_directory_of_its_worker(tmp_path: Path) -> None:
    """P12: on the plain road too, where no plugin has made the worker a pilot."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        scratch = client.submit(worker._scratch).result(timeout=30)
        assert tmp_path in scratch.parents
        assert scratch.is_dir()
    assert not scratch.exists()
