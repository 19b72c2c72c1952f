"""A station's face over a ledger with rows, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faces import Browser, NewFace
from ledger_rows import StoredBytes, facts
from starlette.applications import Starlette

from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.health import StationFacts
from p3s_prefect.core.notices import Notice
from p3s_prefect.web.app import create_app

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"


async def _silence() -> AsyncIterator[dict[str, Any]]:
    await asyncio.Event().wait()
    yield {}


@pytest.fixture
def new_face(seen_ledger: Ledger, stored: StoredBytes) -> NewFace:
    """Makes the application, with another token, events or facts."""
    experiment = parse_experiment(_EXPERIMENT.read_text(), file=str(_EXPERIMENT), environment={})

    def make(
        *,
        token: str | None = None,
        events: Callable[[], AsyncIterator[dict[str, Any]]] = _silence,
        told: Callable[[], StationFacts] = facts,
        hint: Callable[[Sequence[Notice]], int] = len,
    ) -> Starlette:
        return create_app(
            experiment=experiment,
            ledger=seen_ledger,
            store=stored,  # type: ignore[arg-type]  # reading is all that pages do
            facts=told,
            events=events,
            hint=hint,
            token=token,
        )

    return make


@pytest.fixture
def client(new_face: NewFace) -> Browser:
    """A browser on the station's machine."""
    return Browser(new_face())
