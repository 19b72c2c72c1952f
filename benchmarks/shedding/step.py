"""The step response: what the admission probability, the queue and the predicted wait do when the load jumps."""

from __future__ import annotations

from pathlib import Path

from benchmarks.shedding import ours, traces
from p3s_prefect.core.outcome import Sample

LENGTH_S = 120.0
SAMPLE_EVERY_S = 0.25
SEED = 1


def play(deadline_s: float, policy: str) -> tuple[Sample, ...]:
    """How things stood while the load stepped up and down."""
    trace = traces.cook(traces.STEP, "step", 1.0, deadline_s, SEED, LENGTH_S)
    return ours.play(trace, policy, sample_every_s=SAMPLE_EVERY_S).samples


def draw(path: Path) -> None:
    """The picture: a column for each deadline; q, backlog and predicted wait over time, for each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(3, len(traces.DEADLINES_S), sharex=True, squeeze=False)
    for column, deadline_s in zip(axes.T, traces.DEADLINES_S, strict=True):
        column[0].set_title(f"deadline {deadline_s:g} s")
        for policy in ours.POLICIES:
            samples = play(deadline_s, policy)
            for axis, values in zip(column, _curves(samples), strict=True):
                axis.plot([sample.at for sample in samples], values, linewidth=1, label=policy)
        for axis, label in zip(column, _LABELS, strict=True):
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
            for place in (1, 2):
                axis.axvline(place * LENGTH_S / 3, color="grey", linewidth=0.5, linestyle="--")
        column[0].legend()
        column[2].axhline(deadline_s, color="red", linewidth=0.5)
        column[2].set_xlabel("time [s]")
    loads = ", then ".join(f"{load:g}" for load in traces.STEP_LOADS)
    figure.suptitle(f"Step response: load {loads}; {traces.SLOTS} slots, 1 s is the mean service time")
    figure.savefig(path, dpi=110)


_LABELS = ("admission probability q", "stages in the queue", "predicted wait [s]")


def _curves(samples: tuple[Sample, ...]) -> tuple[list[float], list[float], list[float]]:
    q = [min((one.q for one in sample.thinning), default=1.0) for sample in samples]
    wait_s = [max((one.wait_s for one in sample.thinning), default=0.0) for sample in samples]
    return q, [float(sample.queued) for sample in samples], wait_s
