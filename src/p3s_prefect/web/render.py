"""From records to HTML: the templates, and what they need to say times, durations and phase bars."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from p3s_prefect.core.health import duration, size
from p3s_prefect.core.phases import Phase, phases, stage_phases
from p3s_prefect.core.views import StageRow, UnitRow, number, printable
from p3s_prefect.web.sparkline import sparkline

_HERE = Path(__file__).parent
# Width in which bars are drawn; the page stretches them.
BAR_WIDTH = 1000
# A phase that took long enough to matter to anybody can be seen and pointed at.
_MIN_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A rectangle of a phase bar, in units of a thousandth of its width."""

    kind: str
    x: float
    width: float
    title: str


def render(template: str, **context: Any) -> str:
    """The page."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("p3s_prefect.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "size": size,
        "utc": utc,
        "iso": iso,
        "printable": printable,
        "prose": prose,
        "number": number,
        "path": lambda data_id: data_id.replace(" ", "/"),
    }
    environment.globals |= {
        "bar": bar,
        "lane": lane,
        "sparkline": sparkline,
        "static_version": _static_version(),
    }
    return environment


def _static_version() -> str:
    """Changes when a static file does, so that browsers may keep them."""
    digest = hashlib.sha256()
    for path in sorted((_HERE / "static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def utc(at: float) -> str:
    """``2027-01-15 08:00:00.250 UTC``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def iso(at: float) -> str:
    """For ``<time datetime>``."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def prose(text: str) -> Markup:
    """A message of ours, or one that quotes others: escaped, with commands between backticks set as code."""
    pieces = escape(printable(text)).split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(piece) if index % 2 else piece for index, piece in enumerate(pieces)
    )


def bar(unit: UnitRow, now: float) -> list[Piece]:
    """A unit's phase bar, from the data being taken until it settled, or until now."""
    found = [phase for phase in phases(unit, now) if phase.seconds > 0]
    return _pieces(found, found[0].started_at, found[-1].ended_at) if found else []


def lane(stage: StageRow, unit: UnitRow, now: float) -> list[Piece]:
    """One stage on the time axis of its unit; what lies around the steps is drawn first, below them."""
    end = unit.settled_at if unit.settled_at is not None else max(now, unit.arrived_at)
    start = min(unit.began_at, unit.arrived_at)
    found = sorted(stage_phases(stage, end), key=lambda phase: -phase.seconds)
    return _pieces([phase for phase in found if phase.seconds > 0], start, end)


def _pieces(found: list[Phase], start: float, end: float) -> list[Piece]:
    scale = BAR_WIDTH / max(end - start, 1e-3)
    return [
        Piece(
            kind=phase.kind,
            x=round(max(0.0, phase.started_at - start) * scale, 1),
            width=round(max(phase.seconds * scale, _MIN_WIDTH), 1),
            title=f"{phase.label}: {duration(phase.seconds)}",
        )
        for phase in found
    ]
