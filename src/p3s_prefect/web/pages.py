"""Pages for people."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import HTMLResponse

from p3s_prefect.adapters.ledger import overrides, result_views, views
from p3s_prefect.adapters.ledger.archiving import archives_of
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.health import overall
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.states import SubJobState
from p3s_prefect.core.targets import acting_on
from p3s_prefect.core.views import AccountRow, GroupRow, ProductRow, Trend, UnitRow
from p3s_prefect.web.answers import named_unit
from p3s_prefect.web.face import Face, checked_filters, face_of
from p3s_prefect.web.render import render

UNITS_SHOWN = 25
GROUPS_SHOWN = 10
KEPT_OUT_SHOWN = 10


async def overview(request: Request) -> HTMLResponse:
    """The first page: pictures, health, units, groups, account, files that were kept out."""
    face = face_of(request)
    facts = face.facts()
    filters = {"limit": UNITS_SHOWN} | await checked_filters(request)

    def read(connection: Connection) -> dict[str, Any]:
        health = face.health(connection, facts)
        stages, sub_jobs = face.account(connection)
        return {
            "facts": facts,
            "health": health,
            "overall": overall(health),
            "gallery": gallery(result_views.latest_products(connection)),
            "trends": sections(result_views.trends(connection), face),
            "units": face.explained(connection, views.units(connection, **filters), facts.at),
            "overrides": overrides.in_force(connection, facts.at),
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
    archives = await face.read(archives_of, found.unit.data_id)
    acting = acting_on(found.unit, face.experiment, Controls(await face.read(overrides.in_force, at)))
    return _page(
        face, "unit.html", at, found=found, gallery=gallery(found.products), overrides=acting, archives=archives
    )


async def group(request: Request) -> HTMLResponse:
    """One group: its own products, coverage, account and units."""
    face = face_of(request)
    at = face.facts().at
    data_id = str(DataId.parse(request.path_params["data_id"]))
    filters = {"limit": UNITS_SHOWN} | await checked_filters(request) | {"group": data_id}

    def read(connection: Connection) -> dict[str, Any]:
        found = result_views.group(connection, data_id)
        archives = archives_of(connection, data_id)
        return {
            "found": found,
            "archives": archives,
            "no_pictures": why_no_pictures(found, result_views.group_work(connection, data_id), _group_noun(face)),
            "gallery": gallery(result_views.group_products(connection, data_id)),
            # Of some units alone they would say nothing of the whole.
            "values": () if archives else face.group_values(connection, data_id),
            "units": face.explained(connection, views.units(connection, **filters), at),
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


def sections(trends: Iterable[Trend], face: Face) -> list[tuple[str, list[Trend]]]:
    """Trends under headings that say what they are values of: first of each unit, then of each group."""
    instrument, many = face.experiment.instrument, len(face.experiment.pipelines) > 1
    own = [name for name in instrument.dimensions if name not in instrument.group]
    nouns = {"unit": " ".join(own or instrument.dimensions), "group": _group_noun(face)}
    found: dict[tuple[bool, str], list[Trend]] = {}
    for trend in trends:
        pipeline = f"{trend.pipeline}, " if many else ""
        heading = f"Each {nouns[trend.per]} ({pipeline}{trend.stage})"
        found.setdefault((trend.per == "group", heading), []).append(trend)
    return [(heading, rows) for (_, heading), rows in sorted(found.items(), key=lambda item: item[0])]


def why_no_pictures(found: GroupRow, work: Iterable[UnitRow], noun: str) -> str:
    """Why a group's page has no pictures of the whole; `work` are the sub-jobs of its own stages."""
    whole = f"No pictures of the whole {noun}"
    if found.is_open:
        return f"{whole} yet: they are made when it has closed."
    rows, waits_for = list(work), sum(row.open for row in found.coverage)
    if any(row.settled_at is None for row in rows):
        units = f"{waits_for} open unit{'' if waits_for == 1 else 's'}"
        return f"{whole} yet: its totals {f'wait for {units}' if waits_for else 'are being made'}."
    lost = next((row for row in rows if row.state != SubJobState.DONE), None)
    if lost is not None:
        ended = lost.state if lost.state in (SubJobState.FAILED, SubJobState.EXPIRED) else f"were {lost.state}"
        return f"{whole}: its totals {ended}{f' because of this: {lost.reason}' if lost.reason else ''}."
    return f"{whole}: " + ("its totals made none." if rows else "no stage works on the whole.")


def _group_noun(face: Face) -> str:
    return " ".join(face.experiment.instrument.group)


def _states(accounts: Iterable[AccountRow]) -> dict[str, int]:
    """How many sub-jobs there are in each state, over all pipelines; only states that occur."""
    names = ("open", "done", "failed", "expired", "shed", "blocked", "prescaled", "superseded", "cancelled")
    rows = list(accounts)
    counts = {name: sum(getattr(row, name) for row in rows) for name in names}
    return {name: count for name, count in counts.items() if count}


def _page(face: Face, template: str, now: float, **context: Any) -> HTMLResponse:
    experiment = face.experiment
    return HTMLResponse(
        render(
            template,
            now=now,
            experiment=experiment.experiment,
            instrument=experiment.instrument.name,
            group_noun=_group_noun(face),
            pipelines=len(experiment.pipelines),
            **context,
        )
    )
