"""A picture of a simulation over time: what came, what waited, what was in time, what was let in, and the slots.

A is drawn in blue, B in orange, and with several classes of work each class has a panel of its own for what was in
time; colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from p3s_prefect.adapters.report_style import INK, axes_at, check_place, new_figure, plain, save
from p3s_prefect.core.simulation import Comparison
from p3s_prefect.core.simulation_results import PolicyResult
from p3s_prefect.core.simulation_series import ClassSeries, Series

_COLOURS = {"A": "#0072B2", "B": "#D55E00"}
# B is drawn over A, thinner, so that both are seen where they agree.
_WIDTHS = {"A": 2.6, "B": 1.3}
_WIDTH, _PANEL, _GAP = 9.6, 1.25, 0.42
_UNITS = ((172_800.0, 86_400.0, "d"), (7200.0, 3600.0, "h"), (180.0, 60.0, "min"), (0.0, 1.0, "s"))
# So many times the usual distance between intervals with data.
_PAUSE = 2.5
# More classes than these would make the picture taller than a page.
_MOST_CLASSES = 6
_LONGEST_TITLE = 100


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draws the series of A and, where there is one, of B into a file.

    Raises:
        P3sError: the file has another ending, or cannot be written.
    """
    check_place(path)
    results = [result for result in (found.a, found.b) if result is not None]
    names = _classes(results)
    panels: list[Callable[[Axes, float], None]] = [
        lambda axes, unit_s: _draw_arrivals(axes, unit_s, found.a.series),
        lambda axes, unit_s: _draw_queue(axes, unit_s, results),
        *(_in_time_panel(results, name) for name in names),
        *(_q_panel(results, name) for name in names if _thinned(results, name)),
        lambda axes, unit_s: _draw_slots(axes, unit_s, results),
    ]
    top = 0.85 + 0.2 * len(results)
    height = top + len(panels) * (_PANEL + _GAP) + 0.2
    figure = new_figure(_WIDTH, height, f"Simulation · {found.load}")
    _head(figure, results, height)
    lasted_s = max(result.series.every_s * len(result.series.queued) for result in results)
    unit_s, unit = next((unit_s, name) for least_s, unit_s, name in _UNITS if lasted_s >= least_s)
    for place, draw in enumerate(panels):
        axes = axes_at(figure, left=0.8, right=0.3, top=top + place * (_PANEL + _GAP), height=_PANEL)
        draw(axes, unit_s)
        plain(axes, grid="y")
        axes.set_xlim(0, lasted_s / unit_s)
        axes.tick_params(labelbottom=place == len(panels) - 1)
    figure.axes[-1].set_xlabel(f"time since the first arrival [{unit}]")
    save(figure, path)


# --- panels -------------------------------------------------------------------------------------------------------


def _draw_arrivals(axes: Axes, unit_s: float, series: Series) -> None:
    axes.fill_between(_times(series, unit_s), series.arrivals_hz, step="mid", color="#56B4E9", alpha=0.6, linewidth=0)
    axes.set_ylim(0, max(series.arrivals_hz) * 1.12)
    _title(axes, "arrivals [units/s]")


def _draw_queue(axes: Axes, unit_s: float, results: Sequence[PolicyResult]) -> None:
    for result in results:
        _line(axes, result, unit_s, result.series.queued)
    axes.set_ylim(0, max(1, *(max(result.series.queued) for result in results)) * 1.12)
    _title(axes, "waiting for a slot [stage runs]")


def _draw_slots(axes: Axes, unit_s: float, results: Sequence[PolicyResult]) -> None:
    for result in results:
        times = _times(result.series, unit_s)
        axes.plot(times, result.series.slots, color=_COLOURS[result.name], linewidth=1, linestyle=(0, (4, 3)))
        _line(axes, result, unit_s, result.series.busy)
    axes.set_ylim(0, max(max(result.series.slots) for result in results) * 1.12)
    _title(axes, "slots at work; dashed: slots")


def _in_time_panel(results: Sequence[PolicyResult], name: str) -> Callable[[Axes, float], None]:
    def draw(axes: Axes, unit_s: float) -> None:
        for result, series in _of_class(results, name):
            _line(axes, result, unit_s, series.in_time_share)
        _share_axis(axes)
        _title(axes, f"{name}: done in time, of the stage runs on data taken then")

    return draw


def _q_panel(results: Sequence[PolicyResult], name: str) -> Callable[[Axes, float], None]:
    def draw(axes: Axes, unit_s: float) -> None:
        for result, series in _of_class(results, name):
            _line(axes, result, unit_s, series.q)
        _share_axis(axes)
        _title(axes, f"{name}: q, the share that was let in (prescale and overload)")

    return draw


# --- how it is drawn ----------------------------------------------------------------------------------------------


def _line(axes: Axes, result: PolicyResult, unit_s: float, values: Iterable[float | None]) -> None:
    heights = np.array([np.nan if value is None else value for value in values], float)
    known = np.flatnonzero(~np.isnan(heights))
    # Between visits there is always an interval without data; only what is longer than usual is a pause.
    gaps = np.diff(known)
    pauses = np.flatnonzero(gaps > _PAUSE * np.median(gaps)) + 1 if len(gaps) else np.array([], int)
    for part in np.split(known, pauses):
        times, marker = _times(result.series, unit_s)[part], "." if len(part) == 1 else None
        colour, width = _COLOURS[result.name], _WIDTHS[result.name]
        axes.plot(times, heights[part], color=colour, linewidth=width, marker=marker)


def _times(series: Series, unit_s: float) -> np.ndarray:
    """The middles of the intervals, float64, in units of `unit_s`."""
    return (np.arange(len(series.queued)) + 0.5) * series.every_s / unit_s


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.06)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.5, 1])


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", size=9, color=INK, pad=4, parse_math=False)


def _head(figure: Figure, results: Sequence[PolicyResult], height: float) -> None:
    for place, result in enumerate(results):
        what = ", ".join(result.changes) if result.changes else "the experiment as it is"
        y = 1 - (0.66 + 0.2 * place) / height
        figure.text(0.25 / _WIDTH, y, result.name, size=9, weight="bold", color=_COLOURS[result.name])
        figure.text(0.45 / _WIDTH, y, _shortened(what), size=9, color=INK, parse_math=False)


def _classes(results: Sequence[PolicyResult]) -> list[str]:
    found = dict.fromkeys(series.work_class for result in results for series in result.series.classes)
    return list(found)[:_MOST_CLASSES]


def _of_class(results: Sequence[PolicyResult], name: str) -> list[tuple[PolicyResult, ClassSeries]]:
    return [(result, series) for result in results for series in result.series.classes if series.work_class == name]


def _thinned(results: Sequence[PolicyResult], name: str) -> bool:
    return any(q is not None and q < 1 for _, series in _of_class(results, name) for q in series.q)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 1]}…"
