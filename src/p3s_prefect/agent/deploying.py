"""What a site has in Prefect is brought to what its files say: twice does no more than once.

What people set in Prefect and files do not name is left alone: a pause, a disabled trigger, a pool's template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect.client.orchestration import SyncPrefectClient

from p3s_prefect.adapters.home import Home
from p3s_prefect.agent.deployed_blocks import apply_blocks
from p3s_prefect.agent.deployed_flows import apply_flow
from p3s_prefect.agent.deployed_pools import apply_pool
from p3s_prefect.agent.deployed_server import DeployedServer
from p3s_prefect.core.deployment import Applied, Deployment, Overlay
from p3s_prefect.core.experiment import Experiment


def deploy(
    client: SyncPrefectClient,
    home: Home,
    experiment: Experiment,
    overlay: Overlay,
    deployments: Sequence[Deployment],
    *,
    dry_run: bool = False,
) -> Iterator[Applied]:
    """Brings pools, queues, blocks and deployments to what is declared, and tells each as it is done.

    Args:
        client: of the Prefect server.
        home: of the experiment.
        experiment: names the classes, and what the blocks hold.
        overlay: the pools, and what differs from the experiment file.
        deployments: as they are at the site, see `core.deployment.overlaid`.
        dry_run: look, and tell what would be done.

    Raises:
        ServiceError: something cannot be made as it is declared; what was told before is done.
        httpx.HTTPError: the server cannot be reached, or refuses.
    """
    server = DeployedServer(client, dry_run=dry_run)
    for name, pool in overlay.pools.items():
        yield from apply_pool(server, name, pool, experiment)
    yield from apply_blocks(home, experiment, overlay, dry_run=dry_run)
    for deployment in deployments:
        yield apply_flow(server, deployment)
