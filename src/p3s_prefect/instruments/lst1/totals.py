"""Run totals: what all subruns of a run would say together, from those that were taken.

Where subruns were left out at random, those that were taken count as often as they stand for others, and everything has
its error: the change of a value when one subrun is left away tells how much subruns differ, also for values that are no
simple means, such as a median over the camera. With weights w, n events in a subrun, and its share h of all w n,

.. math:: \\sum (1 - 1/w) (1 - h) (\\theta_{-i} - \\theta)^2

is the variance that the choice gives the value θ: the jackknife (B. Efron, C. Stein, Annals of Statistics 9 (1981) 586)
with the part of each subrun's variance that its choice makes. For a mean it is that of `p3s_prefect.core.weighting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.states import LEFT_OUT
from p3s_prefect.core.weighted_values import plus_minus
from p3s_prefect.core.weighting import ONE_VALUE, Sampled, missing_share, weighted_total
from p3s_prefect.instruments.lst1.camera import GAINS
from p3s_prefect.instruments.lst1.displays import medians, noise_display, pedestal_display
from p3s_prefect.instruments.lst1.distributions import distribution_display, noise_distribution
from p3s_prefect.instruments.lst1.limits import Limits, missing_limits
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

    Beside the arrays of `PixelStatistics`, ``run_statistics`` has of pedestal, pedestal_rms and noise, (2, 1855)
    float64, ADC counts, of occupancy, (2, 1855) float64, from 0 to 1, and of events, without a shape:

    - ``{name}_error``: see `choice_errors`; not of events, whose error is a summary value;
    - ``{name}_lowest`` and ``{name}_highest``: see `missing_limits`; the value where nothing is missing, NaN where a
      range is not known.

    Further those of `Distribution`, and ``subrun`` and ``weight``, one for each subrun that was taken.

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
    share, limits = missing_share(kept.weights.values(), gone), missing_limits(kept, total, sum(gone))
    summary = total.summary() | counts | uncertainties(kept, total, errors, limits, share)
    heading = f"run {unit['run']} · {len(parts)} of {known(parts, coverage)} subruns, {kept.events} events"
    # The other two pictures have it in their margins.
    camera_heading = f"{heading}, {100 * share:.2g} % missing" if share else heading
    return {
        "run_statistics": total.arrays()
        | {f"{name}_error": errors[name] for name in _OF_PIXELS}
        | _ranges(total, limits)
        | noise.arrays()
        | {"subrun": np.array(list(kept.parts)), "weight": np.array(list(kept.weights.values()))},
        "summary": summary,
        "products": [
            pedestal_display(
                Path("run_pedestal.png"), camera_heading, total, told_medians("pedestal", total, errors, summary)
            ),
            noise_display(Path("run_noise.png"), camera_heading, total, told_medians("noise", total, errors, summary)),
            distribution_display(Path("noise_distribution.png"), heading, noise),
            trend_display(Path("trend.png"), heading, kept, summary),
        ],
    }


def told_medians(name: str, total: PixelStatistics, errors: Mapping[str, np.ndarray], summary: Scalars) -> list[str]:
    """The median of each gain for a title: with its error where something was left out, and where what is missing could
    move it.
    """
    texts = medians(getattr(total, name))
    for gain, gain_name in enumerate(GAINS):
        key = f"{name}_median_{gain_name}_gain"
        error = float(errors[key])
        if error:
            texts[gain] = f"median {plus_minus(float(summary[key]['value']), error)} ADC"
        if f"{key}_lowest" in summary:
            low, high = (float(summary[f"{key}_{extreme}"]["value"]) for extreme in ("lowest", "highest"))
            texts[gain] += f"\nwith what is missing from {low:.4g} to {high:.4g} ADC"
        elif "missing_range" in summary:
            texts[gain] += "\nwith what is missing not known from one subrun"
    return texts


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


def uncertainties(
    kept: Kept, total: PixelStatistics, errors: Mapping[str, np.ndarray], limits: Limits | None, share: float
) -> Scalars:
    """The share that is missing, in %; the errors of what `total` says, if something was left out; and between which
    values what is missing could move it, if something is, or why that is not known.
    """
    found: Scalars = {"missing_share": {"value": 100 * share, "unit": "%"}}
    if limits is None:
        found["missing_range"] = {"value": f"not known: {ONE_VALUE}", "unit": ""}
    extremes = {} if limits is None else {"lowest": limits[0].summary(), "highest": limits[1].summary()}
    for name, described in total.summary().items():
        if kept.thinned and np.isfinite(errors.get(name, np.nan)):
            found[f"{name}_error"] = {"value": float(errors[name]), "unit": described["unit"]}
        if share and name.startswith(("events", *_SMOOTH)):
            found |= {f"{name}_{extreme}": values[name] for extreme, values in extremes.items()}
    return found


def _ranges(total: PixelStatistics, limits: Limits | None) -> dict[str, np.ndarray]:
    """The arrays of `limits`, by name; NaN where there are none."""
    found = {}
    for name in ("events", *_OF_PIXELS):
        unknown = np.full_like(getattr(total, name), np.nan, dtype=float)
        for place, extreme in enumerate(("lowest", "highest")):
            found[f"{name}_{extreme}"] = unknown if limits is None else np.asarray(getattr(limits[place], name))
    return found
