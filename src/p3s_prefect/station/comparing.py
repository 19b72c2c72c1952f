"""Where books and storage disagree: one attempt after the other, in both directions (B11). Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from p3s_prefect.adapters.archive_files import read_manifest as read_archive
from p3s_prefect.adapters.archived_products import ArchivedProducts
from p3s_prefect.adapters.ledger.adoption import Adoption
from p3s_prefect.adapters.ledger.booked_objects import BookedAttempt, BookedObject, booked_attempt
from p3s_prefect.adapters.stored_executions import (
    StoredExecution,
    damage_of,
    read_configuration,
    read_manifest,
    read_record,
)
from p3s_prefect.core import archiving
from p3s_prefect.core.agreement import Trouble
from p3s_prefect.core.commit_record import MANIFEST_FILE, RECORD_FILE, configuration_key
from p3s_prefect.core.errors import ObjectMissing, StoreError
from p3s_prefect.core.ports import ObjectInfo, ObjectStore
from p3s_prefect.core.records import Manifest, PublishedObject


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One disagreement, with what is needed to mend it."""

    trouble: Trouble
    prefix: str
    """Of the attempt that it belongs to."""
    key: str
    data_id: str
    what: str
    attempt: BookedAttempt | None = None
    booked: BookedObject | None = None
    manifest: Manifest | None = None
    entry: PublishedObject | None = None
    """What the manifest says of the object."""


def compare(
    connection: Connection,
    store: ObjectStore,
    prefix: str,
    executions: list[StoredExecution],
    *,
    older_than: float,
    quick: bool = False,
    archived: ArchivedProducts | None = None,
) -> Iterator[Problem]:
    """Everything about one attempt; orphans only where they were last modified before `older_than` (UTC)."""
    booked = booked_attempt(connection, prefix)
    if booked is not None and archived is not None:
        booked = replace(booked, objects=(*booked.objects, *archived.of(connection, booked)))
    published = booked if booked is not None and booked.state == "done" else None
    if published is not None:
        own = next((one for one in executions if one.place == published.place), None)
        yield from _published(store, published, {} if own is None else own.objects, quick=quick)
    recorded = any(one.is_recorded for one in executions)
    for one in executions:
        if published is not None and one.place == published.place:
            continue
        if one.is_recorded:
            yield _unknown(connection, store, one)
        elif booked is None and one.has_manifest and not recorded:
            what = "everything was written, and neither a commit record nor the ledger says that it was published"
            yield Problem(trouble=Trouble.UNRECORDED, prefix=prefix, key=one.place, data_id="", what=what)
        elif booked is None or booked.state != "running":
            yield from _orphans(one, booked, older_than)


@dataclass(frozen=True)
class _Of:
    """Problems of one published attempt."""

    attempt: BookedAttempt

    def problem(self, trouble: Trouble, key: str, what: str, booked: BookedObject | None = None) -> Problem:
        """One of them."""
        own = self.attempt
        return Problem(
            trouble=trouble, prefix=own.prefix, key=key, data_id=own.data_id, what=what, attempt=own, booked=booked
        )


def _published(
    store: ObjectStore, attempt: BookedAttempt, seen: Mapping[str, ObjectInfo], *, quick: bool
) -> Iterator[Problem]:
    of, manifest = _Of(attempt), _manifest(store, attempt)
    named = {} if manifest is None else {one.key: one for one in [*manifest.outputs, *manifest.products]}
    is_right = manifest is not None
    for booked in attempt.objects:
        entry = named.get(booked.key)
        wrong = damage_of(store, booked.key, booked.size, booked.sha256, seen.get(booked.key), quick=quick)
        agrees = entry is not None and (entry.size, entry.sha256) == (booked.size, booked.sha256)
        is_right = is_right and entry is not None and (agrees or wrong is not None)
        if wrong is not None:
            yield from _wrong(of, store, booked, None if agrees else entry, seen, wrong)
        elif booked.damage is not None and not quick:
            what = f"{booked.name} is marked as damaged ({booked.damage}), and its object is right"
            yield of.problem(Trouble.MENDED, booked.key, what, booked)
    yield from _entries(attempt, manifest)
    if not is_right:
        what = "the manifest is missing or damaged" if manifest is None else "the manifest says otherwise than objects"
        yield of.problem(Trouble.NO_MANIFEST, f"{attempt.place}/{MANIFEST_FILE}", what)
    # One that is not noted as written is owed: the station writes it, or the next one at its start.
    if attempt.is_recorded and (complaint := _record_complaint(store, attempt)):
        yield of.problem(Trouble.NO_RECORD, f"{attempt.place}/{RECORD_FILE}", f"the commit record: {complaint}")
    if attempt.log_key is not None and attempt.log_key not in seen:
        yield of.problem(Trouble.LOG, attempt.log_key, "the log is not in the store")


def _wrong(
    of: _Of,
    store: ObjectStore,
    booked: BookedObject,
    entry: PublishedObject | None,
    seen: Mapping[str, ObjectInfo],
    wrong: tuple[Trouble, str],
) -> Iterator[Problem]:
    """An object that is not as the ledger says; `entry` is what the manifest says, where it says otherwise."""
    if entry is not None and damage_of(store, entry.key, entry.size, entry.sha256, seen.get(entry.key)) is None:
        what = f"{booked.name}: the object is as its manifest says, and the ledger says otherwise"
        yield replace(of.problem(Trouble.BOOKS, booked.key, what, booked), entry=entry)
    elif booked.damage is None:
        yield of.problem(wrong[0], booked.key, f"{booked.name}: {wrong[1]}", booked)


def _manifest(store: ObjectStore, attempt: BookedAttempt) -> Manifest | None:
    try:
        found = read_manifest(store, attempt.place)
    except StoreError:
        return None
    return found if (found.execution, found.data_id) == (attempt.execution, attempt.data_id) else None


def _entries(attempt: BookedAttempt, manifest: Manifest | None) -> Iterator[Problem]:
    known = {one.key for one in attempt.objects}
    for output in [] if manifest is None else manifest.outputs:
        if output.key not in known:
            what = f"the manifest names {output.dataset_type}, which the ledger does not have"
            found = _Of(attempt).problem(Trouble.NO_ENTRY, output.key, what)
            yield replace(found, manifest=manifest, entry=output)


def _record_complaint(store: ObjectStore, attempt: BookedAttempt) -> str:
    try:
        read_record(store, attempt.place)
    except ObjectMissing:
        return "it is missing"
    except StoreError as error:
        return error.what
    return ""


def compare_configurations(store: ObjectStore, numbers: list[str]) -> Iterator[Problem]:
    """Those of which something was published: what stands behind each must be in the store."""
    for number in numbers:
        try:
            read_configuration(store, number)
        except StoreError as error:
            key = configuration_key(number)
            yield Problem(trouble=Trouble.NO_CONFIGURATION, prefix="", key=key, data_id="", what=error.what)


def compare_archives(store: ObjectStore, noted: Mapping[str, str], *, quick: bool = False) -> Iterator[Problem]:
    """The files of the archives that the ledger knows; `noted` has the checksums of their manifests."""
    for name, sha256 in noted.items():
        seen = {one.key: one for one in store.list(f"{name}/")}
        key = f"{name}/{archiving.MANIFEST_FILE}"
        # How long it is, is not noted.
        size = seen[key].size if key in seen else 0
        parts = [PublishedObject(key=key, size=size, sha256=sha256)]
        with suppress(StoreError):
            parts += [
                PublishedObject(key=one.key, size=one.size, sha256=one.sha256)
                for one in read_archive(store, name).tables
            ]
        for part in parts:
            wrong = damage_of(store, part.key, part.size, part.sha256, seen.get(part.key), quick=quick)
            if wrong is not None:
                what = f"rows of the ledger were archived in it, and {wrong[1]}"
                yield Problem(trouble=Trouble.ARCHIVE, prefix="", key=part.key, data_id="", what=what, entry=part)


def _unknown(connection: Connection, store: ObjectStore, one: StoredExecution) -> Problem:
    try:
        record = read_record(store, one.place)
    except StoreError as error:
        trouble, data_id = Trouble.UNREADABLE, ""
        what = f"its commit record: {error.what}; the ledger does not know it either"
    else:
        trouble, data_id = Trouble.UNKNOWN, record.sub_job.data_id
        what = f"{record.stage.stage} was published, and the ledger does not know it"
        if rival := Adoption(connection).rival(record):
            trouble, what = Trouble.TWICE, f"{rival} is published for the same stage"
    return Problem(trouble=trouble, prefix=one.prefix, key=one.place, data_id=data_id, what=what)


def _orphans(one: StoredExecution, booked: BookedAttempt | None, older_than: float) -> Iterator[Problem]:
    for found in one.objects.values():
        if found.modified_at < older_than and not (booked is not None and found.key == booked.log_key):
            data_id = "" if booked is None else booked.data_id
            what = "no publication names it"
            yield Problem(trouble=Trouble.ORPHAN, prefix=one.prefix, key=found.key, data_id=data_id, what=what)
