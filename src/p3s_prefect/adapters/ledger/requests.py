"""What people ask of a running station: it answers in the ledger, where the question stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import request


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question, and its answer once there is one."""

    id: int
    kind: str
    by: str
    why: str
    detail: Mapping[str, Any]
    """What exactly is asked; with the answer, also what the station gave. JSON-ready."""
    is_granted: bool | None
    """None as long as it is open."""
    answer: str
    """What was done, or why it was refused."""


def ask(
    connection: Connection,
    kind: str,
    *,
    by: str,
    why: str,
    now: float,
    detail: Mapping[str, Any] | None = None,
    once: str | None = None,
) -> int:
    """Leaves a request, and returns its number.

    Whoever may be killed and ask again gives the same word as `once`: then it is asked once.
    """
    if once is not None and (number := connection.scalar(select(request.c.id).where(request.c.once == once))):
        return int(number)
    asked = {"asked_by": by, "why": why, "asked_at": now, "detail": dict(detail or {}), "once": once}
    return int(add(connection, request, kind=kind, **asked))


def open_requests(connection: Connection, kinds: Collection[str] = ()) -> tuple[Request, ...]:
    """What has no answer yet, the oldest first; only of these kinds if some are named."""
    return tuple(_record(row) for row in connection.execute(_OPEN) if not kinds or row.kind in kinds)


def look_up(connection: Connection, number: int) -> Request:
    """A request as it stands now."""
    return _record(connection.execute(select(request).where(request.c.id == number)).one())


def was_granted(connection: Connection, begins: str) -> bool:
    """Whether one was granted whose `once` begins so."""
    of_it = (request.c.once.startswith(begins, autoescape=True), request.c.is_granted)
    return connection.scalar(select(request.c.id).where(*of_it).limit(1)) is not None


def answer(
    connection: Connection,
    asked: Request,
    *,
    is_granted: bool,
    text: str,
    now: float,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Answers a request; who has withdrawn it meanwhile is not answered any more. `given` is added to its detail."""
    answered = connection.execute(
        update(request)
        .where(request.c.id == asked.id, request.c.answered_at.is_(None))
        .values(answered_at=now, is_granted=is_granted, answer=text, detail={**asked.detail, **(given or {})})
    )
    if answered.rowcount:
        what = "granted" if is_granted else "refused"
        told = {"why": asked.why} if asked.why else {}
        # About the data where it names some, so that it stands in their own journal.
        subject = asked.detail.get("group", "station")
        journal.write(connection, now, f"{asked.kind}.{what}", subject, by=asked.by, **told, answer=text)


_OPEN = select(request).where(request.c.answered_at.is_(None)).order_by(request.c.id)


def _record(row: Row[Any]) -> Request:
    return Request(
        id=row.id,
        kind=row.kind,
        by=row.asked_by,
        why=row.why,
        detail=row.detail or {},
        is_granted=row.is_granted,
        answer=row.answer or "",
    )
