"""How far what is missing of a run could move its totals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from p3s_prefect.core.weighting import missing_share
from p3s_prefect.instruments.lst1.pixels import PixelStatistics
from p3s_prefect.instruments.lst1.trends import Kept

Limits = tuple[PixelStatistics, PixelStatistics]
"""Totals as low, and as high, as what is missing could make them."""


def missing_limits(kept: Kept, total: PixelStatistics, missing: float) -> Limits | None:
    """`total` as low, and as high, as it would be if what is missing, so many subruns by weight, were like that.

    Each of those is assumed to lie between the lowest and the highest that was seen, in its number of events and, pixel
    by pixel, in pedestal, RMS, noise and occupancy; the means are moved by their share of the events if all were as
    large as the largest. None where a single subrun was seen, which does not tell how much they differ.
    """
    if not missing:
        return total, total
    parts = list(kept.parts.values())
    if len(parts) == 1:
        return None
    sizes = [part.events for part in parts]
    share = missing_share([total.events], [missing * max(sizes)])

    def moved(mean: np.ndarray, each: list[np.ndarray], extreme: Callable[..., np.ndarray]) -> np.ndarray:
        return np.asarray((1 - share) * mean + share * extreme(each, axis=0))

    def limit(size: float, rms: np.ndarray, extreme: Callable[..., np.ndarray]) -> PixelStatistics:
        events = total.events + missing * size
        return replace(
            total,
            events=events,
            pedestal=moved(total.pedestal, [part.pedestal for part in parts], extreme),
            pedestal_rms=rms,
            noise=np.sqrt(moved(total.noise**2, [part.noise**2 for part in parts], extreme)),
            pulses=events * moved(total.occupancy, [part.occupancy for part in parts], extreme),
        )

    least, most = _rms_limits(parts, total, share)
    return limit(min(sizes), least, np.min), limit(max(sizes), most, np.max)


def _rms_limits(parts: list[PixelStatistics], total: PixelStatistics, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest `pedestal_rms`, (2, 1855), ADC counts, if a share f of the events is missing.

    With the RMS R and the pedestal of `total`, and in what is missing the mean of the squared RMS b², the mean a and
    the variance v of the pedestals' distances from that of `total`,

    .. math:: (1 - f) R^2 + f (b^2 + v) + f (1 - f) a^2

    is the square of all. It is least for the smallest b without any distance. Distances between l < 0 and h > 0 have at
    a given a the largest v = (a - l)(h - a) if they are l and h only, and then a = (l + h)/2f makes most of it.
    """
    squares = [np.square(part.pedestal_rms) for part in parts]
    pedestals = [part.pedestal for part in parts]
    low, high = np.min(pedestals, axis=0) - total.pedestal, np.max(pedestals, axis=0) - total.pedestal
    mean = ((low + high) / (2 * share)).clip(low, high)
    present = (1 - share) * np.square(total.pedestal_rms)
    apart = (mean - low) * (high - mean) + (1 - share) * np.square(mean)
    return (
        np.sqrt(present + share * np.min(squares, axis=0)),
        np.sqrt(present + share * (np.max(squares, axis=0) + apart)),
    )
