"""How long `p3s simulate` takes for a survey's night: 1,000 visits of 189 detectors, two stages each, on one core."""

from __future__ import annotations

import time

from benchmarks.table import Row
from p3s_prefect.core.experiment_changes import Change, changed
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.load_file import LoadFile, load_options
from p3s_prefect.core.simulation import Policy, compare
from p3s_prefect.core.simulation_results import PolicyResult
from p3s_prefect.core.synthetic_load import synthetic_load

VISITS = 1_000
DETECTORS = 189
SLOTS = 120
WANTED_S = 120.0
# Each detector of a visit is work for 23 s of a slot, and a visit comes every 34 s: 1.07 times what the slots can do.
LOAD = {"every": "34s", "parts": DETECTORS}
SERVICE = {"isr": "gamma:8s,0.3", "diff": "gamma:15s,0.3"}
EXPERIMENT = f"""
experiment: night
instrument: {{name: camera, dimensions: {{visit: int, detector: int}}, group: [visit], closing: {{count: {DETECTORS}}}}}
dataset_types: {{raw: {{format: file}}, image: {{format: file}}, difference: {{format: file}}}}
pipelines:
  alerts:
    stages:
      isr:
        deadline_s: 60
        steps: [{{name: isr, command: [isr], inputs: {{raw: raw}}, outputs: {{image: image}}}}]
      diff:
        after: [isr]
        deadline_s: 60
        steps: [{{name: diff, command: [diff], inputs: {{image: image}}, outputs: {{difference: difference}}}}]
streams:
  camera:
    directory: incoming
    pattern: v{{visit:06d}}_{{detector:03d}}
    dataset_type: raw
    rules: [{{pipelines: [alerts]}}]
"""


def rows() -> list[Row]:
    """Seconds of one core for the night, and what became of it."""
    result, spent_s = play(VISITS)
    (tally,) = result.classes
    about = f"{VISITS:,} visits x {DETECTORS} detectors, 2 stages"
    return [
        Row(f"simulate {about}", f"{spent_s:.0f} s", f"wanted: below {WANTED_S:.0f}"),
        Row("of it in time", f"{tally.in_time / tally.seen:.1%}", ""),
    ]


def play(visits: int, *changes: str, slots: int = SLOTS) -> tuple[PolicyResult, float]:
    """(What became of so many visits, seconds of one core that it took to make the load and play it).

    `changes` are those of `p3s simulate --set`.
    """
    began = time.process_time()
    declared = load_options(
        {"streams": {"camera": {**LOAD, "visits": visits}}, "service": SERVICE, "slots": slots}, LoadFile
    )
    edit = changed(Change.parse(text) for text in changes)
    experiment = parse_experiment(EXPERIMENT, file="night.yaml", edit=edit)
    load = synthetic_load(declared, experiment, seed=1, measured={})
    found = compare(load, Policy(name="A", experiment=experiment))
    return found.a, time.process_time() - began
