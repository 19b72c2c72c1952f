"""A picture of an experiment's pipelines: streams on the left, stages with their steps, datasets on the arrows.

The layout is in inches: one column for each rank (longest way from a stream), one row of columns for each pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path as FilePath

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from p3s_prefect.core.dag import topological_order
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment, Stage, Stream
from p3s_prefect.core.pipeline_checks import feeding_streams

_ENDINGS = (".png", ".svg", ".pdf")
_FIX = "Give a path that ends in .png, .svg or .pdf."
_WIDTH, _GAP = 2.6, 1.6
_LINE, _ROW_GAP = 0.21, 0.45
_INK, _FAINT = "#1b2a38", "#5d6b78"
# From the palette of Okabe and Ito, which colour-blind readers can tell apart.
_STREAM, _UNIT, _GROUP = "#009E73", "#0072B2", "#D55E00"
_LABEL_LENGTH, _LINE_LENGTH = 20, 36  # characters that fit into a gap and a box


@dataclass(kw_only=True)
class _Box:
    """A stream or a stage, or an empty place that a long arrow passes through."""

    lines: list[str] = field(default_factory=list)
    """Title first; empty for a place on the way of an arrow."""
    colour: str = _INK
    stacked: bool = False
    """Drawn as a stack: runs many times."""
    rank: int = 0
    x: float = 0.0
    """Left edge, in inches."""
    y: float = 0.0
    """Middle, in inches."""

    @property
    def height(self) -> float:
        """In inches."""
        return 0.28 + _LINE * len(self.lines) if self.lines else 0.1


def draw_experiment(experiment: Experiment, path: FilePath) -> None:
    """Draw all pipelines into a file; its ending says how (.png, .svg, .pdf).

    Raises:
        P3sError: it has another ending, or the file cannot be written.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise P3sError(f"{path} cannot be drawn: its ending is not one of {', '.join(_ENDINGS)}", fix=_FIX)
    if not path.parent.is_dir():
        raise P3sError(f"{path} cannot be drawn: the directory {path.parent} does not exist", fix="Make it first.")
    panels = [_Panel(experiment, name) for name in experiment.pipelines]
    width = max(max(panel.width for panel in panels), 8.0) + 0.6
    height = sum(panel.height for panel in panels) + 0.5
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    top = height
    for panel in panels:
        panel.draw(axes, top)
        top -= panel.height
    _legend(axes, experiment)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise P3sError(f"{path} cannot be drawn: {error}", fix=_FIX) from error


class _Panel:
    """One pipeline's boxes and arrows, placed."""

    def __init__(self, experiment: Experiment, name: str) -> None:
        self._title = f"{experiment.experiment} / {name}"
        pipeline = experiment.pipelines[name]
        streams = feeding_streams(experiment, name)
        self._boxes = {f"stream {key}": _stream_box(key, stream) for key, stream in streams.items()}
        self._arrows: list[tuple[list[str], str]] = []
        made = {f"stream {key}": {stream.dataset_type} for key, stream in streams.items()}
        for stage_name in topological_order(pipeline):
            stage = pipeline.stages[stage_name]
            parents = list(dict.fromkeys(stage.after)) or list(made)[: len(streams)]
            rank = max((self._boxes[parent].rank + 1 for parent in parents), default=1)
            self._boxes[stage_name] = _stage_box(stage_name, stage, rank)
            made[stage_name] = {dataset for step in stage.steps for dataset in step.outputs.values()}
            reads = {dataset for step in stage.steps for dataset in step.inputs.values()}
            for parent in parents:
                self._arrow(parent, stage_name, "\n".join(sorted(reads & made[parent])))
        self._place()

    def _arrow(self, start: str, end: str, label: str) -> None:
        """Reserve a place in each rank that the arrow passes."""
        way = [start]
        for rank in range(self._boxes[start].rank + 1, self._boxes[end].rank):
            way.append(f"{start} > {end} {rank}")
            self._boxes[way[-1]] = _Box(rank=rank)
        self._arrows.append(([*way, end], label))

    def _place(self) -> None:
        """Columns by rank; in each, boxes in the order of the mean height of what leads to them."""
        ranks: dict[int, list[str]] = {}
        for name, box in self._boxes.items():
            ranks.setdefault(box.rank, []).append(name)
        tallest = 0.0
        for rank in sorted(ranks):
            names = sorted(ranks[rank], key=self._mean_of_parents, reverse=True)
            total = sum(self._boxes[name].height for name in names) + _ROW_GAP * (len(names) - 1)
            tallest = max(tallest, total)
            top = total / 2
            for name in names:
                box = self._boxes[name]
                box.x, box.y = rank * (_WIDTH + _GAP), top - box.height / 2
                top -= box.height + _ROW_GAP
        self.width = max(box.x for box in self._boxes.values()) + _WIDTH
        self.height = tallest + 1.0

    def _mean_of_parents(self, name: str) -> float:
        before = [way[way.index(name) - 1] for way, _ in self._arrows if name in way[1:]]
        return sum(self._boxes[parent].y for parent in before) / len(before) if before else 0.0

    def draw(self, axes: Axes, top: float) -> None:
        """Draw below `top` (inches)."""
        middle = top - 0.6 - (self.height - 1.0) / 2
        axes.text(0.3, top - 0.3, self._title, size=12, weight="bold", color=_INK, va="center", parse_math=False)
        for box in self._boxes.values():
            box.x, box.y = box.x + 0.3, box.y + middle
        for way, label in self._arrows:
            _draw_arrow(axes, [self._boxes[name] for name in way], label)
        for box in self._boxes.values():
            if box.lines:
                _draw_box(axes, box)


def _stream_box(name: str, stream: Stream) -> _Box:
    lines = [name, f"watches {stream.comes_from}", stream.pattern]
    return _Box(lines=[*lines, *_prescale(stream.prescale)], colour=_STREAM)


def _stage_box(name: str, stage: Stage, rank: int) -> _Box:
    steps = [f"{index}. {step.name}" for index, step in enumerate(stage.steps, start=1)]
    deadline = [f"given up after {stage.deadline_s:g} s"] if stage.deadline_s is not None else []
    return _Box(
        lines=[name, *steps, *_prescale(stage.prescale), *deadline],
        colour=_UNIT if stage.per == "unit" else _GROUP,
        stacked=stage.per == "unit",
        rank=rank,
    )


def _prescale(share: float) -> list[str]:
    return [f"{100 * share:g} % chosen"] if share < 1 else []


def _draw_box(axes: Axes, box: _Box) -> None:
    for shift in (0.07, 0.0) if box.stacked else (0.0,):
        axes.add_patch(
            FancyBboxPatch(
                (box.x + shift, box.y - box.height / 2 + shift),
                _WIDTH,
                box.height,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor="white",
                edgecolor=box.colour,
                linewidth=1.6,
            )
        )
    top = box.y + box.height / 2 - 0.14
    for index, line in enumerate(box.lines):
        axes.text(
            box.x + 0.13,
            top - _LINE * (index + 0.5),
            _shortened(line, _LINE_LENGTH if index else _LINE_LENGTH - 6),
            size=8 if index else 10,
            weight="normal" if index else "bold",
            color=_FAINT if index else box.colour,
            va="center",
            parse_math=False,
        )


def _draw_arrow(axes: Axes, way: list[_Box], label: str) -> None:
    """A smooth line between the boxes' sides; dashed where it means order only and carries no data."""
    points = [(way[0].x + _WIDTH + (0.07 if way[0].stacked else 0.0), way[0].y)]
    for box in way[1:-1]:
        points += [(box.x, box.y), (box.x + _WIDTH, box.y)]
    points.append((way[-1].x - 0.02, way[-1].y))
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        vertices += [((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1), (x1, y1)]
        codes += [Path.CURVE4] * 3
    axes.add_patch(
        FancyArrowPatch(
            path=Path(vertices, codes),
            arrowstyle="-|>",
            mutation_scale=11,
            color=_FAINT,
            linewidth=1.2,
            linestyle="solid" if label else "dashed",
        )
    )
    (x0, y0), (x1, y1) = points[0], points[1]
    shown = "\n".join(_shortened(line, _LABEL_LENGTH) for line in label.split("\n"))
    if shown:
        axes.text(
            (x0 + x1) / 2,
            (y0 + y1) / 2,
            shown,
            size=7,
            color=_INK,
            ha="center",
            va="center",
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
        )


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _legend(axes: Axes, experiment: Experiment) -> None:
    unit, group = " + ".join(experiment.instrument.dimensions), " + ".join(experiment.instrument.group)
    entries = ((_STREAM, "stream"), (_UNIT, f"stage for each {unit}"), (_GROUP, f"stage once for each closed {group}"))
    x = 0.3
    for colour, text in entries:
        axes.text(x, 0.25, "■", size=9, color=colour, va="center")
        axes.text(x + 0.18, 0.25, text, size=8, color=_FAINT, va="center", parse_math=False)
        x += 0.45 + 0.068 * len(text)
    axes.text(x, 0.25, "dashed: order only, no data", size=8, color=_FAINT, va="center")
