"""What an archive says of itself, and reading that back (S10)."""

from __future__ import annotations

import json

import pytest

from p3s_prefect.core.archiving import (
    ArchivedGroup,
    ArchivedTable,
    ArchiveManifest,
    RowsDigest,
    archive_name,
    read_archive_manifest,
)
from p3s_prefect.core.errors import RecordUnreadable

GROUPS = [ArchivedGroup(id=1, data_id="run=1", day="20270115"), ArchivedGroup(id=2, data_id="run=2", day="20270113")]


def _manifest() -> ArchiveManifest:
    table = ArchivedTable(
        name="product",
        is_moved=True,
        columns=("id", "title"),
        rows=3,
        first=1,
        last=7,
        rows_sha256="a" * 64,
        key="archive/x/product.parquet",
        size=10,
        sha256="b" * 64,
    )
    copied = table.model_copy(update={"name": "attempt", "is_moved": False})
    name = archive_name(GROUPS, ["a", "b"])
    return ArchiveManifest(name=name, revision="0008", journal_to=5, groups=tuple(GROUPS), tables=(table, copied))


def test_a_manifest_is_read_as_it_was_written() -> None:
    """S10: counts, checksums, columns and numbers; what a later version has added is passed over."""
    found = _manifest()
    assert read_archive_manifest(found.content(), found.key) == found
    assert found.moved == 3
    later = json.loads(found.content()) | {"also": 1}
    assert read_archive_manifest(json.dumps(later).encode(), found.key) == found


def test_the_name_follows_from_the_content() -> None:
    """S10: the same rows make the same archive, and others another one."""
    assert archive_name(GROUPS, ["a", "b"]) == archive_name(GROUPS[::-1], ["a", "b"])
    assert archive_name(GROUPS, ["a", "b"]).startswith("archive/20270113-20270115-")
    assert archive_name(GROUPS, ["a", "b"]) != archive_name(GROUPS, ["a", "c"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b'{"version": 1}', b'{"version": "2"}', b"[" * 100_000]
)
def test_a_damaged_manifest_says_so(content: bytes) -> None:
    with pytest.raises(RecordUnreadable, match=r"x/archive.json is damaged"):
        read_archive_manifest(content, "x/archive.json")


def test_a_newer_manifest_asks_for_a_newer_version() -> None:
    with pytest.raises(RecordUnreadable, match=r"of version 2, which is newer\n  Install a newer p3s-prefect"):
        read_archive_manifest(b'{"version": 2, "tables": {}}', "x/archive.json")


def test_rows_that_differ_have_another_digest() -> None:
    """S10: in a value, in its kind, in their order, and in their number."""
    found = set()
    for rows in ([{"a": 1}], [{"a": "1"}], [{"a": 1.5}], [{"a": None}], [{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1}], []):
        digest = RowsDigest()
        for row in rows:
            digest.add(row)
        assert digest.rows == len(rows)
        found.add(digest.hexdigest())
    assert len(found) == 7
