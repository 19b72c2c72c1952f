"""The journal in the store: numbered segments of JSON lines, so that what happened outlives the database (S10).

A segment is named by its first and last number, and how far the export is follows from the names alone: whoever goes
on, after a kill or years later, asks the store.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from p3s_prefect.adapters.ledger.agent_cursor import newest_number
from p3s_prefect.adapters.ledger.database import Lease, Ledger
from p3s_prefect.adapters.ledger.rows import add_all
from p3s_prefect.adapters.ledger.schema import journal
from p3s_prefect.core.errors import RecordUnreadable
from p3s_prefect.core.ports import ObjectStore

_PREFIX = "journal/"
# About 100 kB packed; a line has some 150 bytes.
LINES_A_SEGMENT = 10_000
_AT_ONCE = 1000
_NAME = re.compile(rf"{_PREFIX}(\d{{12}})-(\d{{12}})\.jsonl\.gz")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One object: journal lines `first` to `last`, as far as there were any."""

    key: str
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How far the journal is in the store."""

    number: int
    """Up to this number; 0 if nothing is."""
    newest: int
    """The newest line of the journal."""
    segments: int

    @property
    def behind(self) -> int:
        """How many numbers are not in the store yet."""
        return max(0, self.newest - self.number)


def segments(store: ObjectStore) -> list[Segment]:
    """All of them, in order."""
    found = ((_NAME.fullmatch(one.key), one.key) for one in store.list(_PREFIX))
    return [Segment(key=key, first=int(match[1]), last=int(match[2])) for match, key in found if match]


def exported(ledger: Ledger, store: ObjectStore) -> Exported:
    """How far it is."""
    there = segments(store)
    return Exported(number=max((one.last for one in there), default=0), newest=_newest(ledger), segments=len(there))


def export(
    ledger: Ledger,
    store: ObjectStore,
    *,
    spare_since: float | None = None,
    told: Callable[[int, int], None] = lambda number, newest: None,
) -> Exported:
    """Writes what is not in the store yet, a segment at a time.

    A segment that is not full is written too, unless its first line is younger than `spare_since` (UTC in seconds since
    1970). `told` hears up to which number it is, and of which. Two that export at once may write lines twice,
    each under its own name; their numbers tell.
    """
    state = exported(ledger, store)
    number, count = state.number, state.segments
    while (found := _next(ledger, number)).lines:
        if spare_since is not None and found.lines < LINES_A_SEGMENT and found.begun_at > spare_since:
            break
        store.put_bytes(f"{_PREFIX}{number + 1:012d}-{found.last:012d}.jsonl.gz", _packed(ledger, number, found.last))
        number, count = found.last, count + 1
        told(number, max(number, state.newest))
    return Exported(number=number, newest=max(number, state.newest), segments=count)


def import_missing(ledger: Ledger, store: ObjectStore, lease: Lease | None = None) -> int:
    """Adds the lines of the store that are newer than the ledger's, with their numbers; returns how many.

    Raises:
        RecordUnreadable: a segment is damaged; those before it are there.
    """
    newest, added = _newest(ledger), 0
    for segment in segments(store):
        if segment.last > newest:
            # Read before anything is written: a store may be slow, and writers of the ledger come one at a time.
            lines = [row for row in _read(store, segment) if row["number"] > newest]
            with ledger.transaction(lease) as connection:
                for start in range(0, len(lines), _AT_ONCE):
                    add_all(connection, journal, lines[start : start + _AT_ONCE])
            newest, added = segment.last, added + len(lines)
    return added


def _newest(ledger: Ledger) -> int:
    with ledger.reading() as connection:
        return newest_number(connection)


@dataclass(frozen=True, kw_only=True)
class _Next:
    """The lines of the next segment; `last` and `begun_at` are 0 where there are none."""

    lines: int
    last: int
    begun_at: float


def _next(ledger: Ledger, after: int) -> _Next:
    lines = select(journal.c.number, journal.c.at).where(journal.c.number > after).order_by(journal.c.number)
    segment = lines.limit(LINES_A_SEGMENT).subquery()
    with ledger.reading() as connection:
        first = connection.execute(lines.limit(1)).first()
        count, last = connection.execute(select(func.count(), func.max(segment.c.number)).select_from(segment)).one()
    return _Next(lines=count, last=last or 0, begun_at=0.0 if first is None else first.at)


def _packed(ledger: Ledger, after: int, last: int) -> bytes:
    """The lines after one number, up to another; some at a time, as a segment of them takes 16 MB when unpacked."""
    packed = io.BytesIO()
    # Without a time in it, so that the same lines are the same bytes.
    with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as file:
        while rows := _lines(ledger, after, last):
            file.writelines(f"{json.dumps(row, sort_keys=True)}\n".encode() for row in rows)
            after = rows[-1]["number"]
    return packed.getvalue()


def _lines(ledger: Ledger, after: int, last: int) -> list[dict[str, Any]]:
    query = select(journal).where(journal.c.number > after, journal.c.number <= last).order_by(journal.c.number)
    with ledger.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(query.limit(_AT_ONCE))]


def _read(store: ObjectStore, segment: Segment) -> Iterator[dict[str, Any]]:
    try:
        for line in gzip.decompress(store.read_bytes(segment.key)).splitlines():
            found = json.loads(line)
            yield {name: found[name] for name in ("number", "at", "kind", "subject", "detail")}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RecordUnreadable(
            f"{segment.key} is damaged", fix="Put it back from a copy of the store, or remove it: its lines are lost."
        ) from error
