"""A picture of a latency report: how many were published after how long, and what the time went into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from p3s_prefect.adapters.report_style import (
    FAINT,
    INK,
    axes_at,
    check_place,
    label_width,
    legend,
    name_of,
    new_figure,
    plain,
    save,
)
from p3s_prefect.core.health import duration
from p3s_prefect.core.latency import LatencyReport, LatencyRow
from p3s_prefect.core.phases import PhaseKind
from p3s_prefect.core.reports import shown_share

_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1b2a38")
_OTHERS = "#b9c2cc"
_KINDS = {
    PhaseKind.ARRIVAL: ("#b9c2cc",),
    PhaseKind.WAITING: ("#F0E442", "#E69F00"),
    PhaseKind.RUNNING: ("#0072B2", "#56B4E9", "#004b76", "#9bd3f2", "#2f8ac4", "#cfe8f7"),
    PhaseKind.PUBLISHING: ("#009E73",),
}
# The times at which an axis may be marked [s]: as people count, to ten years.
_MARKS = np.array(
    [
        *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800),
        *(3600, 7200, 18_000, 36_000, 86_400, 172_800, 432_000, 864_000, 8_640_000, 86_400_000, 315_360_000),
    ]
)
_MOST_MARKS = 9
# More bars than this are too low for a name each.
_NAMED_BARS = 24
_WIDTH, _LEFT, _CURVES, _GAP = 12.0, 0.75, 4.6, 0.35
_LINE, _LEGEND_COLUMNS = 0.19, 3  # height of a line of a legend; its columns below the bars
# Fewer bars than these would be as thick as a fist.
_LEAST_BARS = 4


def draw_latency(report: LatencyReport, path: Path) -> None:
    """Draws for each pipeline and pass, or where the report is split for each stage, a curve and a bar for each row.

    Raises:
        P3sError: the file has another ending, or cannot be written.
    """
    check_place(path)
    rows = [row for row in report.rows if row.account.due and report.coverage.tells_more(row.account)]
    parted = [row for row in rows if row.account.part is not None]
    blocks: dict[tuple[object, ...], list[LatencyRow]] = {}
    for row in parted or rows:
        stage = row.account.stage if parted else None
        blocks.setdefault((row.account.pipeline, row.account.pass_number, row.account.per, stage), []).append(row)
    heights = [_block_height(own) for own in blocks.values()]
    by = f" by {report.coverage.scope.by}" if report.coverage.scope.by else ""
    figure = new_figure(_WIDTH, sum(heights) + 0.75, f"Latency{by} · {report.coverage.scope}")
    top = 0.7
    for own, height in zip(blocks.values(), heights, strict=True):
        _draw_block(figure, own, report, top)
        top += height
    save(figure, path)


def _block_height(rows: Sequence[LatencyRow]) -> float:
    labels = {phase.label for row in rows for phase in row.phases}
    return _axes_height(rows) + 1.05 + _LINE * max(min(len(rows), len(_LINES)), -(-len(labels) // _LEGEND_COLUMNS))


def _axes_height(rows: Sequence[LatencyRow]) -> float:
    return max(2.4, 0.28 * min(len(rows), _NAMED_BARS))


def _draw_block(figure: Figure, rows: Sequence[LatencyRow], report: LatencyReport, top: float) -> None:
    """Curves on the left, bars on the right, a legend below each."""
    accounts, tall = report.coverage.rows, _axes_height(rows)
    split = rows[0].account.part is not None
    # The title names what is common to all rows.
    own = [row.account for row in rows]
    names = [account.part or "" if split else name_of(account, own) for account in own]
    curves = axes_at(figure, left=_LEFT, right=_WIDTH - _LEFT - _CURVES, top=top + 0.3, height=tall)
    lines = _draw_curves(curves, rows, names)
    legend(figure, lines, left=_LEFT, top=top + tall + 0.85, columns=1)
    first = rows[0].account if split else replace(rows[0].account, stage=None)
    curves.set_title(name_of(first, accounts), loc="left", size=10, weight="bold", color=INK, parse_math=False)
    begin = "the group's closing" if first.per == "group" else "data being taken"
    curves.set_xlabel(f"from {begin} to results being published")
    finished = [(name, row) for name, row in zip(names, rows, strict=True) if row.total is not None]
    if finished:
        left = _LEFT + _CURVES + _GAP + label_width(names)
        bars = axes_at(figure, left=left, right=0.75, top=top + 0.3, height=tall)
        patches = _draw_phases(bars, [name for name, _ in finished], [row for _, row in finished])
        legend(figure, patches, left=_LEFT + _CURVES + _GAP, top=top + tall + 0.85, columns=_LEGEND_COLUMNS)


def _draw_curves(axes: Axes, rows: Sequence[LatencyRow], names: Sequence[str]) -> list[Line2D]:
    """Cumulative distributions of all that was due: a curve ends below 100 % by what was lost.

    Where there are more rows than colours, those that were least in time have one, and the others are grey.
    """
    deadlines = sorted({deadline for row in rows for deadline in row.deadlines_s})
    seen = [seconds for row in rows for seconds in row.curve]
    first, last = min([*seen, *deadlines], default=1.0), max([*seen, *deadlines], default=1.0)
    limits = (max(first, 1e-3) / 1.3, max(last, 2e-3) * 1.3)
    order = list(range(len(rows)))
    if len(rows) > len(_LINES):
        order.sort(key=lambda place: _goodness(rows[place]))
    for place in order[len(_LINES) :]:
        _draw_curve(axes, rows[place], limits, _OTHERS, 0.6)
    handles = []
    for place, colour in zip(order, _LINES, strict=False):
        line = _draw_curve(axes, rows[place], limits, colour, 1.7)
        line.set_label(_in_words(rows[place], names[place]))
        handles.append(line)
    for deadline in deadlines:
        axes.axvline(deadline, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
        # Beside its line, as above it would lie over the title.
        axes.text(
            *(deadline, 2, f"deadline {duration(deadline)}"),
            size=8,
            color=INK,
            rotation=90,
            ha="right",
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    axes.set(xscale="log", xlim=limits, ylim=(0, 101), ylabel="published, of all that were due [%]")
    _mark_times(axes, *limits)
    plain(axes, grid="both")
    return handles


def _draw_curve(axes: Axes, row: LatencyRow, limits: tuple[float, float], colour: str, width: float) -> Line2D:
    top = 100 * row.account.done / row.account.due
    reached = np.linspace(top / len(row.curve), top, len(row.curve)) if row.curve else np.empty(0)
    # From the left edge, through each duration, to the right edge.
    times = [limits[0], *np.maximum(row.curve, limits[0]), limits[1]]
    shares = [0.0, *reached, top if row.curve else 0.0]
    dashed = "--" if row.account.stage is None else "-"
    (line,) = axes.step(times, shares, where="post", color=colour, linewidth=width, linestyle=dashed)
    return line


def _goodness(row: LatencyRow) -> tuple[float, float]:
    share_in_time = row.account.done / row.account.due if row.in_time_of_due is None else row.in_time_of_due
    return (share_in_time, 0.0 if row.total is None else -row.total.p95_s)


def _in_words(row: LatencyRow, name: str) -> str:
    if not row.deadlines_s:
        return f"{name} · no deadline"
    deadline = " or ".join(duration(seconds) for seconds in row.deadlines_s)
    return f"{name} · {shown_share(row.in_time_of_due) or 'none'} of {row.account.due:,} due within {deadline}"


def _mark_times(axes: Axes, first: float, last: float) -> None:
    inside = _MARKS[(first <= _MARKS) & (last >= _MARKS)]
    axes.xaxis.set_major_locator(FixedLocator(inside[:: -(-len(inside) // _MOST_MARKS) or 1].tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))


def _draw_phases(axes: Axes, names: Sequence[str], rows: Sequence[LatencyRow]) -> list[Patch]:
    """The medians of all phases, one behind the other; returns what the colours mean."""
    places, ends = np.arange(len(rows)), np.zeros(len(rows))
    patches = []
    for kind, colours in _KINDS.items():
        labels = dict.fromkeys(phase.label for row in rows for phase in row.phases if phase.kind is kind)
        for number, label in enumerate(labels):
            widths = np.array([_median(row, kind, label) for row in rows])
            if widths.any():
                colour = colours[number % len(colours)]
                line = 0.5 if len(rows) <= _NAMED_BARS else 0.0
                axes.barh(places, widths, 0.7 if line else 1.0, ends, color=colour, edgecolor="white", linewidth=line)
                patches.append(Patch(facecolor=colour, label=label))
                ends += widths
    if len(rows) <= _NAMED_BARS:
        for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
            words = "" if row.total is None else f"  {duration(row.total.p50_s)}"
            axes.text(end, place, words, va="center", size=8.5, color=INK)
    axes.set(ylim=(max(len(rows), _LEAST_BARS) - 0.5, -0.5), xlim=(0, 1.05 * max(float(ends.max()), 1e-3)))
    every = -(-len(rows) // _NAMED_BARS)
    axes.set_yticks(places[::every], names[::every], parse_math=False)
    axes.set_title("median of each phase; at the end, of the whole", loc="left", size=9, color=FAINT)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds) if seconds else "0"))
    axes.locator_params(axis="x", nbins=6)
    plain(axes, grid="x")
    return patches


def _median(row: LatencyRow, kind: PhaseKind, label: str) -> float:
    found = (phase.spread.p50_s for phase in row.phases if (phase.kind, phase.label) == (kind, label))
    return next(found, 0.0)
