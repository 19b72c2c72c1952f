"""Durations, rates and service times as people write them."""

import math
import statistics

import pytest

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.quantities import rate_hz, read_duration, seconds, size_bytes
from p3s_prefect.core.service_times import chance, drawn_from, service_times

# Middles of a thousand equal shares: sums over them are integrals by the rule of midpoints.
_SHARES = [(place + 0.5) / 1000 for place in range(1000)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("2.5", 2.5),
        ("500ms", 0.5),
        ("34s", 34.0),
        ("10min", 600.0),
        ("1h30min", 5400.0),
        ("0s", 0.0),
    ],
)
def test_durations(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", [-1, True, None, "", "s", "-3s", "3 parsecs", "1e400", float("nan"), [3]])
def test_what_is_no_duration(text: object) -> None:
    """S8."""
    with pytest.raises(BadName, match="duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("500ms", 0.5), ("30min", 1800), ("2h", 7200), ("1d", 86_400), ("1h 30min", 5400), ("0.5h", 1800)],
)
def test_durations_as_people_write_them(text: str, expected: float) -> None:
    """S9."""
    assert read_duration(text) == expected


@pytest.mark.parametrize("text", ["", "2", "two hours", "2h later", "0s", "-3s", "99999d", "1e3s", "nan"])
def test_a_period_of_nothing_or_without_its_unit_is_refused_with_an_example(text: str) -> None:
    """S8."""
    with pytest.raises(BadName) as refused:
        read_duration(text)
    assert refused.value.fix


@pytest.mark.parametrize(
    ("text", "expected"), [("5/s", 5.0), ("300/min", 5.0), ("18 / h", 0.005), ("2Hz", 2.0), ("1.5 kHz", 1500.0)]
)
def test_rates(text: str, expected: float) -> None:
    assert rate_hz(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["0/s", "-5/s", "5", 5, "five/s", "5/fortnight", None])
def test_what_is_no_rate(text: object) -> None:
    """S8: among them a rate of zero, at which nothing would come."""
    with pytest.raises(BadName):
        rate_hz(text)


@pytest.mark.parametrize(
    ("text", "mean_s", "deviation_s"),
    [
        ("1.2s", 1.2, 0.0),
        (1.2, 1.2, 0.0),
        ("exponential:1.2s", 1.2, 1.2),
        ("gamma:1.2s,0.3", 1.2, 0.36),
        ("lognormal:1.2s,0.5", 1.2, 1.2 * math.sqrt(math.exp(0.25) - 1)),
    ],
)
def test_service_times_have_the_mean_and_spread_that_they_say(text: object, mean_s: float, deviation_s: float) -> None:
    """P21: the moments of the distributions as textbooks have them."""
    drawn = [service_times(text).quantile_s(share) for share in _SHARES]
    assert drawn == sorted(drawn)
    assert statistics.mean(drawn) == pytest.approx(mean_s, rel=0.01)
    assert statistics.pstdev(drawn) == pytest.approx(deviation_s, rel=0.05)


@pytest.mark.parametrize(
    "text",
    ["0s", 0, "-1s", "lognormal:1s", "gamma:1s,0", "constant:1s,2", "lognormal:1s,60", "weibull:1s,2", "9000d", ""],
)
def test_service_times_that_cannot_be(text: object) -> None:
    """S8: zero, without a spread, with one that has no meaning, of no known form, or longer than a year."""
    with pytest.raises(BadName):
        service_times(text)


def test_chance_is_even_and_depends_on_its_words_only() -> None:
    """P21: both policies meet the same unit with the same luck."""
    drawn = [chance(1, "quick", number) for number in range(4000)]
    assert drawn == [chance(1, "quick", number) for number in range(4000)]
    assert drawn != [chance(2, "quick", number) for number in range(4000)]
    # Five standard deviations of the mean of 4,000 even numbers.
    assert abs(statistics.mean(drawn) - 0.5) < 5 / math.sqrt(12 * 4000)
    assert [drawn_from((1.0, 2.0, 4.0), share) for share in (0.0, 0.34, 0.999)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(0, 0), (12, 12), ("12 B", 12), ("2kB", 2000), ("1.5 GB", 1_500_000_000), (" 4 GiB ", 2**32), ("0 B", 0)],
)
def test_sizes(text: object, expected: int) -> None:
    """V3."""
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", [-1, 1.5, True, None, "", "12", "GB", "-2 GB", "2 gb", "2 parsecs", "1e400 B", [3]])
def test_what_is_no_size(text: object) -> None:
    """S8: with an example."""
    with pytest.raises(BadName, match="size") as refused:
        size_bytes(text)
    assert "GB" in refused.value.fix
