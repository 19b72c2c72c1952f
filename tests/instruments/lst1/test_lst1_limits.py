"""How far what is missing of a run could move its totals (P6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from thinning import SOME, drifting

from p3s_prefect.instruments.lst1.limits import missing_limits
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge
from p3s_prefect.instruments.lst1.trends import Kept

MISSING = 5
VALUES = ("pedestal", "pedestal_rms", "noise", "occupancy")


@pytest.fixture(scope="module")
def kept() -> Kept:
    """Six subruns of a run with a drift, which stand for seventeen."""
    parts = drifting(6, SOME)
    return Kept(parts=dict(enumerate(parts)), weights=dict(enumerate([1.0, 1.0, 2.0, 3.0, 4.0, 6.0])))


def with_missing(kept: Kept, *parts: PixelStatistics, weights: tuple[float, ...]) -> PixelStatistics:
    return merge([*kept.parts.values(), *parts], [*kept.weights.values(), *weights])


def between(kept: Kept, name: str, place: np.ndarray) -> np.ndarray:
    """From the lowest value of each pixel that was seen, at 0, to the highest, at 1."""
    seen = [getattr(part, name) for part in kept.parts.values()]
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    return np.asarray(low + place * (high - low))


def drawn(kept: Kept, random: np.random.Generator) -> PixelStatistics:
    """A subrun with values anywhere between those seen, often at the ends."""
    shape = kept.parts[0].pedestal.shape
    found = {name: between(kept, name, (3 * random.random(shape) - 1).clip(0, 1)) for name in VALUES}
    events = int(random.choice([part.events for part in kept.parts.values()]))
    return replace(kept.parts[0], events=events, pulses=events * found.pop("occupancy"), **found)


def test_whatever_is_missing_moves_the_totals_within_the_limits(kept: Kept) -> None:
    """P6: if it lies between what was seen, in every pixel on its own."""
    random, total = np.random.default_rng(5), with_missing(kept, weights=())
    found = missing_limits(kept, total, MISSING)
    assert found is not None
    for _ in range(200):
        lost = [drawn(kept, random) for _ in range(MISSING)]
        moved = with_missing(kept, *lost, weights=(1.0,) * MISSING)
        for name in ("events", *VALUES):
            assert np.all(getattr(found[0], name) <= getattr(moved, name) + 1e-9), name
            assert np.all(getattr(moved, name) <= getattr(found[1], name) + 1e-9), name


def test_the_limits_are_reached(kept: Kept) -> None:
    """P6: they are no wider than what is assumed of what is missing; the RMS by two kinds of subruns, far apart."""
    total, largest = with_missing(kept, weights=()), max(part.events for part in kept.parts.values())
    found = missing_limits(kept, total, MISSING)
    assert found is not None
    for place, limit in zip((0.0, 1.0), found, strict=True):
        values = {name: between(kept, name, np.full_like(total.pedestal, place)) for name in VALUES}
        pulses = largest * values.pop("occupancy")
        lost = replace(kept.parts[0], events=largest, pulses=pulses, **values)
        moved = with_missing(kept, lost, weights=(MISSING,))
        for name in ("pedestal", "noise", "occupancy"):
            np.testing.assert_allclose(getattr(moved, name), getattr(limit, name), rtol=1e-12)
    quiet = replace(
        kept.parts[0], events=largest, pedestal=total.pedestal, pedestal_rms=between(kept, "pedestal_rms", 0)
    )
    moved = with_missing(kept, quiet, weights=(MISSING,))
    np.testing.assert_allclose(moved.pedestal_rms, found[0].pedestal_rms, rtol=1e-12)
    ends = [
        replace(
            kept.parts[0],
            events=largest,
            pedestal=between(kept, "pedestal", place),
            pedestal_rms=between(kept, "pedestal_rms", 1),
        )
        for place in (0, 1)
    ]
    most = np.max(
        [
            with_missing(kept, *ends, weights=(MISSING * (1 - part), MISSING * part)).pedestal_rms
            for part in np.linspace(0, 1, 501)
        ],
        axis=0,
    )
    np.testing.assert_allclose(most, found[1].pedestal_rms, rtol=1e-5)
    assert (most <= found[1].pedestal_rms + 1e-9).all()


def test_nothing_moves_where_nothing_is_missing_and_one_subrun_tells_nothing(kept: Kept) -> None:
    """P6."""
    total = with_missing(kept, weights=())
    assert missing_limits(kept, total, 0.0) == (total, total)
    alone = Kept(parts={2: kept.parts[2]}, weights={2: 4.0})
    assert missing_limits(alone, merge([kept.parts[2]], [4.0]), 1.0) is None
