"""What is measured of arrivals and services."""

from __future__ import annotations

import pytest

from p3s_prefect.core.estimates import Rate, ServiceTimes


def test_a_rate_from_its_first_event_is_right_before_it_has_faded_in() -> None:
    """P5: two in a second, of which a rate that fades in 100 s knows a third after 40 s."""
    rate = Rate(fades_s=100.0)
    for number in range(80):
        rate.add(1.0, 1e9 + number / 2)
    assert rate.at(1e9 + 40) == pytest.approx(2 * 0.33, rel=0.02)
    assert rate.since_first(1e9 + 40) == pytest.approx(2.0, rel=0.02)
    assert rate.since_first(1e9 + 1000) == pytest.approx(rate.at(1e9 + 1000), rel=1e-3)


def test_a_first_bunch_is_no_flood() -> None:
    """P5, S8: neither at its moment nor on a clock that was set back."""
    rate = Rate(fades_s=100.0)
    assert rate.since_first(0.0) == 0.0
    for _ in range(100):
        rate.add(1.0, 50.0)
    assert rate.since_first(50.0) == rate.since_first(-1e9) == pytest.approx(4.0)


def test_with_many_slots_more_services_are_remembered() -> None:
    """P5: of what begins at once the short ones end first, so that the last 64 of many slots would all be long."""
    few, many = ServiceTimes(), ServiceTimes()
    many.keep(200)
    for times in (few, many):
        for number in range(1000):
            times.add(1.0 + number % 200 / 100, is_done=True)
    assert (len(few), len(many)) == (64, 800)
    assert many.mean_s == pytest.approx(2.0, abs=0.02)
    assert few.mean_s > 2.5
    many.keep(2)
    many.add(1.0, is_done=True)
    assert len(many) == 64


def test_a_single_outlier_does_not_move_the_mean() -> None:
    """P5, S8: a payload that hung until it was killed, after an hour."""
    times = ServiceTimes()
    for _ in range(30):
        times.add(1.0, is_done=True)
    times.add(3600.0, is_done=False)
    assert times.mean_s == pytest.approx(1.0)
    assert times.fastest_s == 1.0
    times.add(3600.0, is_done=False)
    assert times.mean_s > 100


def test_service_times_that_double_are_followed_within_as_many_as_are_remembered() -> None:
    """P5: half way after half of them."""
    times = ServiceTimes()
    for _ in range(500):
        times.add(1.0, is_done=True)
    for _ in range(32):
        times.add(2.0, is_done=True)
    assert times.mean_s == pytest.approx(1.5, abs=0.02)
    for _ in range(32):
        times.add(2.0, is_done=True)
    assert times.mean_s == pytest.approx(2.0)
