"""The health row of the record in Prefect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p3s_prefect.core.health import Status
from p3s_prefect.core.record_health import LATE_S, RecordFacts, record

UP_TO_DATE = RecordFacts(at=1000.0, behind=0, oldest_at=None, seen_at=995.0, problem="")


@pytest.mark.parametrize(
    ("facts", "status", "cause"),
    [
        (UP_TO_DATE, Status.OK, ""),
        (replace(UP_TO_DATE, behind=7, oldest_at=999.0), Status.OK, ""),
        (replace(UP_TO_DATE, behind=7, oldest_at=900.0), Status.DEGRADED, "the agent records more slowly"),
        (replace(UP_TO_DATE, behind=7, oldest_at=900.0, seen_at=900.0), Status.DEGRADED, "the agent is silent"),
        (replace(UP_TO_DATE, behind=7, oldest_at=900.0, seen_at=None), Status.DEGRADED, "the agent is silent"),
        (replace(UP_TO_DATE, problem="Prefect cannot be reached"), Status.DEGRADED, "Prefect cannot be reached"),
    ],
)
def test_it_says_what_is_wrong_and_is_never_down(facts: RecordFacts, status: Status, cause: str) -> None:
    """B11: data are processed without it; a row that is not ok names its cause and what to do."""
    row = record(facts)
    assert row.status is status
    assert row.cause.startswith(cause)
    assert bool(row.action) == (status is not Status.OK)


def test_it_says_how_far_the_record_is_behind() -> None:
    """B11."""
    assert record(UP_TO_DATE).actual == "up to date"
    assert record(replace(UP_TO_DATE, behind=7, oldest_at=1000.0 - 2 * LATE_S)).actual == "7 entries, 60 s behind"
