"""Run totals: what all subruns of a run would say together, from those that were taken.

Where subruns were left out at random, those that were taken count as often as they stand for others, and everything has
its error: the change of a value when one subrun is left away tells how much subruns differ, also for values that are no
simple means, such as a median over the camera. With weights w, n events in a subrun, and its share h of all w n,

.. math:: \\sum (1 - 1/w) (1 - h) (\\theta_{-i} - \\theta)^2

is the variance that the choice gives the value θ: the jackknife (B. Efron, C. Stein, Annals of Statistics 9 (1981) 586)
with the part of each subrun's variance that its choice makes. For a mean it is that of `p3s_prefect.core.weighting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.states import LEFT_OUT
from p3s_prefect.core.weighting import Sampled, missing_share, weighted_total
from p3s_prefect.instruments.lst1.displays import noise_display, pedestal_display
from p3s_prefect.instruments.lst1.distributions import distribution_display, noise_distribution
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge, without
from p3s_prefect.instruments.lst1.trends import Kept, trend_display

_OF_PIXELS = ("pedestal", "pedestal_rms", "noise", "occupancy")
# Counts of pixels and the number of one are no smooth functions of what was seen: the jackknife says nothing of them.
_SMOOTH = ("pedestal_median", "noise_median", "noise_max", "occupancy")

Scalars = dict[str, dict[str, float | int | str]]


def run_totals(
    pixel_statistics: Mapping[DataId, Mapping[str, np.ndarray]],
    unit: DataId,
    coverage: Mapping[str, int],
    weights: Mapping[str, Mapping[DataId, float]],
) -> dict[str, Any]:
    """Payload: the statistics of a run's subruns in, ``run_statistics`` (npz), summary values and pictures out.

    `coverage` tells how many subruns of the run that have arrived are in which state, `weights` how many of them each
    stands for; a subrun with a weight and without statistics has expired or failed.

    Raises:
        ValueError: no subrun of the run has statistics.
    """
    parts = {int(data_id["subrun"]): PixelStatistics.from_arrays(found) for data_id, found in pixel_statistics.items()}
    if not parts:
        raise ValueError(f"no subrun of {unit} has statistics")
    stands_for = {int(data_id["subrun"]): weight for data_id, weight in weights["pixel_statistics"].items()}
    kept = Kept(
        parts=dict(sorted(parts.items())),
        weights={number: stands_for[number] for number in sorted(parts)},
        missing=tuple(sorted(stands_for.keys() - parts.keys())),
    )
    total = merge(list(kept.parts.values()), list(kept.weights.values()))
    counts = share_covered(parts, coverage)
    left_out = int(counts["subruns_left_out"]["value"])
    gone = [
        *(stands_for[number] for number in kept.missing),
        *[1.0] * (known(parts, coverage) - sum(coverage.values())),
    ]
    errors, noise = choice_errors(kept, total, left_out), noise_distribution(kept, left_out, sum(gone))
    share = missing_share(kept.weights.values(), gone)
    summary = total.summary() | counts | uncertainties(kept, total, errors, share)
    heading = f"run {unit['run']} · {len(parts)} of {known(parts, coverage)} subruns, {kept.events} events"
    return {
        "run_statistics": total.arrays()
        | {f"{name}_error": errors[name] for name in _OF_PIXELS}
        | noise.arrays()
        | {"subrun": np.array(list(kept.parts)), "weight": np.array(list(kept.weights.values()))},
        "summary": summary,
        "products": [
            pedestal_display(Path("run_pedestal.png"), heading, total),
            noise_display(Path("run_noise.png"), heading, total),
            distribution_display(Path("noise_distribution.png"), heading, noise),
            trend_display(Path("trend.png"), heading, kept, summary),
        ],
    }


def choice_errors(kept: Kept, total: PixelStatistics, left_out: int) -> dict[str, np.ndarray]:
    """Standard errors that the choice of subruns gives what `total`, the merge of `kept`, says; by name.

    Of arrays: float64, of their shape and unit; of summary values: without a shape. 0 where all subruns were taken; NaN
    where a single one stands for others, or `left_out` were left out for which none stands.
    """
    values = _smooth_values(total)
    if (kept.thinned and len(kept.parts) == 1) or (left_out and not kept.thinned):
        return {name: np.full_like(value, np.nan) for name, value in values.items()}
    variances = {name: np.zeros_like(value) for name, value in values.items()}
    for number in kept.thinned:
        weight = kept.weights[number]
        rest = without(total, kept.parts[number], weight)
        factor = (1 - 1 / weight) * rest.events / total.events
        for name, value in _smooth_values(rest).items():
            variances[name] += factor * np.square(value - values[name])
    errors = {name: np.sqrt(variance) for name, variance in variances.items()}
    events = [Sampled(value=part.events, weight=kept.weights[number]) for number, part in kept.parts.items()]
    return errors | {"events": np.asarray(weighted_total(events).error, dtype=float)}


def _smooth_values(found: PixelStatistics) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(getattr(found, name)) for name in _OF_PIXELS}
    summary = {name: value["value"] for name, value in found.summary().items() if name.startswith(_SMOOTH)}
    return arrays | {name: np.asarray(value, dtype=float) for name, value in summary.items()}


def known(merged: Iterable[int], coverage: Mapping[str, int]) -> int:
    """How many subruns the run has, as far as is known: they count from 0, so a gap that was never seen is one."""
    return max(sum(coverage.values()), max(merged) + 1)


def share_covered(merged: Iterable[int], coverage: Mapping[str, int]) -> Scalars:
    """How many of the run's subruns are in the totals, and what became of the others.

    `merged` are the numbers of the subruns that are in them; `coverage` counts those that have arrived by state.
    """
    numbers = set(merged)
    expected = known(numbers, coverage)
    left_out = sum(coverage.get(state, 0) for state in LEFT_OUT)
    return {
        "subruns": {"value": len(numbers), "unit": ""},
        "subruns_left_out": {"value": left_out, "unit": ""},
        "subruns_missing": {"value": expected - len(numbers) - left_out, "unit": ""},
        "coverage": {"value": 100 * len(numbers) / expected, "unit": "%"},
    }


def uncertainties(kept: Kept, total: PixelStatistics, errors: Mapping[str, np.ndarray], share: float) -> Scalars:
    """The share that is missing, in %; the errors of what `total` says, if something was left out; and between which
    values what is missing could move it, if something is.
    """
    lowest, highest = (missing_limit(kept, total, share, extreme).summary() for extreme in (np.min, np.max))
    found: Scalars = {"missing_share": {"value": 100 * share, "unit": "%"}}
    for name, described in total.summary().items():
        if kept.thinned and np.isfinite(errors.get(name, np.nan)):
            found[f"{name}_error"] = {"value": float(errors[name]), "unit": described["unit"]}
        if share and name.startswith(_SMOOTH):
            found |= {f"{name}_lowest": lowest[name], f"{name}_highest": highest[name]}
    return found


def missing_limit(
    kept: Kept, total: PixelStatistics, share: float, extreme: Callable[..., np.ndarray]
) -> PixelStatistics:
    """`total`, if every pixel had its lowest, or its highest, value so far in all that is missing, a share of it."""

    def moved(mean: np.ndarray, each: list[np.ndarray]) -> np.ndarray:
        return np.asarray(mean + share * (extreme(each, axis=0) - mean))

    parts = list(kept.parts.values())
    return replace(
        total,
        pedestal=moved(total.pedestal, [part.pedestal for part in parts]),
        noise=np.sqrt(moved(total.noise**2, [part.noise**2 for part in parts])),
        pulses=total.events * moved(total.occupancy, [part.occupancy for part in parts]),
    )
