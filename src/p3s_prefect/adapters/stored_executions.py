"""What attempts have left in the store: objects, manifests, commit records, read as whoever has no ledger must."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from p3s_prefect.core.agreement import Trouble
from p3s_prefect.core.commit_record import (
    MANIFEST_FILE,
    RECORD_FILE,
    CommitRecord,
    configuration_key,
    read_commit_record,
)
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, RecordUnreadable
from p3s_prefect.core.naming import attempt_of, content_id
from p3s_prefect.core.ports import ObjectInfo, ObjectStore
from p3s_prefect.core.records import Manifest


@dataclass(frozen=True, kw_only=True)
class StoredExecution:
    """One execution's objects, by key."""

    prefix: str
    """Of the attempt."""
    place: str
    """Of the execution: what its keys begin with, without the last slash."""
    objects: dict[str, ObjectInfo]

    @property
    def is_recorded(self) -> bool:
        """Whether a commit record stands there: it was published."""
        return f"{self.place}/{RECORD_FILE}" in self.objects

    @property
    def has_manifest(self) -> bool:
        """Whether it had written everything."""
        return f"{self.place}/{MANIFEST_FILE}" in self.objects


def stored_attempts(store: ObjectStore, under: str = "runs/") -> Iterator[tuple[str, list[StoredExecution]]]:
    """The prefix of every attempt below a prefix, with its executions, in the order of their keys."""
    for prefix, objects in groupby(store.list(under), key=lambda one: attempt_of(one.key)):
        by_place: dict[str, dict[str, ObjectInfo]] = {}
        for one in objects:
            execution = one.key.removeprefix(f"{prefix}/").partition("/")[0]
            # What is no object of an execution is nobody's.
            if one.key.startswith(f"{prefix}/{execution}/"):
                by_place.setdefault(f"{prefix}/{execution}", {})[one.key] = one
        yield prefix, [StoredExecution(prefix=prefix, place=place, objects=found) for place, found in by_place.items()]


def stored_executions(store: ObjectStore, under: str = "runs/") -> Iterator[StoredExecution]:
    """Every execution below a prefix, in the order of their keys."""
    return (found for _, executions in stored_attempts(store, under) for found in executions)


def read_record(store: ObjectStore, place: str) -> CommitRecord:
    """The commit record of an execution.

    Raises:
        ObjectMissing: there is none.
        RecordUnreadable: it is damaged, of a newer version, or of another execution.
    """
    record = read_commit_record(store.read_bytes(f"{place}/{RECORD_FILE}"))
    if record.place != place:
        raise RecordUnreadable(f"it is that of {record.place}", fix="Put back the one that belongs there.")
    return record


def read_manifest(store: ObjectStore, place: str) -> Manifest:
    """The manifest of an execution.

    Raises:
        ObjectMissing: there is none.
        RecordUnreadable: it is damaged.
    """
    content = store.read_bytes(f"{place}/{MANIFEST_FILE}")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise RecordUnreadable("the manifest is damaged", fix="Put it back from a copy of the store.") from error


def read_configuration(store: ObjectStore, configuration_id: str) -> dict[str, Any]:
    """The content of a configuration, which its number verifies.

    Raises:
        ObjectMissing: it is not there.
        RecordUnreadable: it is not what its number says.
    """
    try:
        found = json.loads(store.read_bytes(configuration_key(configuration_id)))
        if isinstance(found, dict) and content_id(found) == configuration_id:
            return found
    except (ValueError, RecursionError):
        found = None
    raise RecordUnreadable(
        f"{configuration_key(configuration_id)} is damaged", fix="Put it back from a copy of the store."
    )


def damage_of(
    store: ObjectStore, key: str, size: int, sha256: str, seen: ObjectInfo | None, *, quick: bool = False
) -> tuple[Trouble, str] | None:
    """What is wrong with an object, of which a listing said `seen`; None if nothing.

    With `quick`, its bytes are not read.
    """
    if seen is None:
        return Trouble.MISSING, "it is not in the store"
    if seen.size != size:
        return Trouble.SIZE, f"it has {seen.size} bytes instead of {size}"
    if quick:
        return None
    try:
        with TemporaryDirectory(prefix="p3s-") as scratch:
            store.fetch(key, Path(scratch), sha256)
    except ObjectMissing:
        return Trouble.MISSING, "it is not in the store"
    except ChecksumMismatch:
        return Trouble.CHECKSUM, f"its bytes are not those of SHA-256 {sha256[:12]}…"
    return None
