"""Runs of real events with a drift, and choices of their units as overload makes them, over many seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from p3s_prefect.instruments.lst1.pixels import PixelStatistics, pixel_statistics
from p3s_prefect.instruments.lst1.sample import sample

UNITS = 900
PIXELS = (0, 465, 900, 1854)
"""In the centre, at a star, anywhere, at the edge."""
# Every 31st pixel, and the brightest star.
SOME = np.unique([*range(0, 1855, 31), 465])

Chances = Callable[[np.ndarray], np.ndarray]
"""From the numbers u [seed, unit] to the probabilities q [seed, unit], each set before its unit's u is looked at."""


@lru_cache(maxsize=1)
def values() -> np.ndarray:
    """[unit, pixel], ADC counts: mean baseline of the high gain in a real event, and a drift as of a warming camera."""
    events = sample().waveform[:, 0, :, 2:12].mean(axis=-1)[:, list(PIXELS)]
    drawn = events[np.random.default_rng(2008).integers(0, len(events), UNITS)]
    return np.asarray(drawn + 60.0 * (progress() ** 2)[:, None])


def progress() -> np.ndarray:
    """Where in the run each unit is, from 0 to 1."""
    return np.arange(UNITS) / (UNITS - 1)


def numbers(seeds: int, *, seed: int = 1) -> np.ndarray:
    """The number u of each unit, [seed, unit]."""
    return np.random.default_rng(seed).random((seeds, UNITS))


def falling(capacity: float) -> np.ndarray:
    """Slots that come free for each unit: a tenth at the end of what there is at the beginning."""
    return np.asarray(capacity * (1 - 0.9 * progress()))


def thirds(*values: float) -> np.ndarray:
    """One value for each third of the run."""
    return np.repeat(values, UNITS // 3)


def controlled(free: np.ndarray, *, least: float = 0.05) -> Chances:
    """An admission that follows the backlog, which follows what was admitted. Units take a slot each; `free` [unit]."""

    def chances(u: np.ndarray) -> np.ndarray:
        backlog, q = np.zeros(len(u)), np.empty_like(u)
        for unit in range(UNITS):
            q[:, unit] = np.clip(1.2 - backlog / 10, least, 1.0)
            backlog = np.maximum(0.0, backlog + (u[:, unit] < q[:, unit]) - free[unit])
        return q

    return chances


def drifting(subruns: int, pixels: np.ndarray) -> list[PixelStatistics]:
    """Statistics of subruns of 4 to 12 real events, drawn at random, whose pedestal and noise rise with time."""
    random, waveform = np.random.default_rng(7), sample().waveform[:, :, pixels].astype(float)
    middle = waveform.mean(axis=-1, keepdims=True)
    found = []
    for subrun in range(subruns):
        drawn = random.integers(0, len(waveform), random.integers(4, 13))
        rise = (subrun / subruns) ** 2
        found.append(pixel_statistics(middle[drawn] + 20 * rise + (1 + rise) * (waveform - middle)[drawn]))
    return found
