"""The flow is found by module and by path, deployed, and run by a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batches import Batch, expected_checksums

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("entrypoint", ["p3s_prefect.flows.produce.produce", f"{ROOT}/flows/produce.py:produce"])
def test_both_kinds_of_entrypoint_lead_to_the_flow(entrypoint: str) -> None:
    """S2: Prefect loads it by its module and by its file."""
    from prefect.flows import load_flow_from_entrypoint

    found = load_flow_from_entrypoint(entrypoint)
    assert found.name == "produce"
    assert {"files", "home", "address", "cluster_class"} <= set(found.parameters.properties)


def test_deployed_and_run_by_a_process_worker(prefect_api: str, tmp_path: Path) -> None:
    """S2, S5, B9: `prefect deploy`, then a run from the work pool, in a process with a local cluster of its own."""
    from prefect.client.orchestration import get_client

    batch = Batch.of(tmp_path / "home", {0: "a"})
    environment = os.environ | {"PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(tmp_path / "prefect")}

    def prefect(*arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    prefect("work-pool", "create", "production", "--type", "process")
    before = (ROOT / "prefect.yaml").read_bytes()
    prefect("deploy", "--name", "produce")
    assert (ROOT / "prefect.yaml").read_bytes() == before
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("produce/produce")
        parameters = {"files": batch.files, "home": str(batch.path)}
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        prefect("worker", "start", "--pool", "production", "--run-once")
        ended = client.read_flow_run(run.id)
    assert ended.state is not None
    assert ended.state.is_completed(), ended.state
    assert batch.checksums() == expected_checksums({0: "a"})
