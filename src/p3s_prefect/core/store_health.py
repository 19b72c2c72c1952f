"""Whether what was published is still in the store, as far as `p3s reconcile` has found."""

from __future__ import annotations

from p3s_prefect.core.health import HealthRow, Status


def stored_results(damaged: int) -> tuple[HealthRow, ...]:
    """A row if datasets are damaged and were not made anew; none if there are none."""
    if not damaged:
        return ()
    return (
        HealthRow(
            name="stored results",
            nominal="none damaged",
            actual=f"{damaged} {'dataset' if damaged == 1 else 'datasets'} damaged, and not made anew",
            status=Status.DEGRADED,
            cause="their objects are missing from the store, or not as they were published; nothing reads them",
            action="`p3s reconcile` lists them; with `--copies DIR` it puts them back from a copy of the store, and "
            "with `--again` it has them made anew.",
        ),
    )
