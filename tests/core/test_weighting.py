"""Weighted values: their formulas against independent ones, their errors against many simulated choices."""

from __future__ import annotations

import json
import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.weighting import (
    Sampled,
    missing_range,
    missing_share,
    missing_total_range,
    student_quantile,
    weighted_fraction,
    weighted_histogram,
    weighted_mean,
    weighted_total,
)

WEIGHTS = st.floats(min_value=1, max_value=1e6)
VALUES = st.floats(allow_nan=False, allow_infinity=False)


def sampled(*pairs: tuple[float, float]) -> list[Sampled]:
    return [Sampled(value=value, weight=weight) for value, weight in pairs]


# --- formulas -------------------------------------------------------------------------------------------------------


def test_equal_weights_are_simple_random_sampling() -> None:
    """P6: with a share f taken of all, the error is that of the textbook: s sqrt((1 - f)/n)."""
    values = [4.0, 7.0, 1.0, 9.5, 3.25]
    found = weighted_mean(sampled(*((value, 4.0) for value in values)), left_out=15)
    assert found.value == pytest.approx(fmean(values), rel=1e-14)
    assert found.error == pytest.approx(stdev(values) * math.sqrt((1 - 0.25) / 5), rel=1e-14)
    assert (found.sampled, found.effective, found.freedom) == (5, pytest.approx(5), pytest.approx(4))


def test_unequal_weights_by_hand() -> None:
    """P6: three values, by fractions: total 1*3 + 2*5 + 4*1 = 17, its variance 0*9 + 2*25 + 12*1 = 62, mean 17/7."""
    sample = sampled((3, 1), (5, 2), (1, 4))
    total = weighted_total(sample)
    assert (total.value, total.error) == (17.0, pytest.approx(math.sqrt(62), rel=1e-14))
    mean = weighted_mean(sample)
    # The residuals are 18/7 and -10/7 with 2 and 12 as (1 - q)/q², and 5/7 and 3/7 as what is not theirs of the weight.
    variance = (2 * (18 / 7) ** 2 / (5 / 7) + 12 * (10 / 7) ** 2 / (3 / 7)) / 49
    assert (mean.value, mean.error) == (pytest.approx(17 / 7), pytest.approx(math.sqrt(variance), rel=1e-14))
    assert mean.effective == pytest.approx(49 / 21)


def test_the_error_of_a_mean_is_that_of_leaving_one_value_away() -> None:
    """P6: Σ(1 - q)(1 - h)(mean without one - mean)², the form in which payloads have it for other values than means."""
    sample = sampled((3, 1), (5, 2), (1, 4), (2.5, 8), (-1, 2))
    whole, weight = weighted_mean(sample), sum(one.weight for one in sample)
    variance = 0.0
    for place, one in enumerate(sample):
        rest = weighted_mean(sample[:place] + sample[place + 1 :])
        variance += (1 - 1 / one.weight) * (1 - one.weight / weight) * (rest.value - whole.value) ** 2
    assert whole.error == pytest.approx(math.sqrt(variance), rel=1e-12)


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_where_nothing_was_left_out_there_is_no_error(values: list[float]) -> None:
    """P6: q = 1 for all."""
    sample = sampled(*((value, 1.0) for value in values))
    for found in (weighted_mean(sample), weighted_total(sample)):
        assert (found.error, found.reason) == (0.0, "")
    assert min(values) <= weighted_mean(sample).value <= max(values) or weighted_mean(sample).value == pytest.approx(
        min(values), rel=1e-12
    )


@given(st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=6), st.integers(0, 3))
def test_whatever_comes_a_mean_can_be_told_and_written(pairs: list[tuple[float, float]], left_out: int) -> None:
    """S8: the error is a finite number, or there is none and a reason why."""
    found = weighted_mean(sampled(*pairs), left_out=left_out)
    json.dumps([found.value, found.error, found.effective, found.freedom], allow_nan=False)
    assert (found.error is None) == bool(found.reason)
    assert found.error is None or found.error >= 0
    assert 1 <= found.effective <= len(pairs) * (1 + 1e-9)


def test_few_values_tell_why_they_have_no_error() -> None:
    """P6: an error of 0 would say that nothing was left out."""
    alone = weighted_mean(sampled((4, 10)))
    assert (alone.value, alone.error, alone.interval()) == (4.0, None, None)
    assert "one value does not tell" in alone.reason
    blind = weighted_mean(sampled((4, 1), (5, 1)), left_out=7)
    assert blind.error is None
    assert "none that was taken stands for others" in blind.reason
    assert weighted_total(sampled((4, 1)), left_out=1).error is None
    assert weighted_mean(sampled((4, 1))).error == 0.0


def test_a_total_of_nothing() -> None:
    assert (weighted_total([]).value, weighted_total([]).error) == (0.0, 0.0)
    unseen = weighted_total(sampled((0, 5), (0, 5)), left_out=8)
    assert (unseen.value, unseen.error) == (0.0, None)
    assert "nothing of it was seen" in unseen.reason


def test_a_share_of_which_all_were_seen_is_not_certain() -> None:
    """P6: five of five that stand for fifty do not say that all fifty are so."""
    found = weighted_fraction(sampled(*[(1, 10)] * 5), left_out=45)
    assert found.value == 1.0
    assert found.error == pytest.approx(math.sqrt(0.9 / 5 * (5.5 / 6) * (0.5 / 6)))
    half = sampled((1, 4), (0, 4))
    assert weighted_fraction(half) == weighted_mean(half)
    with pytest.raises(ValueError, match="truth values"):
        weighted_fraction(sampled((0.5, 1)))


def test_histograms_are_added_up_with_an_error_for_each_bin() -> None:
    """P6: a bin in which a unit counts several times was still chosen once."""
    found = weighted_histogram([((3, 0, 1), 2.0), ((0, 0, 5), 4.0), ((2, 0, 0), 1.0)], left_out=4)
    assert [one.value for one in found] == [8.0, 0.0, 22.0]
    assert found[0].error == pytest.approx(math.sqrt(2 * 3**2))
    assert found[1].error is None
    assert found[2].error == pytest.approx(math.sqrt(2 * 1**2 + 12 * 5**2))
    with pytest.raises(ValueError, match="shorter"):
        weighted_histogram([((1, 2), 1.0), ((1,), 1.0)])


def test_no_value_and_no_weight_are_refused() -> None:
    """S8."""
    with pytest.raises(ValueError, match="no values have no mean"):
        weighted_mean([])
    for weight in (0.5, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="not the inverse of a probability"):
            Sampled(value=1.0, weight=weight)
    with pytest.raises(ValueError, match="not finite"):
        Sampled(value=math.nan)


def test_what_is_missing_moves_a_mean_within_its_share() -> None:
    """P6: ten values of which two expired: their mean is that of all, if the two were known."""
    values = [float(value) for value in range(10)]
    share = missing_share([1.0] * 8, [1.0] * 2)
    assert share == pytest.approx(0.2)
    lowest, highest = missing_range(fmean(values[:8]), share, 0.0, 9.0)
    assert lowest == pytest.approx(fmean([*values[:8], 0.0, 0.0]))
    assert highest == pytest.approx(fmean([*values[:8], 9.0, 9.0]))
    assert (missing_share([], []), missing_share([], [2.0])) == (0.0, 1.0)
    assert missing_total_range(sum(values[:8]), 2.0, 0.0, 9.0) == (sum(values[:8]), sum([*values[:8], 9.0, 9.0]))


# From the tables of the Student distribution.
@pytest.mark.parametrize(
    ("freedom", "at_84", "at_975"),
    [(2, 1.3115, 4.3027), (3, 1.1889, 3.1824), (5, 1.1037, 2.5706), (10, 1.0464, 2.2281), (1e9, 0.99446, 1.95996)],
)
def test_quantiles_of_student(freedom: float, at_84: float, at_975: float) -> None:
    assert student_quantile(0.84, freedom) == pytest.approx(at_84, rel=0.01)
    assert student_quantile(0.975, freedom) == pytest.approx(at_975, rel=0.01)
    assert student_quantile(0.5, freedom) == 0.0
