"""A run of which overload left units out, as rows; its weighted values are known."""

from __future__ import annotations

from ledger_rows import T0, Rows

# State, q and noise of each part: of twelve that settled, four were sure to be taken, eight had a chance of 1/4.
PARTS = (
    ("done", 1.0, 4.0),
    ("done", 1.0, 5.0),
    ("done", 1.0, 6.0),
    ("done", 1.0, 7.0),
    ("done", 0.25, 10.0),
    ("shed", 0.25, None),
    ("shed", 0.25, None),
    ("prescaled", 0.25, None),
    ("done", 0.25, 12.0),
    ("expired", 0.25, None),
    ("shed", 0.25, None),
    ("shed", 0.25, None),
    ("running", 0.5, None),
)
MEAN = (4 + 5 + 6 + 7 + 4 * 10 + 4 * 12) / 12
"""Of the noise; the missing part's share by weight is 4 of 16."""


def thinned_run(rows: Rows, *, run: int = 1) -> int:
    """A run with these parts; the answer is its pass. A part is noisy where its noise is above 6."""
    pass_id = rows.production_pass(rows.group(f"run={run}", arrivals=len(PARTS)), "quality")
    for part, (state, q, noise) in enumerate(PARTS):
        at = T0 + 10 * part
        unit = rows.unit(pass_id, f"run={run} part={part}", state="arrived" if state == "running" else state, at=at)
        clean = rows.stage(unit, "clean", state=state, q=q, at=at)
        if noise is not None:
            attempt = rows.attempt(clean, at=at)
            rows.summary(attempt, "noise", noise, "ADC")
            rows.summary(attempt, "noisy", noise > 6)
            rows.summary(attempt, "label", "good")
    return pass_id


def lone_run(rows: Rows, *, run: int = 1) -> None:
    """A run with one noise, of 4 ADC, and of two parts: the other one expired."""
    pass_id = rows.production_pass(rows.group(f"run={run}", arrivals=2), "quality")
    for part, state in enumerate(("done", "expired")):
        at = T0 + 10 * part
        clean = rows.stage(
            rows.unit(pass_id, f"run={run} part={part}", state=state, at=at), "clean", state=state, at=at
        )
        if state == "done":
            rows.summary(rows.attempt(clean, at=at), "noise", 4.0, "ADC")
