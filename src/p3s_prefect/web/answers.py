"""JSON for programs. Every answer is a mapping; times are UTC in seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse

from p3s_prefect.adapters.ledger import overrides, result_views, views
from p3s_prefect.adapters.ledger.archiving import archives_of
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.health import HealthRow, StationFacts, Status, overall, station_rows
from p3s_prefect.core.views import plain
from p3s_prefect.web.face import Face, checked_filters, face_of, page, whole


async def healthz(request: Request) -> JSONResponse:
    """Whether data are processed: 200, or 503 where something is down. Why, is told to those who may look."""
    face = face_of(request)
    facts = face.facts()
    rows = await face.look(lambda connection: face.health(connection, facts), station_rows)
    status = overall(rows)
    code = 503 if status is Status.DOWN else 200
    told: dict[str, Any] = {"status": status}
    if request.scope["p3s_known"]:
        told["rows"] = _plain(rows)
    return JSONResponse(told, code)


async def status(request: Request) -> JSONResponse:
    """The station's facts, its health rows and the account."""
    face = face_of(request)
    facts = face.facts()

    def read(connection: Connection) -> dict[str, Any]:
        stages, sub_jobs = face.account(connection)
        return _told(face, facts, face.health(connection, facts)) | {
            "overrides": [one.shown() for one in overrides.in_force(connection, facts.at)],
            "account": _plain(stages),
            "sub_jobs": _plain(sub_jobs),
        }

    def without_ledger(found: StationFacts) -> dict[str, Any]:
        return _told(face, found, station_rows(found)) | {"overrides": [], "account": [], "sub_jobs": []}

    return JSONResponse(await face.look(read, without_ledger))


def _told(face: Face, facts: StationFacts, rows: tuple[HealthRow, ...]) -> dict[str, Any]:
    return {
        "experiment": face.experiment.experiment,
        "instrument": face.experiment.instrument.name,
        "station": plain(facts),
        "status": overall(rows),
        "health": _plain(rows),
    }


async def units(request: Request) -> JSONResponse:
    """Units, newest first; ``state``, ``pipeline``, ``group``, ``limit``, and ``before`` for the next page."""
    rows = await face_of(request).read(views.units, **await checked_filters(request))
    return JSONResponse({"units": _plain(rows), "before": rows[-1].id if rows else None})


async def unit(request: Request) -> JSONResponse:
    """One unit in full."""
    found = await face_of(request).read(result_views.unit, **named_unit(request))
    archives = await face_of(request).read(archives_of, found.unit.data_id)
    return JSONResponse(plain(found) | {"archives": archives})


async def groups(request: Request) -> JSONResponse:
    """Groups with the coverage of their passes, newest first."""
    rows = await face_of(request).read(views.groups, **page(request))
    return JSONResponse({"groups": _plain(rows), "before": rows[-1].id if rows else None})


async def group(request: Request) -> JSONResponse:
    """One group, with its own products, and its units' summary values as values of all of them."""
    face = face_of(request)
    data_id = str(DataId.parse(request.path_params["data_id"]))

    def read(connection: Connection) -> dict[str, Any]:
        found = result_views.group(connection, data_id)
        archives = archives_of(connection, data_id)
        values = () if archives else face.group_values(connection, data_id)
        products = result_views.group_products(connection, data_id)
        return {
            "group": plain(found),
            "products": _plain(products),
            "values": _plain(values),
            "archives": archives,
        }

    return JSONResponse(await face.read(read))


async def products(request: Request) -> JSONResponse:
    """The latest product of each kind, as the first page shows them; an ``id`` is that of ``/api/products/<id>``."""
    return JSONResponse({"products": _plain(await face_of(request).read(result_views.latest_products))})


async def trends(request: Request) -> JSONResponse:
    """Summary values over the latest units, with the probability of each unit and the value of all."""
    return JSONResponse({"trends": _plain(await face_of(request).read(result_views.trends))})


async def arrivals(request: Request) -> JSONResponse:
    """Files that were seen, newest first; ``?verdict=refused`` (several times) selects."""
    chosen = request.query_params.getlist("verdict") or None
    views.check_verdicts(chosen or ())
    rows = await face_of(request).read(views.arrivals, verdicts=chosen, **page(request))
    return JSONResponse({"arrivals": _plain(rows), "before": rows[-1].id if rows else None})


async def journal(request: Request) -> JSONResponse:
    """Lines of the journal, newest first; ``subject`` selects."""
    subject = request.query_params.get("subject")
    rows = await face_of(request).read(views.journal_rows, subject=subject, **page(request))
    return JSONResponse({"journal": _plain(rows), "before": rows[-1].number if rows else None})


async def account(request: Request) -> JSONResponse:
    """The account (P7), counted now; ``pipeline`` and ``group`` select."""
    chosen = {name: request.query_params.get(name) for name in ("pipeline", "group")}
    await checked_filters(request)

    def read(connection: Connection) -> dict[str, Any]:
        stages = views.account(connection, **chosen)
        return {"account": _plain(stages), "sub_jobs": _plain(views.sub_job_account(connection, **chosen))}

    return JSONResponse(await face_of(request).read(read))


def named_unit(request: Request) -> dict[str, Any]:
    """The unit that an address names, as keyword arguments of `result_views.unit`.

    Raises:
        BadName: the address names none.
    """
    parts = request.path_params
    return {
        "data_id": str(DataId.parse(parts["data_id"])),
        "pipeline": parts["pipeline"],
        "pass_number": whole("pass", parts["number"]),
    }


def _plain(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [plain(row) for row in rows]
