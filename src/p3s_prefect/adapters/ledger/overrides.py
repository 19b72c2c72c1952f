"""What people set by command, in the ledger: it counts from its transaction on, whether a station runs or not (S9)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, or_, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import data_group, override, sub_job
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.overrides import STOPPING, Override, OverrideKind, Target

_COLUMNS = ("work_class", "pipeline", "stage", "data_group", "unit")


def in_force(connection: Connection, now: float | None = None) -> tuple[Override, ...]:
    """All that were neither cleared nor replaced, in the order in which they were given.

    With `now`, without those whose time has passed; those, a station ends (see `expire`).
    """
    found = (_record(row) for row in connection.execute(_IN_FORCE))
    return tuple(one for one in found if now is None or not one.is_over(now))


def ids_in_force(connection: Connection) -> tuple[int, ...]:
    """The numbers of what `in_force` finds: they differ after every change, and cost next to nothing to ask for."""
    return tuple(connection.scalars(_IDS_IN_FORCE))


def stops_since(connection: Connection, since: float) -> tuple[tuple[Override, float | None], ...]:
    """What has let things not start at some time after `since`, oldest first, with the time at which it ended."""
    stops = or_(override.c.kind.in_(STOPPING), (override.c.kind == OverrideKind.LIMIT) & (override.c.value == 0))
    was_there = or_(override.c.ended_at.is_(None), override.c.ended_at > since)
    rows = connection.execute(select(override).where(stops, was_there).order_by(override.c.id))
    return tuple((_record(row), row.expires_at if row.ended_at is None else row.ended_at) for row in rows)


def set_override(
    connection: Connection,
    *,
    kind: OverrideKind,
    target: Target,
    by: str,
    why: str,
    now: float,
    value: int | None = None,
    expires_at: float | None = None,
) -> Override:
    """Puts an override in force, in place of one of the same kind and target.

    Raises:
        BadName: the value does not fit the kind, or a limit is not that of a class or a pipeline.
    """
    given = {"kind": kind, "target": target, "value": value, "by": by, "why": why, "set_at": now}
    Override(id=0, **given, expires_at=expires_at)  # type: ignore[arg-type]  # refuses what does not fit
    _end(connection, _matching([kind], target), now)
    number = add(
        connection,
        override,
        kind=kind,
        **_columns(target),
        value=value,
        given_by=by,
        why=why,
        set_at=now,
        expires_at=expires_at,
    )
    made = Override(id=number, **given, expires_at=expires_at)  # type: ignore[arg-type]
    _tell(connection, now, "set", made, by=by, why=why, expires_at=expires_at)
    return made


def clear(
    connection: Connection, *, kinds: Iterable[OverrideKind], target: Target, by: str, why: str, now: float
) -> tuple[Override, ...]:
    """Ends the overrides of these kinds on exactly this target; returns them, none if there were none."""
    ended = _end(connection, _matching(list(kinds), target), now)
    for one in ended:
        _tell(connection, now, "cleared", one, by=by, why=why)
    return ended


def expire(connection: Connection, now: float) -> tuple[Override, ...]:
    """Ends those whose time has passed, and returns them."""
    ended = _end(connection, [override.c.expires_at <= now], now)
    for one in ended:
        _tell(connection, now, "expired", one, by=one.by, why=one.why)
    return ended


def check_data(connection: Connection, target: Target) -> None:
    """Refuses a target whose group or unit the ledger has never seen.

    Raises:
        NoSuchRecord: there is none of that name.
    """
    if target.group is not None:
        known = select(data_group.c.id).where(data_group.c.data_id == str(target.group))
        _require(connection, known, f"no group {target.group}", "`p3s list groups` shows what there is.")
    if target.unit is not None:
        known = select(sub_job.c.id).where(sub_job.c.data_id == str(target.unit), sub_job.c.per == "unit").limit(1)
        _require(connection, known, f"no unit {target.unit}", "`p3s list units` shows what there is.")


# --- inside ---------------------------------------------------------------------------------------------------------

_IDS_IN_FORCE = select(override.c.id).where(override.c.ended_at.is_(None)).order_by(override.c.id)
_IN_FORCE = select(override).where(override.c.ended_at.is_(None)).order_by(override.c.id)


def _end(connection: Connection, conditions: Iterable[ColumnElement[bool]], now: float) -> tuple[Override, ...]:
    rows = connection.execute(_IN_FORCE.where(*conditions)).all()
    if rows:
        ids = [row.id for row in rows]
        connection.execute(update(override).where(override.c.id.in_(ids)).values(ended_at=now))
    return tuple(_record(row) for row in rows)


def _matching(kinds: Collection[OverrideKind], target: Target) -> list[ColumnElement[bool]]:
    # `is_` and not `==`: what is not given must be empty in the row too.
    same = [
        override.c[name].is_(None) if value is None else override.c[name] == value
        for name, value in _columns(target).items()
    ]
    return [override.c.kind.in_(kinds), *same]


def _columns(target: Target) -> dict[str, str | None]:
    values = (target.work_class, target.pipeline, target.stage, target.group, target.unit)
    return {name: None if value is None else str(value) for name, value in zip(_COLUMNS, values, strict=True)}


def _record(row: Row[Any]) -> Override:
    target = Target(
        work_class=row.work_class,
        pipeline=row.pipeline,
        stage=row.stage,
        group=None if row.data_group is None else DataId.parse(row.data_group),
        unit=None if row.unit is None else DataId.parse(row.unit),
    )
    return Override(
        id=row.id,
        kind=OverrideKind(row.kind),
        target=target,
        value=row.value,
        by=row.given_by,
        why=row.why,
        set_at=row.set_at,
        expires_at=row.expires_at,
    )


def _tell(connection: Connection, now: float, what: str, one: Override, **detail: Any) -> None:
    told = {"override": one.id, "value": one.value, **detail}
    shown = {name: value for name, value in told.items() if value not in ("", None)}
    # About the data where it names some, so that it stands in their own journal.
    subject = one.target.unit or one.target.group or one.target
    journal.write(connection, now, f"{one.kind}.{what}", subject, target=str(one.target), **shown)


def _require(connection: Connection, query: Any, what: str, fix: str) -> None:
    if connection.scalar(query) is None:
        raise NoSuchRecord(f"this ledger has {what}", fix=fix)
