"""A deployment for each pipeline that is recorded: with it, people find Retry at its runs, and can run it by hand.

Prefect lets nobody retry a run without a deployment. A run of this one asks the station, as the flow `process` does.
"""

from __future__ import annotations

from typing import Any

import httpx
from prefect.utilities.callables import parameter_schema

from p3s_prefect.adapters.home import Home
from p3s_prefect.agent.server import PrefectServer
from p3s_prefect.agent.worker import P3sWorker
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.flows.process import process

_ENTRYPOINT = "p3s_prefect.flows.process.process"


class RecordedFlows:
    """The deployments of one experiment, each made when its pipeline is recorded first."""

    def __init__(self, server: PrefectServer, home: Home, experiment: Experiment, pool: str) -> None:
        self._server = server
        self._home = home
        self._experiment = experiment
        self._pool = pool
        self._made: dict[str, str] = {}

    def forget(self) -> None:
        """Takes nothing for granted: it may be another server now."""
        self._made.clear()

    async def deployment(self, flow_id: str, pipeline: str) -> str:
        """The id of a pipeline's deployment.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses.
        """
        if flow_id not in self._made:
            await self._ensure_pool()
            self._made[flow_id] = (await self._server.post("/deployments/", self._wanted(flow_id, pipeline)))["id"]
        return self._made[flow_id]

    def _wanted(self, flow_id: str, pipeline: str) -> dict[str, Any]:
        found = self._experiment.pipelines.get(pipeline)
        return {
            "name": self._experiment.experiment,
            "flow_id": flow_id,
            "entrypoint": _ENTRYPOINT,
            "description": f"Asks the station to process units of a group by {pipeline}, and waits for them.",
            "tags": ["p3s", f"experiment:{self._experiment.experiment}"],
            "parameters": {"pipeline": pipeline, "home": str(self._home.path.resolve())},
            "parameter_openapi_schema": parameter_schema(process).model_dump(exclude_unset=True),
            # Runs that record have parameters of their own.
            "enforce_parameter_schema": False,
            "work_pool_name": self._pool,
            "work_queue_name": "default" if found is None else found.work_class,
            "pull_steps": [],
        }

    async def _ensure_pool(self) -> None:
        template = P3sWorker.get_default_base_job_template()
        try:
            await self._server.post(
                "/work_pools/", {"name": self._pool, "type": P3sWorker.type, "base_job_template": template}
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise
