"""A trend as a small line: its points, and where units were left out at random, the value of all with its error."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core.views import Trend, number

# The box in which it is drawn; the page stretches it. Points stay this far from its upper and lower edge.
WIDTH, HEIGHT, EDGE = 100.0, 24.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One value."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Sparkline:
    """What is drawn, in a box of 100 x 24 with y downwards."""

    dots: tuple[Dot, ...]
    is_thinned: bool
    """Whether units between the dots were left out at random."""
    band: tuple[float, float] | None
    """Upper edge and height of the band of the weighted mean and its error; None if nothing was left out."""

    @property
    def points(self) -> str:
        """For an SVG polyline."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


def sparkline(trend: Trend) -> Sparkline | None:
    """None where there is nothing to draw: fewer than two numbers."""
    found = [
        (name, value, weight)
        for name, value, weight in zip(trend.data_ids, trend.values, trend.weights, strict=True)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if len(found) < 2:
        return None
    values = [value for _, value, _ in found]
    scale = _Scale(low=min(values), high=max(values))
    step = WIDTH / (len(found) - 1)
    dots = tuple(
        Dot(x=index * step, y=scale.y(value), title=f"{name}: {number(value)}{_chance(weight)}")
        for index, (name, value, weight) in enumerate(found)
    )
    return Sparkline(dots=dots, is_thinned=any(weight != 1 for _, _, weight in found), band=_band(trend, scale))


def _chance(weight: float) -> str:
    if not weight:
        return ", left out by chance"
    return f", kept with {1 / weight:.2g}" if weight > 1 else ""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    high: float

    def y(self, value: float) -> float:
        if self.low == self.high:
            return HEIGHT / 2
        # What is large is halved, so that the difference of two values does not overflow.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * share


def _band(trend: Trend, scale: _Scale) -> tuple[float, float] | None:
    if trend.whole is None or not trend.whole.estimate.error:
        return None
    value, error = trend.whole.estimate.value, trend.whole.estimate.error
    upper, lower = (min(max(scale.y(edge), 0.0), HEIGHT) for edge in (value + error, value - error))
    return upper, max(lower - upper, 0.5)
