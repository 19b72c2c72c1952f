"""The trend of a run over its subruns, with what chance left out and what is missing in sight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from p3s_prefect.instruments.lst1.camera import GAINS
from p3s_prefect.instruments.lst1.displays import save_png
from p3s_prefect.instruments.lst1.pixels import PixelStatistics

COLOURS = ("#0072B2", "#D55E00")  # blue and vermilion of M. Okabe and K. Ito's set for any colour vision
_GREY, _PURPLE = "#555555", "#CC79A7"


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The subruns of a run that are there, by number in their order, and what they stand for."""

    parts: Mapping[int, PixelStatistics]
    weights: Mapping[int, float]
    """How many subruns each stands for: 1/q."""
    missing: tuple[int, ...] = ()
    """Subruns that were let through and expired or failed."""

    @property
    def thinned(self) -> tuple[int, ...]:
        """Those that stand for others too."""
        return tuple(number for number, weight in self.weights.items() if weight > 1)

    @property
    def events(self) -> int:
        """Number of events in them."""
        return int(sum(part.events for part in self.parts.values()))


def trend_display(path: Path, heading: str, kept: Kept, summary: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Draws median pedestal and noise over the subruns, and describes the picture as a product.

    Behind the points lie the values of the whole run, with their errors if it was thinned; below, the probability with
    which each subrun was kept.
    """
    figure = Figure(figsize=(8, 5.4), dpi=100)
    figure.suptitle(f"Trend · {heading}", fontsize=12, fontweight="bold", y=0.975)
    places = ((0.1, 0.615, 0.73, 0.3), (0.1, 0.275, 0.73, 0.3), (0.1, 0.1, 0.73, 0.12))
    pedestal, noise, chance = (figure.add_axes(place) for place in places)
    numbers = [*kept.parts, *kept.missing]
    for axes in (pedestal, noise, chance):
        axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=axes is chance)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for number in kept.missing:
            axes.axvline(number, color=_PURPLE, alpha=0.5, linewidth=1.5, zorder=1)
    is_ranged = "events_lowest" in summary
    for axes, name in ((pedestal, "pedestal"), (noise, "noise")):
        _medians(axes, kept, name)
        if kept.thinned or is_ranged:
            _whole(axes, summary, name)
    _chances(chance, kept)
    handles = [*pedestal.get_legend_handles_labels()[0], *_further_lines(kept, is_ranged)]
    pedestal.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, fontsize=9)
    figure.text(0.842, 0.575, _counts(kept, summary), va="top", fontsize=9, color=_GREY, linespacing=1.5)
    save_png(figure, path)
    return {"category": "Trend", "title": "Trend", "file": path.name, "shows": _SHOWS}


def _medians(axes: Axes, kept: Kept, name: str) -> None:
    numbers = list(kept.parts)
    for gain, gain_name in enumerate(GAINS):
        values = [float(np.median(getattr(part, name)[gain])) for part in kept.parts.values()]
        # A line would join subruns across those that were left out.
        style = "" if kept.thinned else "-"
        axes.plot(
            numbers,
            values,
            linestyle=style,
            marker="os"[gain],
            markersize=5,
            color=COLOURS[gain],
            zorder=3,
            label=f"{gain_name} gain",
        )
    axes.set_ylabel(f"median {name} [ADC]")


def _whole(axes: Axes, summary: Mapping[str, Mapping[str, Any]], name: str) -> None:
    for colour, gain_name in zip(COLOURS, GAINS, strict=True):
        key = f"{name}_median_{gain_name}_gain"
        ends = ("", "_error", "_lowest", "_highest")
        told = {end: summary[key + end]["value"] for end in ends if key + end in summary}
        value, error = told[""], told.get("_error", 0.0)
        axes.axhline(value, color=colour, linewidth=1, linestyle="--", zorder=2)
        axes.axhspan(value - error, value + error, color=colour, alpha=0.18, linewidth=0, zorder=1)
        for end in told.keys() & {"_lowest", "_highest"}:
            axes.axhline(told[end], color=colour, linewidth=1, linestyle=":", zorder=2)


def _chances(axes: Axes, kept: Kept) -> None:
    shares = [1 / weight for weight in kept.weights.values()]
    axes.vlines(list(kept.weights), 0, shares, color=_GREY, linewidth=1.2, zorder=2)
    axes.plot(list(kept.weights), shares, linestyle="", marker=".", color=_GREY, zorder=3)
    axes.set(ylim=(0, 1.1), ylabel="kept", xlabel="subrun", yticks=(0, 0.5, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _further_lines(kept: Kept, is_ranged: bool) -> list[Line2D]:
    found = []
    if kept.thinned or is_ranged:
        found.append(Line2D([], [], color=_GREY, linewidth=1, linestyle="--", label="whole run"))
    if is_ranged:
        found.append(Line2D([], [], color=_GREY, linewidth=1, linestyle=":", label="with missing"))
    if kept.missing:
        found.append(Line2D([], [], color=_PURPLE, linewidth=1.5, label="missing"))
    return found


def _counts(kept: Kept, summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What the run's subruns came to, in words for the margin."""
    left_out, missing = (int(summary[f"subruns_{name}"]["value"]) for name in ("left_out", "missing"))
    lines = [f"{len(kept.parts)} in the totals"]
    if left_out:
        lines.append(f"{left_out} left out\n  at random")
    if missing:
        lines.append(f"{missing} missing\n  ({summary['missing_share']['value']:.2g} % by weight)")
    return "\n".join(lines)


_SHOWS = (
    "Median over the camera of pedestal and noise, subrun by subrun. Steps of some counts in the pedestal of both "
    "gains at once are normal. Noise that rises slowly in the high gain only is light: moon, cars, a star field. Noise "
    "that rises in both gains is electronics. Below: the probability with which a subrun was kept; where it is under "
    "100 %, others between the points were left out at random, and a dashed line with its band is the value of the "
    "whole run with its error. A purple line is a subrun that expired or failed; the dashed value of the whole run is "
    "between the dotted lines if those that are missing were like the ones that are there: one alone cannot tell."
)
