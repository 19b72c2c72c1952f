"""A home, and what it is to have in Prefect, under names of its own, so that tests share a server."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p3s_prefect.adapters.deployment_files import read_deployments
from p3s_prefect.adapters.home import Home
from p3s_prefect.core.deployment import Applied, Deployment, Overlay, overlaid

TEXT = """
experiment: %s
instrument: {name: camera, dimensions: {run: int, part: int}, group: [run]}
dataset_types: {frame: {format: file}, size: {format: text}}
classes: %s
pilots: {workers: 1}
pipelines:
  quick-look:
    stages:
      size:
        steps: [{name: wc, command: [/bin/sh, -c, 'wc -c < "$P3S_INPUT_FRAME" > "$P3S_OUTPUT_SIZE"'],
                 inputs: {frame: frame}, outputs: {size: size}}]
streams:
  daq: {directory: incoming, pattern: "run{run}_{part}.dat", dataset_type: frame, rules: [{pipelines: [quick-look]}]}
"""
CLASSES = "{dqm: {priority: 10}, alerts: {priority: 100, limit: 4}}"


@dataclass(kw_only=True)
class DeployedSite:
    """One that is deployed again and again."""

    path: Path
    name: str = field(default_factory=lambda: f"s{uuid.uuid4().hex[:8]}")
    overlay: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)

    def declare(self, classes: str = CLASSES) -> None:
        """Writes its experiment file."""
        self.path.mkdir(exist_ok=True)
        (self.path / "experiment.yaml").write_text(TEXT % (self.name, classes))

    @property
    def pool(self) -> str:
        return f"{self.name}-pool"

    def parts(self) -> tuple[Overlay, tuple[Deployment, ...]]:
        """Its overlay, and its one deployment."""
        pools = {self.pool: {"type": "process", "description": "d", "queues": "classes"}}
        overlay = Overlay.model_validate({"pools": pools} | self.overlay)
        (produce,) = [one for one in read_deployments() if one.name == "produce"]
        own = produce.model_dump() | {"name": self.name, "work_pool": {"name": self.pool}, "triggers": []}
        return overlay, overlaid([Deployment.model_validate(own | self.deployment)], overlay)

    def deploy(self, **options: Any) -> list[Applied]:
        from prefect.client.orchestration import get_client

        from p3s_prefect.agent.deploying import deploy

        home = Home(self.path)
        with get_client(sync_client=True) as client:
            return list(deploy(client, home, home.read(), *self.parts(), **options))
