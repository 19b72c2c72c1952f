"""Picking up where the last station ended: finish what was published by halves, give back what was running."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError
from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.core.errors import Conflict, StoreError, StoreUnreachable
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Manifest
from p3s_prefect.core.states import StageState

log = logging.getLogger(__name__)

# A pilot's clock may be behind the station's; a ledger is not restored within a minute of being lost.
_CLOCKS_APART_S = 60.0


Manifests = Mapping[int, Sequence[Manifest]]


def manifests(connection: Connection, store: ObjectStore) -> Manifests:
    """The complete manifests of every interrupted attempt, by attempt; those that are damaged are left out.

    Read before anything is written: a store may be slow, and writers of the ledger come one at a time.
    """
    interrupted = execution.interrupted(connection)
    return {attempt.attempt_id: list(complete_manifests(store, attempt)) for attempt in interrupted}


def put_off(connection: Connection, now: float) -> int:
    """Leaves every attempt that was running for when the store answers, which alone can tell; returns how many."""
    interrupted = execution.interrupted(connection)
    for attempt in interrupted:
        execution.wait_unknown(connection, attempt.attempt_id, now)
    return len(interrupted)


def recover(connection: Connection, complete: Manifests, now: float) -> tuple[int, int]:
    """Settles every attempt that was running: (number published, number given back to the queue).

    Where an execution's manifest is complete in the store, its results are published without running it again. What
    waits for the store goes on waiting.
    """
    published = given_back = 0
    for attempt in execution.interrupted(connection):
        if any(_publish(connection, manifest, now) for manifest in complete.get(attempt.attempt_id, ())):
            published += 1
        else:
            execution.give_up(
                connection,
                attempt_id=attempt.attempt_id,
                stage_run_id=attempt.stage_run_id,
                ended_as="stopped",
                next_state=StageState.QUEUED,
                reason="the station ended while it ran",
                now=now,
            )
            given_back += 1
    return published, given_back


def complete_manifests(store: ObjectStore, attempt: execution.Interrupted | execution.Waiting) -> Iterator[Manifest]:
    """The complete manifests of an attempt; one that is damaged or cannot be read is told, and is none.

    Raises:
        StoreUnreachable: it is not known which there are.
    """
    for key in _manifest_keys(store, attempt.prefix):
        try:
            manifest = Manifest.model_validate_json(store.read_bytes(key))
        except StoreUnreachable:
            raise
        except (ValidationError, StoreError) as error:
            log.error("%s is damaged, so its stage runs again: %s", key, error)
            continue
        # Else it is of a ledger that was here before: it numbered otherwise, or the same before it was restored.
        if manifest.attempt_id == attempt.attempt_id and manifest.ended_at >= attempt.opened_at - _CLOCKS_APART_S:
            yield manifest


def _manifest_keys(store: ObjectStore, prefix: str) -> list[str]:
    try:
        return [found.key for found in store.list(f"{prefix}/") if found.key.endswith("/manifest.json")]
    except StoreUnreachable:
        raise
    except StoreError as error:
        log.error("what is below %s cannot be listed, so its stage runs again: %s", prefix, error)
        return []


def _publish(connection: Connection, manifest: Manifest, now: float) -> bool:
    try:
        with connection.begin_nested():
            execution.publish(connection, manifest, now)
    except Conflict as conflict:
        log.error("%s", conflict)
        return False
    return True
