"""The journal in the store: whole, once, resumable, and found again by a ledger that lacks it (S10)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from builders import NOW
from published import BusyStore, overwrite
from sqlalchemy import select

from p3s_prefect.adapters import journal_segments
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.journal_segments import Exported, export, exported, import_missing, segments
from p3s_prefect.adapters.ledger import journal, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import RecordUnreadable, StoreError


def _write(ledger: Ledger, number: int, at: float = NOW) -> None:
    with ledger.transaction() as connection:
        for n in range(number):
            journal.write(connection, at, "test", f"line {n} µ", n=n)


def _lines(ledger: Ledger) -> list[tuple[object, ...]]:
    with ledger.reading() as connection:
        return [tuple(row) for row in connection.execute(select(schema.journal).order_by(schema.journal.c.number))]


def test_it_goes_on_where_it_ended_and_says_how_far_it_is(
    ledger: Ledger, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: stopped by a store that fails, it has nothing twice and nothing is left out."""
    monkeypatch.setattr(journal_segments, "LINES_A_SEGMENT", 10)
    _write(ledger, 25)
    assert exported(ledger, store) == Exported(number=0, newest=25, segments=0)
    # Not full, and young: it waits.
    assert export(ledger, store, spare_since=NOW - 1) == Exported(number=20, newest=25, segments=2)
    _write(ledger, 13)

    def fail(number: int, newest: int) -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):
        export(ledger, store, told=fail)
    assert exported(ledger, store).behind == 8
    assert export(ledger, store, spare_since=NOW) == Exported(number=38, newest=38, segments=4)
    assert [(one.first, one.last) for one in segments(store)] == [(1, 10), (11, 20), (21, 30), (31, 38)]


def test_a_ledger_that_lacks_lines_gets_them_with_their_numbers(
    new_ledger: Callable[[], Ledger], store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: an empty one all of them, an older one the rest; what is told next has the next number."""
    monkeypatch.setattr(journal_segments, "LINES_A_SEGMENT", 10)
    monkeypatch.setattr(journal_segments, "_AT_ONCE", 3)
    full = new_ledger()
    _write(full, 32)
    lines = _lines(full)
    export(full, store)
    for known in (0, 15):
        # On a server it is the same one, emptied.
        ledger = new_ledger()
        _write(ledger, known)
        assert import_missing(ledger, BusyStore(store.root, ledger)) == 32 - known
        assert import_missing(ledger, store) == 0
        assert _lines(ledger) == lines
        _write(ledger, 1)
        assert _lines(ledger)[-1][0] == 33


def test_a_damaged_segment_is_named(ledger: Ledger, store: DirectoryStore, new_ledger: Callable[[], Ledger]) -> None:
    """S10, S8."""
    _write(ledger, 3)
    export(ledger, store)
    (one,) = segments(store)
    overwrite(store.root / one.key, b"\x1f\x8b rubbish")
    with pytest.raises(RecordUnreadable, match="journal/000000000001-000000000003"):
        import_missing(new_ledger(), store)


def test_lines_that_two_have_exported_are_taken_once(
    ledger: Ledger, store: DirectoryStore, new_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    """S10: of two that export at once, each may write a segment with lines that are in the other's."""
    other = DirectoryStore(tmp_path / "other")
    _write(ledger, 3)
    export(ledger, store)
    _write(ledger, 2)
    export(ledger, other)
    lines = _lines(ledger)
    for one in other.list("journal/"):
        store.put_bytes(one.key, other.read_bytes(one.key))
    assert [(one.first, one.last) for one in segments(store)] == [(1, 3), (1, 5)]
    again = new_ledger()
    assert import_missing(again, store) == 5
    assert _lines(again) == lines
