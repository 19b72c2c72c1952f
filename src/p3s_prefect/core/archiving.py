"""Closed periods that leave the ledger for the store: which groups may, and what an archive says of itself (S10)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from p3s_prefect.core.versioned import read_versioned

VERSION: Final = 1
PREFIX = "archive/"
MANIFEST_FILE = "archive.json"


@dataclass(frozen=True, kw_only=True)
class ArchiveFacts:
    """What is known of a group that is to be archived."""

    is_open: bool
    """Whether it, or a pass of it, takes further units."""
    open_work: int
    """Sub-jobs that have not settled."""
    ended_at: float
    """When the last unit came or the last sub-job settled."""
    is_damaged: bool
    is_owed: bool
    """Whether a commit record has not been written yet."""
    is_asked: bool
    """Whether an unanswered request is about it."""
    is_newest: bool
    """Whether it has the newest product or lineage: a database may give their numbers again, once they are gone."""


def why_live(facts: ArchiveFacts, before: float) -> str:
    """Why a group stays in the ledger; empty if it may go. `before` is UTC in seconds since 1970."""
    if facts.is_open:
        return "it has not closed"
    if facts.open_work:
        return "some of its work has not settled"
    if facts.ended_at >= before:
        return "it ended later"
    if facts.is_damaged:
        return "a result is damaged: `p3s reconcile` first"
    if facts.is_owed:
        return "the station owes it a commit record"
    if facts.is_asked:
        return "a request about it is not answered"
    if facts.is_newest:
        return "it has the newest results, which stay"
    return ""


@dataclass(frozen=True, kw_only=True)
class ArchiveRow:
    """One group, and what becomes of it."""

    group_id: int
    data_id: str
    day: str
    units: int
    rows: int
    """That leave the ledger with it."""
    why: str
    """Why it stays; empty if it goes."""

    @property
    def goes(self) -> bool:
        """Whether it is archived."""
        return not self.why

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in ("data_id", "day", "units", "rows", "goes", "why")}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ArchivedTable(_Record):
    """One table's rows, in a file of its own."""

    name: str
    is_moved: bool
    """Whether the rows left the ledger; else they are copies, so that the archive can be read by itself."""
    columns: tuple[str, ...]
    rows: int
    first: int | None
    """Smallest number of its rows; None where they have none."""
    last: int | None
    rows_sha256: str
    """Of the rows, in their order, as `RowsDigest` has it: the same whatever wrote the file."""
    key: str
    size: int
    sha256: str
    """Of the file."""


class ArchivedGroup(_Record):
    """A group whose rows are in an archive."""

    id: int
    data_id: str
    day: str


class ArchiveManifest(_Record):
    """All that an archive says of itself. No time stands in it, so that the same files make the same archive."""

    version: Literal[1] = VERSION
    name: str
    revision: str
    """Of the ledger's tables."""
    journal_to: int
    """Lines of the journal up to this number are in it."""
    groups: tuple[ArchivedGroup, ...]
    tables: tuple[ArchivedTable, ...]

    @property
    def key(self) -> str:
        """Where it stands in the store; it is written last."""
        return f"{self.name}/{MANIFEST_FILE}"

    @property
    def moved(self) -> int:
        """How many rows leave the ledger."""
        return sum(table.rows for table in self.tables if table.is_moved)

    def content(self) -> bytes:
        """As an object."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode()

    def table(self, name: str) -> ArchivedTable:
        """One of its tables."""
        return next(table for table in self.tables if table.name == name)


def read_archive_manifest(content: bytes, key: str) -> ArchiveManifest:
    """The manifest of an archive.

    Raises:
        RecordUnreadable: it is damaged, or of a newer version.
    """
    fix = "`p3s reconcile --copies DIR` puts it back from a copy of the store."
    return read_versioned(ArchiveManifest, content, newest=VERSION, name=key, if_damaged=fix)


def archive_name(groups: Sequence[ArchivedGroup], files: Iterable[str]) -> str:
    """First and last processing day, and a number made from the SHA-256 of its files."""
    days = sorted(group.day for group in groups)
    content = hashlib.sha256("\n".join(files).encode()).hexdigest()
    return f"{PREFIX}{days[0]}-{days[-1]}-{content[:12]}"


class RowsDigest:
    """The SHA-256 of rows: of each, its values in the order of the columns as a line of JSON."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes one more row."""
        self._digest.update(json.dumps(list(row.values())).encode() + b"\n")
        self.rows += 1

    def hexdigest(self) -> str:
        """Of all rows so far."""
        return self._digest.hexdigest()
