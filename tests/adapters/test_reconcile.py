"""Random damage to books and storage: they agree again, and a second look finds nothing (B11)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import contents, sha256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import BusyStore, age, good_bytes, overwrite, publish
from sqlalchemy import delete, select, update

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.damaged import damaged
from p3s_prefect.adapters.ledger.database import Ledger, acquire
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.agreement import Done, Finding, Trouble
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.station.reconciling import Reconciliation
from p3s_prefect.station.taking_over import take_over

UNITS = 3
_FAR = 4_000_000_000.0


def reconcile(ledger: Ledger, store: ObjectStore, *copies: ObjectStore, dry_run: bool = False) -> list[Finding]:
    work = Reconciliation(
        ledger=ledger,
        store=store,
        clock=SystemClock(),
        namespace="test",
        lease_s=60,
        sweep_after_s=3600,
        copies=copies,
    )
    return work.run(dry_run=dry_run)


def _told(findings: list[Finding]) -> list[tuple[Trouble, Done]]:
    return [(one.trouble, one.done) for one in findings]


# --- damage, by a word and the number of the unit --------------------------------------------------------------------


class Pair:
    """A ledger and a store that agree, and ways to change that."""

    def __init__(self, ledger: Ledger, store: DirectoryStore, content: str = "made of {}") -> None:
        self.ledger = ledger
        self.store = store
        publish(ledger, store, range(UNITS), content)
        with ledger.reading() as connection:
            self.attempts = connection.execute(select(schema.attempt).order_by(schema.attempt.c.id)).all()

    def file(self, number: int, name: str) -> Path:
        row = self.attempts[number]
        return self.store.root / row.prefix / row.execution / name

    def object_gone(self, number: int, name: str = "work/quick.json") -> None:
        self.file(number, name).unlink(missing_ok=True)

    def product_gone(self, number: int) -> None:
        self.object_gone(number, "work/a.png")

    def object_cut(self, number: int) -> None:
        self._change(number, "work/quick.json", lambda content: content[:-1])

    def object_flipped(self, number: int) -> None:
        self._change(number, "work/quick.json", bytes.swapcase)

    def manifest_gone(self, number: int) -> None:
        self.object_gone(number, "manifest.json")

    def manifest_garbled(self, number: int) -> None:
        self._change(number, "manifest.json", lambda content: content[:40])

    def record_gone(self, number: int) -> None:
        self.object_gone(number, "commit.json")

    def record_garbled(self, number: int) -> None:
        self._change(number, "commit.json", lambda content: b'{"attempt_id": 1}')

    def log_gone(self, number: int) -> None:
        self.object_gone(number, "log.txt")

    def orphan(self, number: int) -> None:
        path = self.store.root / self.attempts[number].prefix / "e2" / "work" / "quick.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        age(path)

    def configuration_gone(self, number: int) -> None:
        for path in (self.store.root / "configurations").glob("*.json"):
            path.unlink()

    def entry_gone(self, number: int) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(delete(schema.dataset).where(schema.dataset.c.attempt_id == self.attempts[number].id))

    def entry_wrong(self, number: int) -> None:
        with self.ledger.transaction() as connection:
            of_it = schema.dataset.c.attempt_id == self.attempts[number].id
            connection.execute(update(schema.dataset).where(of_it).values(size=7, sha256="0" * 64))

    def forgotten(self, number: int) -> None:
        """As in a ledger that was restored from before: the attempt was never opened."""
        row = self.attempts[number]
        with self.ledger.transaction() as connection:
            for table in (schema.dataset, schema.lineage, schema.product, schema.summary_value):
                connection.execute(delete(table).where(table.c.attempt_id == row.id))
            connection.execute(delete(schema.attempt).where(schema.attempt.c.id == row.id))
            of_it = schema.stage_run.c.id == row.stage_run_id
            connection.execute(update(schema.stage_run).where(of_it).values(state="queued", settled_at=None))
            open_again = update(schema.sub_job).where(schema.sub_job.c.data_id == f"run=1 subrun={number}")
            connection.execute(open_again.values(state="arrived", settled_at=None))

    def _change(self, number: int, name: str, how: Callable[[bytes], bytes]) -> None:
        path = self.file(number, name)
        if path.exists():
            overwrite(path, how(path.read_bytes()))


DAMAGES = [
    name for name, found in vars(Pair).items() if callable(found) and not name.startswith("_") and name != "file"
]


@pytest.fixture
def pair(ledger: Ledger, store: DirectoryStore) -> Pair:
    return Pair(ledger, store)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.sampled_from(DAMAGES), st.integers(0, UNITS - 1)), max_size=6))
def test_after_any_damage_a_second_look_finds_nothing(
    damage: list[tuple[str, int]], new_ledger: Callable[[], Ledger]
) -> None:
    """B11: what is left needs a hand and is told both times; nothing that was good is gone."""
    with tempfile.TemporaryDirectory() as place:
        ledger, store = new_ledger(), DirectoryStore(Path(place))
        pair = Pair(ledger, store)
        for word, number in damage:
            getattr(pair, word)(number)
        with ledger.reading() as connection:
            named = set(connection.scalars(select(schema.dataset.c.sha256)))
        before = good_bytes(store) & named
        shown = reconcile(ledger, store, dry_run=True)
        found = reconcile(ledger, store)
        assert bool(shown) == bool(found)
        left = {(one.trouble, one.key) for one in found if one.done is Done.LEFT}
        assert {(one.trouble, one.key) for one in reconcile(ledger, store)} == left
        assert {trouble for trouble, _ in left} <= {Trouble.UNKNOWN, Trouble.UNREADABLE, Trouble.UNRECORDED}
        assert before <= good_bytes(store)
        _agree(ledger, store)


def _agree(ledger: Ledger, store: DirectoryStore) -> None:
    with ledger.reading() as connection:
        for row in connection.execute(select(schema.dataset)):
            if row.damage is None:
                content = store.read_bytes(row.key)
                assert (len(content), sha256(content)) == (row.size, row.sha256)


# --- each by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "trouble", "done"),
    [
        ("object_gone", Trouble.MISSING, Done.MARKED),
        ("product_gone", Trouble.MISSING, Done.MARKED),
        ("object_cut", Trouble.SIZE, Done.MARKED),
        ("object_flipped", Trouble.CHECKSUM, Done.MARKED),
        ("manifest_gone", Trouble.NO_MANIFEST, Done.MENDED),
        ("manifest_garbled", Trouble.NO_MANIFEST, Done.MENDED),
        ("record_gone", Trouble.NO_RECORD, Done.MENDED),
        ("record_garbled", Trouble.NO_RECORD, Done.MENDED),
        ("log_gone", Trouble.LOG, Done.MENDED),
        ("orphan", Trouble.ORPHAN, Done.MENDED),
        ("configuration_gone", Trouble.NO_CONFIGURATION, Done.MENDED),
        ("entry_gone", Trouble.NO_ENTRY, Done.MENDED),
        ("entry_wrong", Trouble.BOOKS, Done.MENDED),
        ("forgotten", Trouble.UNKNOWN, Done.MENDED),
    ],
)
def test_each_damage_is_found_and_mended_or_marked(pair: Pair, word: str, trouble: Trouble, done: Done) -> None:
    """B11: in both directions; a dry run changes nothing and finds the same."""
    assert reconcile(pair.ledger, pair.store) == []
    with pair.ledger.reading() as connection:
        books = contents(connection)
    getattr(pair, word)(1)
    objects = good_bytes(pair.store)
    assert _told(reconcile(pair.ledger, pair.store, dry_run=True)) == [(trouble, Done.SHOWN)]
    assert good_bytes(pair.store) == objects
    found = reconcile(pair.ledger, pair.store)
    assert _told(found) == [(trouble, done)]
    assert found[0].told
    assert reconcile(pair.ledger, pair.store) == []
    if word in ("entry_gone", "entry_wrong", "forgotten"):
        # The books are those of before, with their numbers; that it was mended stands in the journal.
        with pair.ledger.reading() as connection:
            for name, rows in contents(connection).items():
                if name not in ("journal", "lease", "lineage", "product", "stage_run"):
                    assert rows == books[name], name


def test_a_damaged_object_is_put_back_from_a_copy(pair: Pair, tmp_path: Path) -> None:
    """B11: from a copy of the store, from another dataset with the same bytes, or from an execution that lost."""
    copy = DirectoryStore(tmp_path / "copy")
    for one in pair.store.list(""):
        copy.put_bytes(one.key, pair.store.read_bytes(one.key))
    pair.object_flipped(0)
    (marked,) = reconcile(pair.ledger, pair.store)
    assert marked.done is Done.MARKED
    with pair.ledger.reading() as connection:
        assert [one.data_id for one in damaged(connection)] == ["run=1 subrun=0"]
    # A copy that is damaged as well is none.
    overwrite(copy.root / marked.key, b"rubbish of 9 ")
    pair.object_gone(1)
    (other,) = reconcile(pair.ledger, pair.store, copy)
    assert other.done is Done.MENDED
    overwrite(copy.root / marked.key, b"made of 0")
    overwrite(pair.store.root / marked.key, b"made of 0")
    (again,) = reconcile(pair.ledger, pair.store)
    assert (again.trouble, again.done) == (Trouble.MENDED, Done.MENDED)
    with pair.ledger.reading() as connection:
        assert damaged(connection) == ()


def test_the_same_bytes_elsewhere_in_the_store_are_a_copy(ledger: Ledger, store: DirectoryStore) -> None:
    """B11: an object that two units have alike; and what an order that was executed twice has left, before it goes."""
    pair = Pair(ledger, store, content="the same")
    pair.object_gone(0)
    assert _told(reconcile(ledger, store)) == [(Trouble.MISSING, Done.MENDED)]
    lost = store.root / pair.attempts[1].prefix / "e2" / "work" / "a.png"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(pair.file(1, "work/a.png").read_bytes())
    age(lost)
    pair.product_gone(1)
    found = reconcile(ledger, store)
    assert _told(found) == [(Trouble.MISSING, Done.MENDED), (Trouble.ORPHAN, Done.MENDED)]
    assert pair.file(1, "work/a.png").read_bytes() == b"png 1"


def test_while_somebody_else_holds_the_lease_nothing_is_taken_over(pair: Pair) -> None:
    """B11: a station has its own picture of what is open; all else is mended."""
    pair.forgotten(0)
    pair.manifest_gone(1)
    with pair.ledger.transaction() as connection:
        acquire(connection, namespace="test", holder="elsewhere:1", lease_s=_FAR, now=SystemClock().now())
    found = {one.trouble: one for one in reconcile(pair.ledger, pair.store)}
    assert found[Trouble.NO_MANIFEST].done is Done.MENDED
    assert found[Trouble.UNKNOWN].done is Done.LEFT
    assert "p3s down" in found[Trouble.UNKNOWN].told


def test_while_the_store_is_read_others_write_to_the_ledger(
    new_ledger: Callable[[], Ledger], store: DirectoryStore
) -> None:
    """B11, S10: a store may be slow; a station goes on, the lease is renewed, and a server ends no idle writer."""
    publish(new_ledger(), store, range(UNITS))
    lost = new_ledger()
    busy = BusyStore(store.root, lost)
    assert take_over(lost, busy, 1.0).publications == UNITS
    assert reconcile(lost, busy) == []


@pytest.mark.sockets
def test_a_bucket_is_reconciled_and_taken_over_as_a_directory_is(
    new_ledger: Callable[[], Ledger], s3_store: S3Store
) -> None:
    """B11, S10, S3: an object that is gone, one with other bytes, a record that is missing; then a rebuild."""
    ledger = new_ledger()
    publish(ledger, s3_store, range(3))
    with ledger.reading() as connection:
        keys = list(connection.scalars(select(schema.dataset.c.key).order_by(schema.dataset.c.id)))
    assert reconcile(ledger, s3_store) == []
    s3_store.delete(keys[0])
    s3_store.delete(keys[1])
    s3_store.put_bytes(keys[1], b"MADE OF 1")
    s3_store.delete(keys[2].replace("work/quick.json", "commit.json"))
    assert sorted(_told(reconcile(ledger, s3_store))) == [
        (Trouble.MISSING, Done.MARKED),
        (Trouble.NO_RECORD, Done.MENDED),
        (Trouble.CHECKSUM, Done.MARKED),
    ]
    assert reconcile(ledger, s3_store) == []
    taken = take_over(new_ledger(), s3_store, 1.0)
    assert (taken.publications, len(taken.findings)) == (3, 2)
