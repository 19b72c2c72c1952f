"""Weighted values of real events under a drift: over many seeds, stated errors cover as they say (P6)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from thinning import PIXELS, UNITS, Chances, controlled, falling, numbers, thirds, values

from p3s_prefect.core.weighting import Estimate, Sampled, weighted_histogram, weighted_mean, weighted_total

SEEDS = 300
CONFIDENCES = (0.68, 0.95)

Coverage = dict[float, np.ndarray]


def thinned_twice(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of two stages: a prescale that is changed twice, and a controller for what it leaves.

    In the first third the prescale is the stricter one, in the last the controller.
    """
    first = np.broadcast_to(thirds(0.15, 0.9, 0.3), u.shape)
    return first, controlled(thirds(1.0, 1.0, 0.12))(np.where(u < first, u, 2.0))


def estimates(kept: np.ndarray, weights: np.ndarray) -> list[list[Estimate]]:
    """Of each seed and pixel the mean over all units, from those that were kept."""
    x = values()
    return [
        [
            weighted_mean(
                [Sampled(value=x[unit, pixel], weight=weights[seed, unit]) for unit in np.flatnonzero(chosen)]
            )
            for pixel in range(len(PIXELS))
        ]
        for seed, chosen in enumerate(kept)
    ]


def covered(found: list[list[Estimate]]) -> Coverage:
    """For each confidence and pixel: the share of the seeds whose interval holds the mean of all units."""
    truth = values().mean(axis=0)
    shares: Coverage = {}
    for confidence in CONFIDENCES:
        edges = np.array([[one.interval(confidence) for one in row] for row in found], dtype=float)
        # Where nothing is left out, the interval is a point, and rounding remains.
        inside = (edges[..., 0] <= truth + 1e-9) & (truth - 1e-9 <= edges[..., 1])
        shares[confidence] = inside.mean(axis=0)
    return shares


def must_cover(shares: Coverage) -> None:
    for confidence, found in shares.items():
        tolerance = 3.5 * math.sqrt(confidence * (1 - confidence) / SEEDS)
        assert np.abs(found - confidence).max() < tolerance, (confidence, found)


@pytest.mark.parametrize("q", [0.05, 0.1, 0.3, 0.7])
def test_errors_cover_as_they_say_at_a_fixed_probability(q: float) -> None:
    """P6, P4."""
    u = numbers(SEEDS, seed=11)
    must_cover(covered(estimates(u < q, np.full_like(u, 1 / q))))


def test_at_a_probability_of_one_the_value_is_that_of_all() -> None:
    """P6."""
    (found,) = estimates(np.ones((1, UNITS), dtype=bool), np.ones((1, UNITS)))
    assert [one.error for one in found] == [0.0] * len(PIXELS)
    np.testing.assert_allclose([one.value for one in found], values().mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    "chances",
    [controlled(falling(1.0)), controlled(falling(0.3)), controlled(falling(0.1), least=0.2)],
    ids=["slowly falling short", "soon short", "at its floor"],
)
def test_errors_cover_as_they_say_under_a_controller(chances: Chances) -> None:
    """P6, P5: q follows what was kept before, and the load follows what is measured."""
    u = numbers(SEEDS, seed=12)
    q = chances(u)
    assert np.ptp(q) > 0.5
    must_cover(covered(estimates(u < q, 1 / q)))


def test_errors_cover_as_they_say_after_two_stages() -> None:
    """P6, P5: the weight is the inverse of the smaller q, as one number u serves both stages."""
    u = numbers(SEEDS, seed=13)
    q = np.minimum(*thinned_twice(u))
    must_cover(covered(estimates(u < q, 1 / q)))


def _as_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return 1 / (first * second)


def _last_only(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return 1 / second


def _equal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """No weights: the same for all, so that the error is that of a random sample of this size."""
    kept = np.minimum(first, second)
    return np.full_like(kept, 1 / kept.mean())


@pytest.mark.parametrize("wrong", [_as_product, _last_only, _equal])
def test_other_weights_are_wrong(wrong: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """P6: with the product of the q, with the last q alone or without weights, most errors do not reach the truth."""
    u = numbers(SEEDS, seed=13)
    first, second = thinned_twice(u)
    shares = covered(estimates(u < np.minimum(first, second), wrong(first, second)))
    assert np.median(shares[0.68]) < 0.68 / 2, shares
    assert np.median(shares[0.95]) < 0.95 / 2, shares


def test_totals_are_right_on_average_and_cover() -> None:
    """P6: the number of units is known, so it tells on weights; with the product of the q it would be far off."""
    u = numbers(SEEDS, seed=14)
    first, second = thinned_twice(u)
    q = np.minimum(first, second)
    found = [
        weighted_total([Sampled(value=1.0, weight=1 / one) for one in row[row > 0]]) for row in np.where(u < q, q, 0)
    ]
    pulls = np.array([(one.value - UNITS) / one.error for one in found if one.error])
    assert len(pulls) == SEEDS
    assert abs(pulls.mean()) < 3.5 / math.sqrt(SEEDS)
    assert pulls.std() == pytest.approx(1, abs=3.5 / math.sqrt(2 * SEEDS))
    by_product = np.where(u < q, 1 / (first * second), 0).sum(axis=1)
    assert by_product.mean() > 1.2 * UNITS


def test_histograms_cover_bin_by_bin() -> None:
    """P6: each unit adds its own histogram of pixels; what it counts came through one choice."""
    x = values()
    edges = np.quantile(x, [0, 0.2, 0.5, 0.8, 1])
    counts = np.array([np.histogram(row, edges)[0] for row in x], dtype=float)
    u = numbers(SEEDS, seed=15)
    q = controlled(falling(0.4), least=0.1)(u)
    inside = np.zeros(counts.shape[1])
    for kept, chance in zip(u < q, q, strict=True):
        found = weighted_histogram([(counts[unit], 1 / chance[unit]) for unit in np.flatnonzero(kept)])
        pairs = [one.interval(0.68) or (0.0, 0.0) for one in found]
        inside += [low <= total <= high for (low, high), total in zip(pairs, counts.sum(axis=0), strict=True)]
    assert np.abs(inside / SEEDS - 0.68).max() < 3.5 * math.sqrt(0.68 * 0.32 / SEEDS)


def test_the_stated_error_is_how_far_the_value_is_off() -> None:
    """P6: the stated error is, on average, how far the value is off."""
    u, q = numbers(SEEDS, seed=16), 0.2
    found = estimates(u < q, np.full_like(u, 1 / q))
    off = np.array([[one.value for one in row] for row in found]) - values().mean(axis=0)
    stated = np.array([[one.error for one in row] for row in found], dtype=float)
    np.testing.assert_allclose(np.sqrt((off**2).mean(axis=0)), np.sqrt((stated**2).mean(axis=0)), rtol=0.15)
