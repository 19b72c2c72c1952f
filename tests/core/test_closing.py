"""When groups close: by count or quiet time, whichever comes first (P22)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.closing import GroupFact, closes_by_count, quiet_at
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Closing


def _group(arrivals: int = 1, last_arrival_at: float = 100.0) -> GroupFact:
    return GroupFact(id=1, data_id=DataId.of(run=1), last_arrival_at=last_arrival_at, arrivals=arrivals)


@given(count=st.integers(1, 1000), arrivals=st.integers(1, 2000))
def test_a_group_closes_at_its_count_and_a_late_unit_closes_it_again(count: int, arrivals: int) -> None:
    """P22."""
    reason = closes_by_count(Closing(count=count), _group(arrivals))
    assert (reason is not None) == (arrivals >= count)
    assert reason is None or reason == f"count: {arrivals} of {count} units arrived"


def test_without_a_count_nothing_closes_by_it() -> None:
    """P22."""
    assert closes_by_count(Closing(marker="run{run}.closed"), _group(10**9)) is None


@pytest.mark.parametrize(("quiet_s", "closes_at"), [(None, math.inf), (30.0, 130.0), (0.5, 100.5)])
def test_quiet_time_counts_from_the_last_arrival(quiet_s: float | None, closes_at: float) -> None:
    """P22."""
    assert quiet_at(Closing(count=5, quiet_s=quiet_s), _group(last_arrival_at=100.0)) == closes_at


@given(last=st.floats(0, 1e9), since=st.floats(0, 1e9), quiet_s=st.floats(0.1, 1e6))
def test_quiet_time_counts_from_when_one_could_look_again(last: float, since: float, quiet_s: float) -> None:
    """P22, P13."""
    closes_at = quiet_at(Closing(quiet_s=quiet_s), _group(last_arrival_at=last), since)
    assert closes_at == max(last, since) + quiet_s


def test_a_group_that_could_never_close_is_refused() -> None:
    """P22."""
    with pytest.raises(ValueError, match="must be able to close"):
        Closing()
