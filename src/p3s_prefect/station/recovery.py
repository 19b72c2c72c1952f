"""Picking up where the last station ended: finish what was published by halves, give back what was running."""

from __future__ import annotations

import logging

from pydantic import ValidationError
from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.core.errors import Conflict
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Manifest
from p3s_prefect.core.states import StageState

log = logging.getLogger(__name__)

# A pilot's clock may be behind the station's; a ledger is not restored within a minute of being lost.
_CLOCKS_APART_S = 60.0


def recover(connection: Connection, store: ObjectStore, now: float) -> tuple[int, int]:
    """Settles every attempt that was running: (number published, number given back to the queue).

    Where an execution's manifest is complete in the store, its results are published without running it again.
    """
    published = given_back = 0
    for attempt in execution.interrupted(connection):
        if _publish_if_complete(connection, store, attempt, now):
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


def _publish_if_complete(
    connection: Connection, store: ObjectStore, attempt: execution.Interrupted, now: float
) -> bool:
    for found in store.list(f"{attempt.prefix}/"):
        if found.key.endswith("/manifest.json"):
            try:
                manifest = Manifest.model_validate_json(store.read_bytes(found.key))
            except ValidationError as error:
                log.error("%s is damaged, so its stage runs again: %s", found.key, error)
                continue
            if manifest.attempt_id != attempt.attempt_id or manifest.ended_at < attempt.opened_at - _CLOCKS_APART_S:
                # Of a ledger that was here before: it numbered otherwise, or the same before it was restored.
                continue
            try:
                with connection.begin_nested():
                    execution.publish(connection, manifest, now)
            except Conflict as conflict:
                log.error("%s", conflict)
            else:
                return True
    return False
