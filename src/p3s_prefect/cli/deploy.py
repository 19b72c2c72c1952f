"""`p3s deploy`: what the site is to have in Prefect."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from p3s_prefect.adapters.deployment_files import read_deployments, read_overlay
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.prefect_server import prefect_api
from p3s_prefect.cli.options import HomeOption, JsonOption
from p3s_prefect.cli.output import console, plain_text, print_json, state, table
from p3s_prefect.core.deployment import Applied, Became, Deployment, Overlay, in_pool, overlaid
from p3s_prefect.core.errors import P3sError, ServiceError
from p3s_prefect.core.experiment import Experiment


def deploy(
    home: HomeOption = Path(),
    overlay: Annotated[
        str, typer.Option(help="Kind of site: local or slurm; or the path of a file of your own.")
    ] = "local",
    file: Annotated[
        Path | None, typer.Option(help="A prefect.yaml to use instead of the one that is installed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make in Prefect what the site needs: pools, queues, limits, blocks, deployments. Again, it changes nothing."""
    at = Home(home.resolve())
    experiment = at.read()
    declared = read_overlay(overlay)
    deployments, declared = in_pool(overlaid(read_deployments(file), declared), declared, experiment.prefect.pool)
    _use_server(prefect_api(at, experiment))
    if not as_json:
        Console(stderr=True).print("starting Prefect takes some seconds")
    done, problem = _apply(at, experiment, declared, deployments, dry_run=dry_run)
    if as_json:
        rows = [asdict(applied) | {"changes": list(applied.changes)} for applied in done]
        print_json({"ok": not problem, "problem": problem, "dry_run": dry_run, "applied": rows})
    else:
        _print(done, problem, dry_run=dry_run)
    raise typer.Exit(1 if problem else 0)


# --- inside ---------------------------------------------------------------------------------------------------------


def _apply(
    home: Home, experiment: Experiment, overlay: Overlay, deployments: Sequence[Deployment], *, dry_run: bool
) -> tuple[list[Applied], str]:
    """What was done, and what came in between; empty if nothing did."""
    # Imported here: Prefect takes some seconds, and reads its settings then.
    from prefect.client.orchestration import get_client

    from p3s_prefect.agent.deployed_blocks import site_name
    from p3s_prefect.agent.deploying import deploy

    # What prefect.yaml fills in.
    os.environ |= {"P3S_HOME": str(home.path), "P3S_SITE": site_name(experiment)}
    done: list[Applied] = []
    with get_client(sync_client=True) as client:
        try:
            for applied in deploy(client, home, experiment, overlay, deployments, dry_run=dry_run):
                done.append(applied)  # noqa: PERF402 -- what was done before a problem is told too
        except P3sError as error:
            return done, str(error)
        except httpx.HTTPError as error:
            return done, _refused(error)
    return done, ""


def _use_server(api: str | None) -> None:
    if "PREFECT_API_URL" not in os.environ:
        if api is None:
            fix = "Start it with `p3s up`, or set PREFECT_API_URL to one."
            raise ServiceError("this home has no Prefect server", fix=fix)
        os.environ["PREFECT_API_URL"] = api
    url = os.environ["PREFECT_API_URL"]
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=_ANSWERS_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fix = "`p3s up` starts the one of this home; it needs up to half a minute. PREFECT_API_URL names another."
        raise ServiceError(f"no Prefect server answers at {url}: {error}", fix=fix) from error


def _refused(error: httpx.HTTPError) -> str:
    told = error.response.text if isinstance(error, httpx.HTTPStatusError) else str(error)
    return f"Prefect refused, or went away: {told[:500]}\n  Say the same again: what is done already stays."


def _print(done: Sequence[Applied], problem: str, *, dry_run: bool) -> None:
    out = console()
    rows = [(one.kind, one.name, state(one.became), "; ".join(one.changes)) for one in done]
    out.print(table(["", "name", "", "what changed"], rows))
    counts = Counter(one.became for one in done)
    told = ", ".join(f"{counts[became]} {became}" for became in Became if counts[became]) or "nothing"
    out.print(plain_text(f"\n{'Would be: ' if dry_run else ''}{told}."))
    if problem:
        Console(stderr=True, soft_wrap=True).print(plain_text(problem), style="red")


# A server that starts answers nothing for long, and one that runs within milliseconds.
_ANSWERS_S = 10.0
