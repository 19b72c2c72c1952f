"""What a report is about: a group or a period, and how it is said."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.experiment import Instrument
from p3s_prefect.core.quantities import read_duration

DEFAULT_PERIOD_S = 86_400.0
_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a report is about: the sub-jobs that agree with all that is given."""

    group: str | None = None
    """Data id of a group, such as ``run=2008``."""
    since: float | None = None
    """Arrived at this moment or later (UTC, seconds since 1970)."""
    until: float | None = None
    """Arrived before this moment."""
    day: str | None = None
    """Processing day of the group, ``YYYYMMDD``."""
    pipeline: str | None = None
    by: str | None = None
    """A dimension: one row for each of its values."""

    def __post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise BadName(
                f"the period from {utc(self.since)} to {utc(self.until)} is empty",
                fix="Give an end (--until) that is later than the beginning (--since).",
            )

    def __str__(self) -> str:
        told = [self.group or "", f"day {self.day}" if self.day else "", self._period, self.pipeline or ""]
        return ", ".join(word for word in told if word) or "everything"

    @property
    def _period(self) -> str:
        if self.since is None and self.until is None:
            return ""
        since = f" from {utc(self.since)}" if self.since is not None else ""
        until = f" until {utc(self.until)}" if self.until is not None else ""
        return f"what arrived{since}{until}"


def scope(
    instrument: Instrument,
    group: DataId | str | None = None,
    *,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    day: str | None = None,
    pipeline: str | None = None,
    by: str | None = None,
    now: float,
) -> Scope:
    """The scope that these words mean; where neither a group nor a time is given, the last 24 h.

    Raises:
        BadName: no such dimension, not a group, no time, no day, or a period that ends before it begins.
    """
    begins = None if since is None else moment(since, now)
    if (group, since, until, day) == (None, None, None, None):
        begins = now - DEFAULT_PERIOD_S
    if by is not None and by not in instrument.dimensions:
        raise BadName(f"there is no dimension {by[:120]!r}", fix=f"Give one of: {', '.join(instrument.dimensions)}.")
    return Scope(
        group=None if group is None else _group(instrument, group),
        since=begins,
        until=None if until is None else moment(until, now),
        day=None if day is None else processing_day(day),
        pipeline=pipeline,
        by=by,
    )


def moment(text: datetime | str, now: float) -> float:
    """A time as people write it, in seconds since 1970: ISO 8601, in UTC if it names no zone, or so long ago: ``6h``.

    Raises:
        BadName: it is none.
    """
    if isinstance(text, str):
        with suppress(BadName):
            return now - read_duration(text)
    try:
        at = datetime.fromisoformat(text.strip()) if isinstance(text, str) else text
        # Dates whose moment no float64 or no calendar holds, such as the first hour of year 1 east of Greenwich.
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise BadName(
            f"{str(text)[:60]!r} is no time",
            fix="Write 2026-10-20, 2026-10-20T18:30 (UTC), 2026-10-20T18:30-03:00, or 6h or 15min for so long ago.",
        ) from error


def processing_day(text: str) -> str:
    """A day as people write it, ``2026-10-20`` or ``20261020``, in the latter form.

    Raises:
        BadName: it is none.
    """
    found = _DAY.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError(text)
        return f"{datetime(*(int(part) for part in found.groups()), tzinfo=UTC):%Y%m%d}"  # type: ignore[misc, arg-type]
    except ValueError as error:
        raise BadName(f"{text[:60]!r} is no day", fix="Write 2026-10-20 or 20261020.") from error


def utc(at: float) -> str:
    """A moment for people: ``2026-10-20 18:30:05 UTC``; to the second."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=math.floor(at)):%Y-%m-%d %H:%M:%S} UTC"


def shown_share(value: float | None) -> str:
    """A share for people; only all is 100 %, and only none is 0 %."""
    if value is None:
        return ""
    shown = f"{100 * value:.1f}"
    if (shown == "100.0" and value < 1) or (shown == "0.0" and value > 0):
        return "> 99.9 %" if value > 0.5 else "< 0.1 %"
    return f"{shown.removesuffix('.0')} %"


def part_order(part: str | None) -> tuple[int, int, str]:
    """Sorts the values of a dimension as a person would: those without one first, numbers by size, then texts."""
    if part is None:
        return (0, 0, "")
    return (1, int(part), "") if part.isascii() and part.isdigit() else (2, 0, part)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of sorted values lies, interpolated linearly between neighbours.

    Type 7 of Hyndman & Fan, The American Statistician 50 (1996) 361, which is numpy's and pandas' too.
    """
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _group(instrument: Instrument, name: DataId | str) -> str:
    asked = DataId.parse(name) if isinstance(name, str) else name
    data_id = asked.ordered(list(instrument.dimensions))
    if list(data_id.dimensions) != instrument.group:
        example = " ".join(f"{dimension}=..." for dimension in instrument.group)
        raise BadName(
            f"{data_id} does not name a group",
            fix=f"Give {example}; --by splits it by another dimension, and `p3s show` tells all about one unit.",
        )
    return str(data_id)
