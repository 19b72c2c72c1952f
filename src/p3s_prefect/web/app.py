"""The station's HTTP face: pages for people, JSON for programs, live events for both. It only shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import StationFacts
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.web import answers, objects, pages
from p3s_prefect.web.access import Guard
from p3s_prefect.web.face import Face
from p3s_prefect.web.hints import notices
from p3s_prefect.web.live import events as live_events
from p3s_prefect.web.messages import on_defect, on_http_error, on_p3s_error

_STATIC = Path(__file__).parent / "static"


def create_app(
    *,
    experiment: Experiment,
    ledger: Ledger,
    store: ObjectStore,
    facts: Callable[[], StationFacts],
    events: Callable[[], AsyncIterator[dict[str, Any]]],
    hint: Callable[[Sequence[Notice]], int],
    token: str | None,
) -> Starlette:
    """The ASGI application.

    `facts` is called on the event loop, at each request, and must not block. `events` gives each listener an iterator
    of JSON-ready events, which ends when the station stops. `hint` takes what a bucket's server has sent, and
    says how much of it concerns a stream. Without a `token` only names of this machine are answered.
    """
    app = Starlette(
        routes=_routes(),
        middleware=[Middleware(Guard, token=token, name=experiment.experiment)],
        exception_handlers={P3sError: on_p3s_error, HTTPException: on_http_error, Exception: on_defect},
    )
    app.state.face = Face(experiment=experiment, ledger=ledger, store=store, facts=facts, events=events, hint=hint)
    return app


def _routes() -> list[Route | Mount]:
    unit = "{pipeline}/{number}/{data_id:path}"
    return [
        Route("/", pages.overview),
        Route(f"/units/{unit}", pages.unit),
        Route("/groups/{data_id:path}", pages.group),
        Route("/healthz", answers.healthz),
        Route("/api/status", answers.status),
        Route("/api/units", answers.units),
        Route(f"/api/units/{unit}", answers.unit),
        Route("/api/groups", answers.groups),
        Route("/api/groups/{data_id:path}", answers.group),
        Route("/api/trends", answers.trends),
        Route("/api/arrivals", answers.arrivals),
        Route("/api/journal", answers.journal),
        Route("/api/account", answers.account),
        Route("/api/notices", notices, methods=["POST"]),
        Route("/api/events", live_events),
        Route("/api/products", answers.products),
        Route("/api/products/{product_id}", objects.product),
        Route("/api/logs/{attempt_id}", objects.log),
        # In an editable installation these files are links.
        Mount("/static", StaticFiles(directory=_STATIC, follow_symlink=True)),
    ]
