"""A picture of a coverage report: the share of each state, as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

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
from p3s_prefect.core.coverage import CoverageReport, CoverageRow
from p3s_prefect.core.reports import part_order, shown_share

# State, colour, hatch; the order is that of the bars, from the good to the bad.
_STATES = (
    ("done", "#009E73", ""),
    ("open", "#ffffff", "...."),
    ("prescaled", "#56B4E9", ""),
    ("shed", "#E69F00", ""),
    ("expired", "#F0E442", ""),
    ("failed", "#D55E00", ""),
    ("blocked", "#CC79A7", ""),
    ("superseded", "#b9c2cc", "////"),
    ("cancelled", "#e9ecef", "\\\\\\\\"),
)
# More columns than this are too narrow for a name each.
_NAMED_COLUMNS = 30
_WIDTH, _BAR, _PANEL = 9.6, 0.36, 1.5


def draw_coverage(report: CoverageReport, path: Path) -> None:
    """Draws a bar for each row; where the report is split, a panel for each stage, with a column for each part.

    Raises:
        P3sError: the file has another ending, or cannot be written.
    """
    check_place(path)
    rows = [row for row in report.rows if report.tells_more(row)]
    parted = [row for row in rows if row.part is not None]
    save(_panels(report, parted) if parted else _bars(report, rows), path)


def _bars(report: CoverageReport, rows: Sequence[CoverageRow]) -> Figure:
    height = _BAR * len(rows)
    figure = new_figure(_WIDTH, height + 1.75, f"Coverage · {report.scope}")
    names = [name_of(row, rows) for row in rows]
    axes = axes_at(figure, left=label_width(names), right=1.75, top=0.65, height=height)
    places = np.arange(len(rows))
    _stack(axes, places, rows, horizontal=True)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="share of what was seen [%]")
    axes.set_yticks(places, names, parse_math=False)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.stage is None else "normal")
    for place, row in enumerate(rows):
        axes.text(101.5, place, f"{shown_share(row.done_share)} of {row.seen:,}", va="center", size=9, color=INK)
    plain(axes, grid="x")
    _legend(figure, rows, top=height + 1.35)
    return figure


def _panels(report: CoverageReport, rows: Sequence[CoverageRow]) -> Figure:
    """Parts stand below each other in all panels; one that a stage has not seen leaves a gap."""
    panels: dict[tuple[object, ...], list[CoverageRow]] = {}
    for row in rows:
        panels.setdefault((row.pipeline, row.pass_number, row.per, row.stage), []).append(row)
    parts = {part: place for place, part in enumerate(sorted({row.part for row in rows}, key=part_order))}
    height = _PANEL * len(panels) + 1.3
    figure = new_figure(_WIDTH, height, f"Coverage by {report.scope.by} · {report.scope}")
    for number, own in enumerate(panels.values()):
        axes = axes_at(figure, left=0.75, right=0.3, top=0.85 + number * _PANEL, height=0.9)
        _stack(axes, np.array([parts[row.part] for row in own]), own, horizontal=False, columns=len(parts))
        seen, done = sum(row.seen for row in own), sum(row.done for row in own)
        title = f"{name_of(own[0], report.rows)}: {shown_share(done / seen)} of {seen:,} done"
        axes.set_title(title, loc="left", size=9.5, color=INK, pad=4, parse_math=False)
        axes.set(ylim=(0, 100), yticks=(0, 50, 100), xlim=(-0.6, len(parts) - 0.4), ylabel="share [%]")
        _name_columns(axes, [str(part) for part in parts])
        plain(axes, grid="y")
    _legend(figure, rows, top=height - 0.35)
    return figure


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    shown = range(0, len(names), -(-len(names) // _NAMED_COLUMNS))
    turned = sum(len(names[place]) + 1 for place in shown) > 130
    axes.set_xticks(list(shown), [names[place] for place in shown], rotation=90 if turned else 0, parse_math=False)


def _stack(axes: Axes, places: np.ndarray, rows: Sequence[CoverageRow], *, horizontal: bool, columns: int = 0) -> None:
    """Bars of 100 %, from the first state to the last; many columns stand without gaps."""
    ends = np.zeros(len(rows))
    thick = 0.74 if columns <= 2 * _NAMED_COLUMNS else 1.0
    for state, colour, hatch in _STATES:
        shares = np.array([100 * getattr(row, state) / row.seen for row in rows])
        edge, line = (FAINT if hatch else "white"), (0.4 if thick < 1 else 0.0)
        if horizontal:
            axes.barh(places, shares, thick, ends, facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=line)
        else:
            axes.bar(places, shares, thick, ends, facecolor=colour, hatch=hatch, edgecolor=edge, linewidth=line)
        ends += shares


def _legend(figure: Figure, rows: Sequence[CoverageRow], *, top: float) -> None:
    used = [found for found in _STATES if any(getattr(row, found[0]) for row in rows)]
    handles = [Patch(facecolor=c, hatch=hatch, edgecolor=FAINT, linewidth=0.4, label=name) for name, c, hatch in used]
    legend(figure, handles, left=0.3, top=top, columns=len(handles))
