"""`p3s agent`: recording in Prefect what happens."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.prefect_server import prefect_api
from p3s_prefect.adapters.supervision import COMPLAINED, may_come_back
from p3s_prefect.cli.options import HomeOption
from p3s_prefect.core.errors import P3sError, ServiceError


def agent(
    home: HomeOption = Path(),
    pool: Annotated[
        str | None,
        typer.Option(help="A work pool in Prefect, of type p3s; made if absent. Default: that of the experiment file."),
    ] = None,
) -> None:
    """Run the agent in the foreground; `p3s up` does this for you.

    It records in Prefect what the station does, follows what people do there, and runs the flow `process`. The server
    is that of PREFECT_API_URL, or else the one that the experiment file names, or that `p3s up` started.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    at = Home(home)
    try:
        _use_server(at)
        # Imported here: Prefect takes some seconds, and reads its settings then.
        from p3s_prefect.agent.service import serve

        asyncio.run(serve(at, pool))
    except P3sError as error:
        logging.getLogger("p3s").error("%s", error)
        raise typer.Exit(1 if may_come_back(error) else COMPLAINED) from error


def _use_server(home: Home) -> None:
    if "PREFECT_API_URL" not in os.environ:
        api = prefect_api(home, home.in_force())
        if api is None:
            raise ServiceError(
                "this home has no Prefect server", fix="Start it with `p3s up`, or set PREFECT_API_URL to one."
            )
        os.environ["PREFECT_API_URL"] = api
