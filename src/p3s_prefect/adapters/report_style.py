"""What the pictures of reports have in common: colours, names, places, files.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; states that are rarer than the palette
is long are grey and hatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from p3s_prefect.core.coverage import CoverageRow
from p3s_prefect.core.errors import P3sError

INK, FAINT, GRID = "#1b2a38", "#5d6b78", "#dde1e6"
_ENDINGS = (".png", ".svg", ".pdf")
_FIX = "Give a path that ends in .png, .svg or .pdf."
_DPI = 150
_LONGEST_TITLE = 110


def check_place(path: Path) -> None:
    """Refuses where no picture can go, before anything is computed.

    Raises:
        P3sError: the file has another ending, or its directory does not exist.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise P3sError(f"{path} cannot be drawn: its ending is not one of {', '.join(_ENDINGS)}", fix=_FIX)
    if not path.parent.is_dir():
        raise P3sError(f"{path} cannot be drawn: the directory {path.parent} does not exist", fix="Make it first.")


def save(figure: Figure, path: Path) -> None:
    """Writes the picture.

    Raises:
        P3sError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=_DPI)
    except (OSError, ValueError) as error:
        raise P3sError(f"{path} cannot be drawn: {error}", fix=_FIX) from error


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of this size [inches] with a title at its top left."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    title = title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"
    place = (0.25 / width, 1 - 0.32 / height)
    figure.text(*place, title, size=12, weight="bold", color=INK, va="center", parse_math=False)
    return figure


def axes_at(figure: Figure, *, left: float, right: float, top: float, height: float) -> Axes:
    """Axes of this height, `top` below the figure's upper edge, and so far from its sides [inches]."""
    width, whole = figure.get_size_inches()
    return figure.add_axes((left / width, 1 - (top + height) / whole, 1 - (left + right) / width, height / whole))


def label_width(names: Sequence[str]) -> float:
    """Room for the longest of these names beside a bar [inches]."""
    return min(4.0, 0.5 + 0.077 * max(map(len, names), default=0))


def plain(axes: Axes, *, grid: Literal["x", "y", "both"]) -> None:
    """No frame; a faint grid behind the data."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(which="both", length=0, labelsize=9, colors=INK)
    axes.xaxis.label.set(size=9, color=FAINT)
    axes.yaxis.label.set(size=9, color=FAINT)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.7)


def legend(figure: Figure, handles: Sequence[Artist], *, left: float, top: float, columns: int) -> None:
    """A legend whose upper left corner is so far from the figure's edges [inches]."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left / width, 1 - top / height),
        borderaxespad=0,
        borderpad=0,
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.3,
        columnspacing=1.3,
    )


def name_of(row: CoverageRow, rows: Sequence[CoverageRow]) -> str:
    """What a row is of; with pipeline (for a stage) and pass only where the report has several."""
    passes = {other.pass_number for other in rows if other.pipeline == row.pipeline}
    where = f", pass {row.pass_number}" if len(passes) > 1 else ""
    if row.stage is not None:
        of = f"{row.pipeline}: " if len({other.pipeline for other in rows}) > 1 else ""
        return f"{of}{row.stage}{where}"
    return f"{row.pipeline}, {'groups' if row.per == 'group' else 'units'}{where}"
