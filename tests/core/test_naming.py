"""Names by content (V23)."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Day
from p3s_prefect.core.naming import attempt_prefix, configuration, content_id, processing_day, run_collection

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def _reordered(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _reordered(content[key]) for key in reversed(content)}
    return [_reordered(item) for item in content] if isinstance(content, list) else content


def _exact(content: Any) -> str:
    # 1 == 1.0 == True in Python, but not as content.
    if isinstance(content, dict):
        return f"{{{sorted((key, _exact(value)) for key, value in content.items())}}}"
    if isinstance(content, list):
        return f"[{[_exact(item) for item in content]}]"
    return f"{type(content).__name__}:{content!r}"


@given(JSON)
def test_the_same_content_has_the_same_id(content: Any) -> None:
    """V23: whatever the order of its keys."""
    assert content_id(content) == content_id(_reordered(content)) == content_id(copy.deepcopy(content))


@given(JSON, JSON)
def test_other_content_has_another_id(one: Any, other: Any) -> None:
    """V23."""
    assert (content_id(one) == content_id(other)) == (_exact(one) == _exact(other))


@pytest.mark.parametrize("content", [float("nan"), [float("inf")], {"a": {1, 2}}, object()])
def test_what_is_no_json_has_no_id(content: object) -> None:
    """V23: two values that compare unequal to themselves must not share a name by accident."""
    with pytest.raises((TypeError, ValueError)):
        content_id(content)


def test_any_change_of_a_configuration_gives_another_name() -> None:
    """V23: pipeline, formats or software."""
    pipeline = {"stages": {"quick": {"params": {"cut": 3.0}}}}
    base = configuration(pipeline, {"raw": "fits"}, {"numpy": "2.3"})
    changed = [
        configuration({"stages": {"quick": {"params": {"cut": 3.5}}}}, {"raw": "fits"}, {"numpy": "2.3"}),
        configuration(pipeline, {"raw": "npz"}, {"numpy": "2.3"}),
        configuration(pipeline, {"raw": "fits"}, {"numpy": "2.4"}),
    ]
    names = [run_collection("lst1", "dqm", date(2020, 2, 18), content_id(one), 0) for one in [base, *changed]]
    assert len(set(names)) == 4
    assert names[0] == f"lst1/dqm/20200218/{content_id(base)[:12]}"


def test_a_later_pass_has_a_name_of_its_own() -> None:
    """V23, P22: pass 0 has the plain name."""
    names = [run_collection("lst1", "dqm", date(2020, 2, 18), "0123456789abcdef", number) for number in range(3)]
    plain = "lst1/dqm/20200218/0123456789ab"
    assert names == [plain, f"{plain}/pass1", f"{plain}/pass2"]
    unit = DataId.of(run=1, subrun=2)
    assert attempt_prefix(names[1], unit, "quick", 0) == f"runs/{plain}/pass1/run=1/subrun=2/quick/attempt0"


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("rolls_at", "zone", "moment", "day"),
    [
        ("00:00", "UTC", "2020-02-18T00:00:00Z", "2020-02-18"),
        ("00:00", "UTC", "2020-02-17T23:59:59.999Z", "2020-02-17"),
        ("12:00", "UTC", "2020-02-18T11:59:59.999Z", "2020-02-17"),
        ("12:00", "UTC", "2020-02-18T12:00:00Z", "2020-02-18"),
        ("12:00", "UTC", "2020-02-19T03:00:00Z", "2020-02-18"),
        ("12:00", "America/Santiago", "2020-02-18T14:59:59Z", "2020-02-17"),
        ("12:00", "America/Santiago", "2020-02-18T15:00:00Z", "2020-02-18"),
        ("12:00", "Pacific/Kiritimati", "2020-02-17T22:00:00Z", "2020-02-18"),
        ("00:00", "Asia/Kathmandu", "2020-02-17T18:15:00Z", "2020-02-18"),
        # Clocks go forward at 02:00, and 02:30 does not exist: the day rolls half an hour after they changed.
        ("02:30", "Europe/Zurich", "2024-03-31T01:29:59Z", "2024-03-30"),
        ("02:30", "Europe/Zurich", "2024-03-31T01:30:00Z", "2024-03-31"),
        # Clocks go back at 03:00: 02:30 comes twice, and the day rolls at the first.
        ("02:30", "Europe/Zurich", "2024-10-27T00:29:59Z", "2024-10-26"),
        ("02:30", "Europe/Zurich", "2024-10-27T00:30:00Z", "2024-10-27"),
        ("02:30", "Europe/Zurich", "2024-10-27T01:10:00Z", "2024-10-27"),
    ],
)
def test_processing_days(rolls_at: str, zone: str, moment: str, day: str) -> None:
    """V23: before and after the roll, in zones, and where clocks change."""
    assert processing_day(_at(moment), Day(rolls_at=rolls_at, zone=zone)) == date.fromisoformat(day)


ZONES = ["UTC", "Europe/Zurich", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu", "Atlantic/Azores"]


@given(
    st.datetimes(datetime(2015, 1, 1), datetime(2035, 1, 1)),  # noqa: DTZ001 -- hypothesis adds the zone
    st.timedeltas(timedelta(0), timedelta(hours=30)),
    st.times(),
    st.sampled_from(ZONES),
)
def test_days_follow_each_other(moment: datetime, later: timedelta, rolls: Any, zone: str) -> None:
    """V23: a day never returns once the next has begun, none is longer than 25 h, and it is at most one off."""
    day = Day(rolls_at=f"{rolls:%H:%M}", zone=zone)
    start = moment.replace(tzinfo=UTC)
    first, second = (processing_day(at.timestamp(), day) for at in (start, start + later))
    assert timedelta(0) <= second - first <= timedelta(days=2)
    assert second > first or later <= timedelta(hours=25)
