"""Pages for people."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import HTMLResponse

from p3s_prefect.adapters.ledger import result_views, views
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.health import overall
from p3s_prefect.core.views import AccountRow, ProductRow
from p3s_prefect.web.answers import named_unit
from p3s_prefect.web.face import Face, face_of, unit_filters
from p3s_prefect.web.render import render

UNITS_SHOWN = 25
GROUPS_SHOWN = 10
KEPT_OUT_SHOWN = 10


async def overview(request: Request) -> HTMLResponse:
    """The first page: pictures, health, units, groups, account, files that were kept out."""
    face = face_of(request)
    facts = face.facts()
    filters = {"limit": UNITS_SHOWN} | unit_filters(request)

    def read(connection: Connection) -> dict[str, Any]:
        health = face.health(connection, facts)
        stages, sub_jobs = face.account(connection)
        return {
            "facts": facts,
            "health": health,
            "overall": overall(health),
            "gallery": gallery(result_views.latest_products(connection)),
            "trends": result_views.trends(connection),
            "units": views.units(connection, **filters),
            "groups": views.groups(connection, limit=GROUPS_SHOWN),
            "account": stages,
            "sub_jobs": sub_jobs,
            "states": _states(sub_jobs),
            "kept_out": views.arrivals(connection, verdicts=views.KEPT_OUT, limit=KEPT_OUT_SHOWN),
        }

    return _page(face, "overview.html", facts.at, filters=filters, **await face.read(read))


async def unit(request: Request) -> HTMLResponse:
    """One unit in full."""
    face = face_of(request)
    at = face.facts().at
    found = await face.read(result_views.unit, **named_unit(request))
    return _page(face, "unit.html", at, found=found, gallery=gallery(found.products))


async def group(request: Request) -> HTMLResponse:
    """One group: its own products, coverage, account and units."""
    face = face_of(request)
    at = face.facts().at
    data_id = str(DataId.parse(request.path_params["data_id"]))
    filters = {"limit": UNITS_SHOWN} | unit_filters(request) | {"group": data_id}

    def read(connection: Connection) -> dict[str, Any]:
        return {
            "found": result_views.group(connection, data_id),
            "gallery": gallery(result_views.group_products(connection, data_id)),
            "units": views.units(connection, **filters),
            "account": views.account(connection, group=data_id),
            "sub_jobs": views.sub_job_account(connection, group=data_id),
        }

    return _page(face, "group.html", at, filters=filters, **await face.read(read))


def gallery(products: Iterable[ProductRow]) -> list[tuple[str, list[ProductRow]]]:
    """Products under their categories; a category stands where its first product does."""
    rows = list(products)
    order = {category: index for index, category in reversed(list(enumerate(row.category for row in rows)))}
    rows.sort(key=lambda row: order[row.category])
    return [(category, list(found)) for category, found in groupby(rows, key=lambda row: row.category)]


def _states(accounts: Iterable[AccountRow]) -> dict[str, int]:
    """How many sub-jobs there are in each state, over all pipelines; only states that occur."""
    names = ("open", "done", "failed", "expired", "shed", "blocked", "prescaled", "superseded", "cancelled")
    rows = list(accounts)
    counts = {name: sum(getattr(row, name) for row in rows) for name in names}
    return {name: count for name, count in counts.items() if count}


def _page(face: Face, template: str, now: float, **context: Any) -> HTMLResponse:
    experiment = face.experiment
    noun = " ".join(experiment.instrument.group)
    return HTMLResponse(
        render(
            template,
            now=now,
            experiment=experiment.experiment,
            instrument=experiment.instrument.name,
            group_noun=noun,
            pipelines=len(experiment.pipelines),
            **context,
        )
    )
