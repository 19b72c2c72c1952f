"""Camera displays: one hexagon a pixel, seen as the geometry file has them, and the payload that draws a subrun's.

Colours are matplotlib's viridis, cividis and inferno: evenly rising in lightness, so that they read the same with any
colour vision. Noisy pixels are ringed in red, dead ones in white with a black rim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from p3s_prefect.instruments.lst1.camera import GAINS, geometry
from p3s_prefect.instruments.lst1.pixels import PULSE_SIGMA, PULSE_WINDOW, PixelStatistics
from p3s_prefect.instruments.lst1.subruns import Subrun, event_time, read_subrun

MAX_PNG_BYTES = 100_000
"""Pages and records of runs embed pictures up to this size."""
_DPI = 100
_PANEL_INCH = (5.0, 4.7)
# Together with the greys of the texts these fit into the palette of a PNG.
_LEVELS = 64
# A flash of the whole camera makes a pulse 6 ns wide at half its height; showers come anywhere in the pulse window.
CHARGE_SAMPLES = 8
# The shares of the pixels at which the colour scale ends: single hot pixels would darken all others.
_CLIP_PERCENT = (1.0, 99.0)
# Arrows of a colour bar, by whether there are values below and above it.
_EXTEND = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One camera of a display."""

    title: str
    values: np.ndarray
    """Shape (1855,), by pixel id, finite."""
    label: str
    """What the colours mean, with its unit."""
    cmap: str
    noisy: np.ndarray | None = None
    """Shape (1855,), bool: ringed red."""
    dead: np.ndarray | None = None
    """Shape (1855,), bool: ringed white."""
    clip_percent: tuple[float, float] = _CLIP_PERCENT
    """The shares of the pixels at which the colour scale begins and ends."""


def draw_cameras(path: Path, heading: str, panels: list[Panel]) -> None:
    """Draws the panels side by side into a PNG of fewer than `MAX_PNG_BYTES` bytes."""
    width, height = _PANEL_INCH
    figure = Figure(figsize=(width * len(panels), height), dpi=_DPI)
    figure.suptitle(heading, fontsize=12, fontweight="bold", y=0.97)
    for place, panel in enumerate(panels):
        # Placed by hand: constrained layout measures every text four times and doubles the time of a display.
        left, share = place / len(panels), 1 / len(panels)
        axes = figure.add_axes((left + 0.1 * share, 0.1, 0.7 * share, 0.7 * width / height))
        colours = figure.add_axes((left + 0.815 * share, 0.17, 0.025 * share, 0.6))
        _draw_camera(axes, colours, panel)
    save_png(figure, path)


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure with a palette of its own colours, which makes the file less than half as large."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    # This method keeps each colour to within 5 of 255; the others merge rare ones, such as the levels of a scale.
    picture.quantize(255, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, format="png")


def _draw_camera(axes: Axes, colours: Axes, panel: Panel) -> None:
    hexagons = geometry().hexagons()
    low, high = (float(value) for value in np.percentile(panel.values, panel.clip_percent))
    cmap = colormaps[panel.cmap].resampled(_LEVELS)
    # Smoothed edges would leave hairlines between the hexagons.
    pixels = PolyCollection(list(hexagons), array=panel.values, cmap=cmap, linewidths=0, antialiased=False)
    pixels.set_clim(low, high)
    axes.add_collection(pixels)
    _ring(axes, hexagons, panel.dead, "white")
    _ring(axes, hexagons, panel.noisy, "red")
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xlabel="x [m]", ylabel="y [m]", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.yaxis.labelpad = -4
    axes.set_title(panel.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    extend = _EXTEND[bool(panel.values.min() < low), bool(panel.values.max() > high)]
    axes.figure.colorbar(pixels, cax=colours, label=panel.label, extend=extend)


def _ring(axes: Axes, hexagons: np.ndarray, which: np.ndarray | None, colour: str) -> None:
    if which is not None and which.any():
        for width, edge in ((3.0, "black"), (1.6, colour)):
            axes.add_collection(
                PolyCollection(list(hexagons[which]), facecolors="none", edgecolors=edge, linewidths=width)
            )


_OF_RUN = (
    " Where subruns were left out at random, the median has the error of that; where some expired or failed, the line "
    "below it says between which values it would be if they were like the ones that are there."
)


def medians(values: np.ndarray) -> list[str]:
    """The median of each gain of `values`, (2, 1855), ADC counts, as a text."""
    return [f"median {median:.1f} ADC" for median in np.median(values, axis=1)]


def pedestal_display(
    path: Path, heading: str, statistics: PixelStatistics, told: Sequence[str] | None = None
) -> dict[str, str]:
    """Draws the pedestals of both gains, and describes the picture as a product.

    `told` is what the titles of a run's two cameras end with; without it they have the `medians`.
    """
    ends = medians(statistics.pedestal) if told is None else told
    panels = [
        Panel(
            title=f"{name} gain · {ends[gain]}",
            values=statistics.pedestal[gain],
            label="pedestal [ADC counts]",
            cmap="cividis",
        )
        for gain, name in enumerate(GAINS)
    ]
    draw_cameras(path, f"Pedestal · {heading}", panels)
    return {
        "category": "Pedestal",
        "title": "Pedestal",
        "file": path.name,
        "shows": "Mean of the baseline samples of each pixel. Expect an even camera near 400 ADC counts in both gains. "
        "Look for single outliers (a channel that drifted) and for groups of seven (a module that lost its "
        "calibration)." + ("" if told is None else _OF_RUN),
    }


def noise_display(
    path: Path, heading: str, statistics: PixelStatistics, told: Sequence[str] | None = None
) -> dict[str, str]:
    """Draws the noise of both gains, and describes the picture as a product; `told` is as in `pedestal_display`."""
    noisy, dead = statistics.noisy(), statistics.dead()
    ends = medians(statistics.noise) if told is None else told
    panels = [
        Panel(
            title=f"{name} gain · {noisy[gain].sum()} noisy · {dead[gain].sum()} dead · {ends[gain]}",
            values=statistics.noise[gain],
            label="noise, RMS [ADC counts]",
            cmap="viridis",
            noisy=noisy[gain],
            dead=dead[gain],
        )
        for gain, name in enumerate(GAINS)
    ]
    draw_cameras(path, f"Noise · {heading}", panels)
    return {
        "category": "Noise",
        "title": "Noise",
        "file": path.name,
        "shows": "RMS of the baseline samples inside an event. The light of the night sky makes most of it in the high "
        "gain, so stars show as small bright spots that move slowly. Ringed red: more than 5 times the "
        "camera's median, which no star does; report the pixel. Ringed white: less than half of it; the "
        "photomultiplier is off or dead. A dark group of seven is a module without high voltage."
        + ("" if told is None else _OF_RUN),
    }


def brightest_event(subrun: Subrun, statistics: PixelStatistics) -> tuple[int, np.ndarray]:
    """Index of the event with the most light in the high gain, and its charges.

    A pixel's charge is its largest sum of `CHARGE_SAMPLES` consecutive samples in `PULSE_WINDOW` above its pedestal and
    above the camera's common baseline. That moves from sample to sample (by 20 counts at times, as much as a small
    shower) in the same way in both gains; it is measured as the median over the pixels of the low one, where light
    counts 17 times less. An event's light is the sum of the charges that stand more than `PULSE_SIGMA` times their
    noise above zero. Charges are float64 (2, 1855), ADC counts; without light they are positive on average, because the
    largest sum is taken.
    """
    above = subrun.waveform[..., slice(*PULSE_WINDOW)] - statistics.pedestal[:, :, None]
    above -= np.median(above[:, 1], axis=-2)[:, None, None, :]
    sums = np.cumsum(above, axis=-1)
    charge = (sums[..., CHARGE_SAMPLES:] - sums[..., :-CHARGE_SAMPLES]).max(axis=-1)
    least = PULSE_SIGMA * statistics.noise[0] * np.sqrt(CHARGE_SAMPLES)
    index = int(np.where(charge[:, 0] > least, charge[:, 0], 0.0).sum(axis=-1).argmax())
    return index, charge[index]


def event_display(path: Path, heading: str, subrun: Subrun, statistics: PixelStatistics) -> dict[str, str]:
    """Draws the brightest event, and describes the picture as a product."""
    index, charge = brightest_event(subrun, statistics)
    panels = [
        Panel(
            title=f"{name} gain, brightest pixel {charge[gain].argmax()}",
            values=charge[gain],
            label="charge [ADC counts summed over 8 ns]",
            cmap="inferno",
            clip_percent=(1.0, 100.0),
        )
        for gain, name in enumerate(GAINS)
    ]
    number = int(subrun.event_id[index])
    taken = event_time(subrun, index).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    draw_cameras(path, f"Brightest event · {heading} · event {number} · {taken} UTC", panels)
    return {
        "category": "Event",
        "title": "Brightest event",
        "file": path.name,
        "shows": "Charge of each pixel in the event with the most light. A shower is a compact ellipse, a muon an arc "
        "or a ring, a calibration flash an even camera. Holes are dead pixels; a single bright pixel far from the "
        "image is noise. A charge is the largest sum of 8 samples above the camera's common baseline.",
    }


def camera_displays(events: Path, pixel_statistics: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Payload: a subrun file and its statistics in, three pictures in the working directory out, as products."""
    subrun = read_subrun(events)
    statistics = PixelStatistics.from_arrays(pixel_statistics)
    heading = f"run {subrun.run}, subrun {subrun.subrun} · {statistics.events} events"
    products = [
        pedestal_display(Path("pedestal.png"), heading, statistics),
        noise_display(Path("noise.png"), heading, statistics),
        event_display(Path("brightest_event.png"), f"run {subrun.run}, subrun {subrun.subrun}", subrun, statistics),
    ]
    return {"products": products}
