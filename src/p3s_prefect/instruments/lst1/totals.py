"""Run totals: what all subruns of a run say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from p3s_prefect.core.data_id import DataId
from p3s_prefect.instruments.lst1.camera import GAINS
from p3s_prefect.instruments.lst1.displays import noise_display, pedestal_display, save_png
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge

_COLOURS = ("#0072B2", "#D55E00")  # blue and vermilion of M. Okabe and K. Ito's set for any colour vision


def run_totals(
    pixel_statistics: Mapping[DataId, Mapping[str, np.ndarray]], unit: DataId, coverage: Mapping[str, int]
) -> dict[str, Any]:
    """Payload: the statistics of a run's subruns in, ``run_statistics`` (npz), summary values and pictures out.

    `coverage` tells how many subruns of the run that have arrived are in which state.

    Raises:
        ValueError: no subrun of the run has statistics.
    """
    parts = {
        int(data_id["subrun"]): PixelStatistics.from_arrays(arrays) for data_id, arrays in pixel_statistics.items()
    }
    if not parts:
        raise ValueError(f"no subrun of {unit} has statistics")
    total = merge(list(parts.values()))
    heading = f"run {unit['run']} · {len(parts)} subruns, {total.events} events"
    products = [
        pedestal_display(Path("run_pedestal.png"), heading, total),
        noise_display(Path("run_noise.png"), heading, total),
        trend_display(Path("trend.png"), heading, parts),
    ]
    return {
        "run_statistics": total.arrays() | {"subrun": np.array(sorted(parts))},
        "summary": total.summary() | share_covered(parts, sum(coverage.values())),
        "products": products,
    }


def share_covered(merged: Iterable[int], seen: int) -> dict[str, dict[str, float | int | str]]:
    """How much of the run is in the totals.

    `merged` are the numbers of the subruns that are in them, and `seen` is how many of the run have arrived. Subruns
    count from 0, so a gap below the last one that was merged is missing too, though it was never seen.
    """
    numbers = set(merged)
    expected = max(seen, max(numbers) + 1)
    return {
        "subruns": {"value": len(numbers), "unit": ""},
        "subruns_missing": {"value": expected - len(numbers), "unit": ""},
        "coverage": {"value": 100 * len(numbers) / expected, "unit": "%"},
    }


def trend_display(path: Path, heading: str, parts: Mapping[int, PixelStatistics]) -> dict[str, str]:
    """Draws median pedestal and noise over the subruns, and describes the picture as a product."""
    figure = Figure(figsize=(8, 4.6), dpi=100)
    figure.suptitle(f"Trend · {heading}", fontsize=12, fontweight="bold", y=0.97)
    subruns = sorted(parts)
    for place, (name, label) in enumerate(
        (("pedestal", "median pedestal [ADC]"), ("noise", "median noise, RMS [ADC]"))
    ):
        axes = figure.add_axes((0.1, 0.52 - 0.41 * place, 0.73, 0.36))
        for gain, gain_name in enumerate(GAINS):
            values = [float(np.median(getattr(parts[subrun], name)[gain])) for subrun in subruns]
            axes.plot(subruns, values, marker="os"[gain], color=_COLOURS[gain], label=f"{gain_name} gain")
        axes.set(ylabel=label, xlim=(subruns[0] - 0.5, subruns[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=bool(place))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.axes[-1].set_xlabel("subrun")
    save_png(figure, path)
    return {
        "category": "Trend",
        "title": "Trend",
        "file": path.name,
        "shows": "Median over the camera of pedestal and noise, subrun by subrun. Steps of some counts in the pedestal "
        "of both gains at once are normal. Noise that rises slowly in the high gain only is light: moon, "
        "cars, a star field. Noise that rises in both gains is electronics.",
    }
