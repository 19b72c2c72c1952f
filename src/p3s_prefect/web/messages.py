"""Errors as people and programs read them: what happened, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from p3s_prefect.core.errors import (
    BadName,
    ChecksumMismatch,
    LedgerError,
    NoSuchRecord,
    ObjectMissing,
    P3sError,
    StoreError,
)
from p3s_prefect.web.render import render

# The first class that fits.
_STATUS: tuple[tuple[type[P3sError], int], ...] = (
    (BadName, 400),
    (NoSuchRecord, 404),
    (ObjectMissing, 404),
    (ChecksumMismatch, 502),
    (StoreError, 503),
    (LedgerError, 503),
)


def message(headers: Headers, status: int, what: str, fix: str, *, also: Mapping[str, str] | None = None) -> Response:
    """An error as a page for browsers, as JSON for others."""
    if "text/html" in headers.get("accept", ""):
        return HTMLResponse(render("message.html", what=what, fix=fix, status=status), status, headers=also)
    return JSONResponse({"error": what, "fix": fix}, status, headers=also)


async def on_p3s_error(request: Request, error: Exception) -> Response:
    """An error of ours."""
    assert isinstance(error, P3sError)  # noqa: S101 -- registered for this class
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    return message(request.headers, status, error.what, error.fix)


async def on_http_error(request: Request, error: Exception) -> Response:
    """No such address, or another method than GET."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for this class
    if error.status_code == 404:
        return message(request.headers, 404, "There is no such page", "Begin at the first page, /.")
    return message(request.headers, error.status_code, error.detail, "The pages only show; use `p3s` to change things.")


async def on_defect(request: Request, error: Exception) -> Response:
    """What nobody foresaw. The station's log has the traceback; a page tells nothing of its inside."""
    return message(
        request.headers,
        500,
        "This page could not be made",
        f"Data are processed all the same. Report {type(error).__name__} with the station's run/logs/station.log.",
    )
