"""How the pixels' noise is distributed in a run: the subruns' histograms together, weighted, with an error a bin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from p3s_prefect.core.weighting import missing_share, missing_total_range, weighted_histogram
from p3s_prefect.instruments.lst1.camera import GAINS
from p3s_prefect.instruments.lst1.displays import save_png
from p3s_prefect.instruments.lst1.trends import COLOURS, Kept

# Quiet pixels of the low gain have 4 ADC, a broken channel some hundreds; a bin is 12 % wide.
EDGES_ADC = np.geomspace(1.0, 1000.0, 61)


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """Numbers of pixels, counted once in each subrun, of all subruns that were not missing."""

    counts: np.ndarray
    """Shape (2, 60), float64: gain, bin between `EDGES_ADC`. What lies outside is in the first or last bin."""
    errors: np.ndarray
    """The same shape: standard errors that the choice of subruns makes; NaN where none can be told."""
    lowest: np.ndarray
    """The same shape: the counts, if each subrun that is missing had in a bin as many as the one with fewest there; NaN
    where a single subrun is there, which does not tell how much they differ."""
    highest: np.ndarray
    """The same, with as many as the one with most."""
    missing: float
    """How many subruns expired or failed, by weight,"""
    missing_share: float
    """and their share of those that were let through."""

    @property
    def is_ranged(self) -> bool:
        """Whether something is missing, and it can be told what that could change."""
        return self.missing > 0 and bool(np.isfinite(self.highest).all())

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays."""
        return {
            "noise_edges": EDGES_ADC,
            "noise_counts": self.counts,
            "noise_counts_error": self.errors,
            "noise_counts_lowest": self.lowest,
            "noise_counts_highest": self.highest,
        }


def noise_distribution(kept: Kept, left_out: int, missing: float) -> Distribution:
    """The noise of all pixels.

    `left_out` is how many subruns were left out at random, `missing` how many expired or failed, by weight.
    """
    inside = EDGES_ADC[0], np.nextafter(EDGES_ADC[-1], 0)
    found, ranges = [], []
    for gain in range(len(GAINS)):
        counts = [np.histogram(part.noise[gain].clip(*inside), EDGES_ADC)[0] for part in kept.parts.values()]
        parts = zip((each.astype(float).tolist() for each in counts), kept.weights.values(), strict=True)
        bins = weighted_histogram(list(parts), left_out=left_out)
        found.append(bins)
        extremes = zip(np.min(counts, axis=0).tolist(), np.max(counts, axis=0).tolist(), strict=True)
        ranges.append([missing_total_range(b.value, missing, *both) for b, both in zip(bins, extremes, strict=True)])
    lowest, highest = np.moveaxis(np.array(ranges), -1, 0)
    if missing and len(kept.parts) == 1:
        lowest = highest = np.full_like(lowest, np.nan)
    return Distribution(
        counts=np.array([[one.value for one in bins] for bins in found]),
        errors=np.array([[one.error for one in bins] for bins in found], dtype=float),
        lowest=lowest,
        highest=highest,
        missing=missing,
        missing_share=missing_share(kept.weights.values(), [missing]),
    )


def distribution_display(path: Path, heading: str, found: Distribution) -> dict[str, str]:
    """Draws the distribution of the noise, and describes the picture as a product."""
    figure = Figure(figsize=(8, 4.2), dpi=100)
    figure.suptitle(f"Noise distribution · {heading}", fontsize=12, fontweight="bold", y=0.97)
    axes = figure.add_axes((0.1, 0.13, 0.73, 0.74))
    middles = np.sqrt(EDGES_ADC[:-1] * EDGES_ADC[1:])
    missing = f"{found.missing:.3g} missing\n({100 * found.missing_share:.2g} %)"
    for gain, name in enumerate(GAINS):
        counts, errors = found.counts[gain], np.nan_to_num(found.errors[gain])
        if found.is_ranged:
            label = f"with the\n{missing}" if gain + 1 == len(GAINS) else None
            between = {"baseline": found.lowest[gain], "fill": True, "alpha": 0.25, "linewidth": 0}
            axes.stairs(found.highest[gain], EDGES_ADC, color=COLOURS[gain], label=label, **between)
        axes.stairs(counts, EDGES_ADC, color=COLOURS[gain], linewidth=1.5, label=f"{name} gain")
        # On a logarithmic scale a bar cannot reach zero.
        lower, some = np.minimum(errors, 0.95 * counts), errors > 0
        bars = np.array([lower[some], errors[some]])
        axes.errorbar(middles[some], counts[some], bars, fmt="none", color=COLOURS[gain], elinewidth=1)
    if found.missing and not found.is_ranged:
        axes.plot([], [], linestyle="", label=f"{missing},\nrange not\nknown")
    axes.set(xscale="log", yscale="log", xlim=(EDGES_ADC[0], EDGES_ADC[-1]), ylim=(0.5, None))
    axes.set(xlabel="noise, RMS [ADC]", ylabel="pixels, in all subruns")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    save_png(figure, path)
    return {"category": "Noise", "title": "Noise distribution", "file": path.name, "shows": _SHOWS}


_SHOWS = (
    "How many pixels have which noise, counted once in each subrun. Each gain has one peak with a tail to the right, "
    "which stars make. A second peak on the left is pixels without light: a module without high voltage. Single pixels "
    "far on the right are broken channels. Where subruns were left out at random, those that were taken count for "
    "them, and the bars are the errors of that. Where subruns expired or failed, the bands go from what the whole run "
    "would have if each of them were like the emptiest of a bin to what it would have if each were like the fullest; "
    "one subrun alone does not tell how much they differ, and has no bands."
)
