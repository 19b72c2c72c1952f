"""Values of many units as one, and how they are told (P6)."""

from __future__ import annotations

import json
import math

import pytest

from p3s_prefect.core.views import plain
from p3s_prefect.core.weighted_values import Outcomes, WeightedValue, plus_minus, weighted_value


# Two digits of the error, and as many of the value.
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (411.54321, 0.4567, "411.54 ± 0.46"),
        (411.54321, 4.567, "411.5 ± 4.6"),
        (411.54321, 45.67, "412 ± 46"),
        (411.54321, 0.0, "411.5 ± 0"),
        (411.54321, None, "411.5 ± ?"),
        (0.0000123456, 0.0000000123, "1.235e-05 ± 1.2e-08"),
        (5.4321e12, 3.21e10, "5.432e+12 ± 3.2e+10"),
        (-3.0, 0.25, "-3.00 ± 0.25"),
        (411.5, math.nan, "411.5 ± ?"),
        (411.5, math.inf, "411.5 ± ?"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error_deserves(value: float, error: float | None, text: str) -> None:
    assert plus_minus(value, error) == text


def made(given: list[tuple[float | int | str | bool, float]], *runs: tuple[str, float]) -> WeightedValue | None:
    return weighted_value("dqm", "quick", "noise", "ADC", given, Outcomes.of(runs))


def test_every_way_not_to_be_done_is_told_apart() -> None:
    """P6, P7: random, open, and missing in each of its states."""
    states = ["prescaled", "shed", "waiting", "queued", "running", "held"]
    lost = ["expired", "failed", "blocked", "superseded", "cancelled"]
    found = made([(1.0, 2.0), (3.0, 2.0)], *((state, 0.5) for state in ["done", "done", *states, *lost]))
    assert found is not None
    assert (found.seen, found.left_out, found.open) == (13, 2, 4)
    assert dict(found.missing) == dict.fromkeys(sorted(lost), 1)
    assert found.missing_share == pytest.approx(5 / 7)
    assert (found.lowest, found.highest) == (pytest.approx(2 / 7 * 2 + 5 / 7 * 1), pytest.approx(2 / 7 * 2 + 5 / 7 * 3))


def test_texts_have_no_value_of_all_and_truth_values_a_share() -> None:
    """P6."""
    assert made([("good", 1.0)], ("done", 1.0)) is None
    assert made([], ("failed", 1.0)) is None
    share = made([(True, 2.0), (False, 2.0)], ("done", 0.5), ("done", 0.5), ("expired", 0.5), ("shed", 0.5))
    assert share is not None
    assert (share.is_share, share.estimate.value) == (True, 0.5)
    # Two of three by weight are known; the third is true or not.
    assert (share.lowest, share.highest) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


@pytest.mark.parametrize("value", [4.0, 4])
def test_one_value_shows_no_range_for_what_is_missing(value: float) -> None:
    """P6: its own smallest and largest would be a point, as if what is missing could move nothing."""
    lone = made([(value, 1.0)], ("done", 1.0), ("expired", 1.0))
    assert lone is not None
    assert (lone.lowest, lone.highest, lone.missing_share) == (None, None, 0.5)
    assert (
        lone.range_text
        == f"not known: {lone.range_reason}"
        == "not known: one value does not tell how much they differ"
    )
    assert json.loads(json.dumps(plain(lone)))["lowest"] is None
    several = made([(value, 1.0), (6.0, 1.0)], ("done", 1.0), ("done", 1.0), ("expired", 1.0))
    assert several is not None
    assert (several.range_text, several.range_reason) == ("4.667 to 5.333", "")


def test_one_value_has_its_range_where_its_limits_are_known_or_nothing_is_missing() -> None:
    """P6."""
    share = made([(True, 1.0)], ("done", 1.0), ("expired", 1.0))
    whole = made([(4.0, 1.0)], ("done", 1.0))
    assert share is not None
    assert whole is not None
    assert share.range_text == "0.5 to 1"
    assert (whole.lowest, whole.highest, whole.range_text) == (4.0, 4.0, "")


def test_the_largest_values_can_still_be_written() -> None:
    """S8: JSON knows no infinity."""
    found = made([(1.7e308, 1e6), (-1.7e308, 1e6)], ("done", 1e-6), ("done", 1e-6), ("failed", 1e-6))
    assert found is not None
    json.dumps(plain(found), allow_nan=False)
