"""The plan of a replay: complete, in order, repeatable, with the asked faults."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.file_names import FilePattern
from p3s_prefect.core.replay import Fault, FaultShares, ReplayPlan

PATTERN = FilePattern("LST-1.Run{run:05d}.{subrun:04d}.fits", {"run": "int", "subrun": "int"})
MARKER = FilePattern("LST-1.Run{run:05d}.closed", {"run": "int"})

shares = st.lists(st.floats(0, 1), min_size=6, max_size=6).map(
    lambda values: dict(zip([fault.value for fault in Fault], [value / 6 for value in values], strict=True))
)
plans = st.builds(
    ReplayPlan,
    pattern=st.just(PATTERN),
    marker=st.just(MARKER),
    first_run=st.integers(0, 50_000),
    runs=st.integers(1, 4),
    subruns_per_run=st.integers(1, 7),
    rate_hz=st.floats(0.1, 50),
    burst=st.integers(1, 9),
    faults=shares.map(lambda values: FaultShares(**values)),
    seed=st.integers(0, 2**32),
)


@given(plans)
def test_each_subrun_comes_once_and_each_run_closes_once(plan: ReplayPlan) -> None:
    """P20."""
    again = (Fault.RESENT, Fault.REWRITTEN)
    first = Counter(file.data_id for file in plan if not file.marker and file.fault not in again)
    runs = range(plan.first_run, plan.first_run + (plan.runs or 0))
    assert first == Counter(DataId.of(run=run, subrun=sub) for run in runs for sub in range(plan.subruns_per_run))
    assert Counter(file.data_id for file in plan if file.marker) == Counter(DataId.of(run=run) for run in runs)
    second = Counter(file.data_id for file in plan if file.fault in again)
    assert all(count == 1 for count in second.values())


@given(plans)
def test_files_come_in_order_of_time_and_the_same_each_time(plan: ReplayPlan) -> None:
    """P20."""
    files = list(plan)
    assert [file.at_s for file in files] == sorted(file.at_s for file in files)
    assert files == list(plan)


@given(plans)
def test_only_late_subruns_come_after_the_marker(plan: ReplayPlan) -> None:
    """P20, P22."""
    closed: set[object] = set()
    for file in plan:
        if file.marker:
            closed.add(file.data_id)
        else:
            assert (file.data_id.subset(["run"]) in closed) == (file.fault is Fault.LATE)


@given(plans)
def test_names_are_those_of_the_unit(plan: ReplayPlan) -> None:
    for file in plan:
        assert (MARKER if file.marker else PATTERN).match(file.name) == file.data_id


def test_the_rate_is_met() -> None:
    plan = ReplayPlan(pattern=PATTERN, rate_hz=4, subruns_per_run=5)
    assert [file.at_s for file in islice(plan, 12)] == [index / 4 for index in range(12)]


def test_a_burst_comes_at_once_at_the_same_mean_rate() -> None:
    plan = ReplayPlan(pattern=PATTERN, rate_hz=2, subruns_per_run=8, burst=4, runs=1)
    assert [file.at_s for file in plan] == [0, 0, 0, 0, 2, 2, 2, 2]


def test_faults_hit_as_often_as_asked() -> None:
    """P20."""
    asked = {"gap": 0.1, "late": 0.05, "truncated": 0.2, "corrupted": 0.02, "resent": 0.1, "rewritten": 0.03}
    plan = ReplayPlan(pattern=PATTERN, faults=FaultShares(**asked), runs=400, subruns_per_run=25, seed=3)
    found = Counter(file.fault for file in plan)
    for name, share in asked.items():
        spread = (10_000 * share * (1 - share)) ** 0.5
        assert abs(found[Fault(name)] - 10_000 * share) < 4 * spread


def test_another_seed_hits_others() -> None:
    def hit(seed: int) -> list[object]:
        faults = FaultShares(truncated=0.3)
        plan = ReplayPlan(pattern=PATTERN, faults=faults, runs=2, subruns_per_run=20, seed=seed)
        return [file.data_id for file in plan if file.fault]

    assert hit(1) == hit(1) != hit(2)


@pytest.mark.parametrize("shares", [{"gap": -0.1}, {"late": 1.5}, {"gap": 0.6, "late": 0.6}, {"gap": float("nan")}])
def test_shares_that_cannot_be_met_are_refused(shares: dict[str, float]) -> None:
    """S8."""
    with pytest.raises(BadName, match="cannot be met"):
        FaultShares(**shares)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate_hz", 0),
        ("rate_hz", float("nan")),
        ("rate_hz", float("inf")),
        ("runs", 0),
        ("subruns_per_run", 0),
        ("burst", 0),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    """S8."""
    with pytest.raises(BadName):
        ReplayPlan(pattern=PATTERN, **{name: value})


def test_files_that_are_named_by_something_else_cannot_be_replayed() -> None:
    """P20, S8: and it says which home can take them."""
    parts = FilePattern("r{run:03d}_{part:03d}.txt", {"run": "int", "part": "int"})
    with pytest.raises(BadName, match="has run and subrun, and files here are named") as refused:
        ReplayPlan(pattern=parts)
    assert "p3s init DIRECTORY --instrument lst1" in refused.value.fix
