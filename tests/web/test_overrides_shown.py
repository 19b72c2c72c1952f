"""What is set by command, on the pages and in the answers, wherever it acts (S9)."""

from __future__ import annotations

from collections.abc import Callable

from faces import Browser
from ledger_rows import T0, Rows

from p3s_prefect.adapters.ledger import overrides
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.overrides import OverrideKind, Target

Fill = Callable[[Callable[[Rows], object]], None]
_HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e"


def _waiting(rows: Rows) -> None:
    pass_id = rows.production_pass(rows.group("run=1", arrivals=2), "quality")
    for part, state in enumerate(("arrived", "done")):
        unit = rows.unit(pass_id, f"run=1 part={part}", state=state)
        rows.stage(unit, "clean", state="queued" if state == "arrived" else "done")


def _set(rows: Rows, kind: OverrideKind, target: Target, why: str = "calibration", **more: float) -> None:
    overrides.set_override(rows.connection, kind=kind, target=target, by="ana", why=why, now=T0, **more)  # type: ignore[arg-type]


def test_a_pause_shows_on_the_first_page_with_its_unit_and_in_the_answers(client: Browser, fill: Fill) -> None:
    """S9, P19: with who, why and how it is lifted; units that have ended do not tell it."""
    fill(_waiting)
    assert "Set by command" not in client.get("/").text
    fill(lambda rows: _set(rows, OverrideKind.PAUSE, Target(pipeline="quality"), expires_at=T0 + 7210))
    pages = [client.get("/").text, client.get("/units/quality/0/run=1/part=0").text]
    for page in pages:
        for words in ("Set by command", "calibration", "ana", "p3s release quality", "in 2 h"):
            assert words in page
    assert "Degraded" in pages[0]
    # In its health row, once, and with the unit that waits.
    assert pages[0].count("pause of quality by ana: calibration") == 2
    assert "Set by command" not in client.get("/units/quality/0/run=1/part=1").text
    (shown,) = client.get("/api/status").json()["overrides"]
    assert (shown["kind"], shown["target"], shown["lift"]) == ("pause", "quality", "p3s release quality")


def test_a_priority_is_shown_and_is_well(client: Browser, fill: Fill) -> None:
    """S9."""
    fill(_waiting)
    fill(lambda rows: _set(rows, OverrideKind.PRIORITY, Target(unit=DataId.of(run=1, part=0)), value=7))
    page = client.get("/").text
    assert "All well" in page
    assert "priority 7" in page


def test_what_has_run_out_is_not_shown(client: Browser, fill: Fill) -> None:
    """S9: also while no station has ended it yet."""
    fill(_waiting)
    fill(lambda rows: _set(rows, OverrideKind.HOLD, Target(), expires_at=T0 + 1))
    assert "Set by command" not in client.get("/").text
    assert client.get("/api/status").json()["overrides"] == []


def test_a_hostile_reason_does_no_harm(client: Browser, fill: Fill) -> None:
    """S7."""
    fill(_waiting)
    fill(lambda rows: _set(rows, OverrideKind.HOLD, Target(), _HOSTILE))
    for address in ("/", "/units/quality/0/run=1/part=0"):
        page = client.get(address).text
        assert "<script>alert" not in page
        assert "\x1b" not in page
        assert "\u202e" not in page
