"""Archives in the store: parquet files of the ledger's rows, written from one state of it, and read back (S10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Boolean, Float, Integer, Table, text

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.ledger.archiving import COPIED, MOVED, Part, rows_of
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.archiving import (
    MANIFEST_FILE,
    PREFIX,
    ArchivedGroup,
    ArchivedTable,
    ArchiveManifest,
    RowsDigest,
    archive_name,
    read_archive_manifest,
)
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, RecordUnreadable
from p3s_prefect.core.ports import ObjectStore

TABLES = (*MOVED, *COPIED)

_ROWS_AT_ONCE = 10_000
_PUT_BACK = "`p3s reconcile --copies DIR` puts it back from a copy of the store."

Progress = Callable[[str, int, int | None], None]


def write(
    ledger: Ledger,
    store: ObjectStore,
    groups: Iterable[ArchivedGroup],
    part: Part,
    progress: Progress = lambda what, done, total: None,
) -> ArchiveManifest:
    """Writes the rows of these groups into the store, the manifest last; what is there already is not written again."""
    with TemporaryDirectory(prefix="p3s-") as scratch:
        found: list[tuple[Path, dict[str, Any]]] = []
        # The ledger is not kept open while the store is written, which may be slow.
        with ledger.reading() as connection:
            revision = str(connection.scalar(text("SELECT version_num FROM alembic_version")))
            for number, table in enumerate(TABLES):
                progress("writing tables", number, len(TABLES))
                path = Path(scratch, f"{table.name}.parquet")
                facts = _write_table(path, table, rows_of(connection, table, part))
                found.append((path, facts | {"name": table.name, "is_moved": table in MOVED}))
        archived = tuple(groups)
        # By the files, and not the rows: another version of pyarrow writes the same rows as other bytes.
        name = archive_name(archived, [file_sha256(path) for path, _ in found])
        tables = []
        for number, (path, facts) in enumerate(found):
            progress("storing files", number, len(found))
            stored = store.put_file(f"{name}/{path.name}", path)
            tables.append(ArchivedTable(**facts, **stored.model_dump()))
    manifest = ArchiveManifest(
        name=name, revision=revision, journal_to=part.journal_to, groups=archived, tables=tuple(tables)
    )
    store.put_bytes(manifest.key, manifest.content())
    return manifest


def read_manifest(store: ObjectStore, name: str) -> ArchiveManifest:
    """What an archive says of itself.

    Raises:
        ObjectMissing: there is none of that name, or not a whole one.
        RecordUnreadable: its manifest is damaged.
    """
    key = f"{name}/{MANIFEST_FILE}"
    try:
        content = store.read_bytes(key)
    except ObjectMissing as error:
        raise ObjectMissing(error.what, fix=_PUT_BACK) from error
    found = read_archive_manifest(content, key)
    if found.name != name:
        raise RecordUnreadable(f"{key} is that of {found.name}", fix=_PUT_BACK)
    return found


def verify(store: ObjectStore, manifest: ArchiveManifest, progress: Progress = lambda what, done, total: None) -> None:
    """Reads every file back, and counts and compares its rows.

    Raises:
        StoreError: a file is not there, or not what the manifest says.
    """
    by_name = {table.name: table for table in TABLES}
    for number, archived in enumerate(manifest.tables):
        progress("reading back", number, len(manifest.tables))
        digest = RowsDigest()
        for row in rows_in(store, archived, by_name[archived.name]):
            digest.add(row)
        if (digest.rows, digest.hexdigest()) != (archived.rows, archived.rows_sha256):
            raise ChecksumMismatch(
                f"{archived.key} has other rows than its manifest says",
                fix="Nothing was removed from the ledger. Look at the disk, and run `p3s ledger archive` again.",
            )


def rows_in(
    store: ObjectStore, archived: ArchivedTable, table: Table, only: Mapping[str, Iterable[Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of one file as they are archived; with `only`, those whose column has one of these values.

    Raises:
        ObjectMissing: the file is not there.
        ChecksumMismatch: it is damaged.
    """
    # It takes a tenth of a second to import, and most commands never need it.
    import pyarrow.parquet

    conditions = [(column, "in", set(values)) for column, values in (only or {}).items()]
    with TemporaryDirectory(prefix="p3s-") as scratch:
        path = _fetched(store, archived, Path(scratch))
        if conditions:
            yield from pyarrow.parquet.read_table(path, filters=conditions).to_pylist()
            return
        with closing(pyarrow.parquet.ParquetFile(path)) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()


def _fetched(store: ObjectStore, archived: ArchivedTable, scratch: Path) -> Path:
    try:
        return store.fetch(archived.key, scratch, archived.sha256)
    except (ChecksumMismatch, ObjectMissing) as error:
        raise type(error)(error.what, fix=_PUT_BACK) from error


def stored_archives(store: ObjectStore) -> tuple[list[str], dict[str, list[tuple[str, float]]]]:
    """The names of all whole archives, and the objects, each with its time, of those without a manifest, by name."""
    found: dict[str, list[tuple[str, float]]] = {}
    for one in store.list(PREFIX):
        found.setdefault(one.key.rpartition("/")[0], []).append((one.key, one.modified_at))
    whole = [name for name, objects in found.items() if any(key == f"{name}/{MANIFEST_FILE}" for key, _ in objects)]
    return sorted(whole), {name: objects for name, objects in found.items() if name not in whole}


def _write_table(path: Path, table: Table, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    import pyarrow  # as above
    import pyarrow.parquet

    schema = pyarrow.schema([(column.name, _type(column.type, pyarrow)) for column in table.columns])
    (key, *_) = table.primary_key.columns
    numbers: list[int] = []
    digest = RowsDigest()
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            for row in some:
                digest.add(row)
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
            if key.type.python_type is int:
                numbers = [numbers[0] if numbers else some[0][key.name], some[-1][key.name]]
    return {
        "columns": tuple(schema.names),
        "rows": digest.rows,
        "first": numbers[0] if numbers else None,
        "last": numbers[-1] if numbers else None,
        "rows_sha256": digest.hexdigest(),
    }


def _type(column: Any, pyarrow: Any) -> Any:
    if isinstance(column, Boolean):
        return pyarrow.bool_()
    if isinstance(column, Integer):
        return pyarrow.int64()
    if isinstance(column, Float):
        return pyarrow.float64()
    return pyarrow.string()
