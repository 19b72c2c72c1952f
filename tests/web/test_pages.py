"""Pages and JSON, from rows to what a browser gets."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from faces import Browser, NewFace
from ledger_rows import T0, Rows, facts

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.health import StationFacts

Fill = Callable[[Callable[[Rows], object]], None]
_HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e"


def _run(rows: Rows, *, title: str = "Pedestal", shows: str = "An even disc is good", state: str = "done") -> int:
    pass_id = rows.production_pass(rows.group("run=1", arrivals=1), "dqm")
    unit = rows.unit(pass_id, "run=1 subrun=0", state=state)
    reason = "quick: exited with 3" if state == "failed" else ""
    stage = rows.stage(unit, "quick", state=state, reason=reason)
    attempt = rows.attempt(stage, state=state, reason=reason, steps={"statistics": 0.5, "displays": 0.7})
    rows.summary(attempt, "noise_median", 4.25, "ADC")
    return rows.product(attempt, title, shows=shows)


def test_products_and_summary_values_show_with_no_page_code(client: Browser, fill: Fill) -> None:
    """P17: titles, what they show, pictures and values that no page was ever told of."""
    fill(lambda rows: (_run(rows), _run_again(rows)))
    page = client.get("/").text
    for text in ("Pedestal", "An even disc is good", "noise_median", "4.5", "ADC", "<polyline"):
        assert text in page
    picture = re.search(r'<img src="(/api/products/\d+)" alt="Pedestal. An even disc is good"', page)
    assert picture
    assert client.get(picture[1]).headers["content-type"] == "image/png"


def _run_again(rows: Rows) -> None:
    unit = rows.unit(1, "run=1 subrun=1", at=T0 + 10)
    rows.summary(rows.attempt(rows.stage(unit, "quick", at=T0 + 10), at=T0 + 10), "noise_median", 4.5, "ADC")


def test_the_page_is_readable_before_any_data(client: Browser) -> None:
    page = client.get("/").text
    assert "All well" in page
    assert "No pictures yet" in page


def test_the_page_and_the_status_show_the_same_health(new_face: NewFace) -> None:
    """P19, for the rows that exist: what is wrong, why, and what to do, in words."""

    def told() -> StationFacts:
        return facts(slots_actual=0)

    client = Browser(new_face(told=told))
    page = html.unescape(client.get("/").text)
    rows = client.get("/api/status").json()["health"]
    assert {row["name"]: row["status"] for row in rows}["pilots"] == "down"
    for row in rows:
        assert row["actual"] in page
        assert row["cause"] in page
    healthz = client.get("/healthz")
    assert (healthz.status_code, healthz.json()["status"]) == (503, "down")


def test_a_failed_unit_tells_its_reason_everywhere(client: Browser, fill: Fill) -> None:
    fill(lambda rows: _run(rows, state="failed"))
    for address in ("/", "/?state=failed", "/units/dqm/0/run=1/subrun=0", "/groups/run=1"):
        assert "quick: exited with 3" in client.get(address).text
    assert "exited with 3" not in client.get("/?state=done").text.partition('id="units"')[2]


def test_a_units_page_tells_where_its_time_went(client: Browser, fill: Fill) -> None:
    fill(_run)
    page = client.get("/units/dqm/0/run=1/subrun=0").text
    for text in ("quick: statistics: 500 ms", "quick: displays: 700 ms", "waited for arrival: 250 ms", "published"):
        assert text in page


def test_json_says_what_the_page_says(client: Browser, fill: Fill) -> None:
    fill(_run)
    (row,) = client.get("/api/units?state=done").json()["units"]
    assert (row["data_id"], row["stages"][0]["attempts"][0]["state"]) == ("run=1 subrun=0", "done")
    found = client.get("/api/units/dqm/0/run=1/subrun=0").json()
    assert found["summary"][0]["value"] == 4.25
    account = client.get("/api/account").json()
    assert (account["account"][0]["seen"], account["account"][0]["done"]) == (1, 1)
    assert client.get("/api/groups").json()["groups"][0]["coverage"][0]["seen"] == 1
    (picture,) = client.get("/api/products").json()["products"]
    assert f'<img src="/api/products/{picture["id"]}" alt="{picture["title"]}' in client.get("/").text
    assert client.get("/api/groups/run=1").json()["products"] == []
    assert client.get("/api/journal").json()["journal"] == []
    assert client.get("/api/arrivals?verdict=refused").json()["arrivals"] == []


def test_what_payloads_and_file_names_say_is_only_text(client: Browser, fill: Fill) -> None:
    """S7."""

    def write(rows: Rows) -> None:
        _run(rows, title=_HOSTILE, shows=_HOSTILE)
        rows.arrival(_HOSTILE, verdict="refused", reason=_HOSTILE, path=_HOSTILE)

    fill(write)
    for address in ("/", "/units/dqm/0/run=1/subrun=0", "/groups/run=1"):
        page = client.get(address).text
        assert "<script>alert" not in page
        assert "\x1b" not in page
        assert "\u202e" not in page
    assert "&lt;script&gt;alert" in client.get("/").text


def test_pages_forbid_whatever_they_do_not_need(client: Browser) -> None:
    """S7: nothing from elsewhere, nothing inline, in no frame."""
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=|https?://", answer.text)


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/units/dqm/0/run=9", 404, "no unit run=9"),
        ("/units/dqm/0/nonsense", 400, "not a part of a data id"),
        ("/units/dqm/0/run=..%2F..", 400, "value of run"),
        ("/units/dqm/x/run=1", 400, "no whole number"),
        ("/groups/run=9", 404, "no group run=9"),
        ("/?limit=1e9", 400, "no whole number"),
        ("/?state=bogus", 400, "expected, arrived, done"),
        ("/groups/run=1?state=bogus", 400, "no state"),
        ("/?pipeline=nope", 400, "Give one of: quality"),
        ("/api/units?state=bogus", 400, "no state"),
        ("/api/account?pipeline=nope", 400, "no pipeline"),
        ("/api/arrivals?verdict=done", 400, "taken, ignored, same, conflict, refused"),
        ("/api/products/99", 404, "no product 99"),
        ("/api/logs/99", 404, "no log"),
        ("/nowhere", 404, "no such page"),
        ("/static/../access.py", 404, "no such page"),
    ],
)
def test_errors_say_what_and_what_to_do(client: Browser, address: str, status: int, says: str) -> None:
    page = client.get(address)
    assert page.status_code == status
    assert says in page.text
    answer = client.get(address, headers={"Accept": "application/json"})
    assert (answer.status_code, bool(answer.json()["fix"])) == (status, True)


def test_nothing_can_be_changed_through_the_face(client: Browser) -> None:
    """S7."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert client.request(method, "/api/units").status_code == 405


def test_most_units_lost_is_shown_as_not_well(client: Browser, fill: Fill) -> None:
    """P19: on the page, in the status and to who watches it alike."""
    fill(lambda rows: _run(rows, state="failed"))
    page = html.unescape(client.get("/").text)
    rows = client.get("/api/status").json()["health"]
    (results,) = (row for row in rows if row["name"] == "results")
    assert results["status"] == "degraded"
    assert "Degraded" in page
    assert results["cause"] in page
    assert client.get("/healthz").json()["status"] == "degraded"


def test_units_without_pictures_are_told_from_no_units(client: Browser, fill: Fill) -> None:
    def write(rows: Rows) -> None:
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "quality"), "run=1 part=0")
        rows.attempt(rows.stage(unit, "clean"))

    fill(write)
    page = client.get("/").text
    assert "units are done, and none of the latest made any" in page
    assert "as soon as the first" not in page


@pytest.mark.parametrize(
    ("is_open", "unit", "whole", "says"),
    [
        (True, "arrived", None, "yet: they are made when it has closed"),
        (False, "arrived", "arrived", "yet: its totals wait for 1 open unit."),
        (False, "done", "arrived", "yet: its totals are being made."),
        (False, "done", "failed", "its totals failed because of this: add: exited with 3."),
        (False, "done", "done", "its totals made none."),
        (False, "done", None, "no stage works on the whole."),
    ],
)
def test_a_group_without_pictures_says_why(
    client: Browser, fill: Fill, is_open: bool, unit: str, whole: str | None, says: str
) -> None:
    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1", is_open=is_open), "quality")
        rows.unit(pass_id, "run=1 part=0", state=unit)
        if whole is not None:
            reason = "add: exited with 3" if whole == "failed" else ""
            state = "waiting" if whole == "arrived" else whole
            rows.stage(rows.unit(pass_id, "run=1", state=whole, per="group"), "totals", state=state, reason=reason)

    fill(write)
    page = client.get("/groups/run=1").text
    assert "No pictures of the whole run" in page
    assert says in page


def test_a_failed_unit_is_not_promised_anything(client: Browser, fill: Fill) -> None:
    def write(rows: Rows) -> None:
        _run(rows, state="failed")
        arrival = rows.arrival("a.fits", data_id="run=1 subrun=0")
        rows.connection.execute(schema.sub_job.update().values(arrival_id=arrival))

    fill(write)
    page = client.get("/units/dqm/0/run=1/subrun=0").text
    assert "nothing published" in page
    assert "not recorded" in page
    assert "not yet" not in page
    assert "not read yet" not in page


@pytest.mark.parametrize("others", [(), ("alerts",)])
def test_a_runs_line_names_its_pass_and_its_pipeline_where_there_are_several(
    client: Browser, fill: Fill, others: tuple[str, ...]
) -> None:
    """P22: there is not much room beside the bar."""

    def write(rows: Rows) -> None:
        group = rows.group("run=1")
        for pipeline in ("quality", *others):
            rows.unit(rows.production_pass(group, pipeline, number=1), "run=1 part=0")

    fill(write)
    page = client.get("/").text
    assert page.count("1 of 1 quality, pass 1" if others else "1 of 1, pass 1") == 1


def test_trends_of_units_and_of_groups_stand_apart(client: Browser, fill: Fill) -> None:
    """P17."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for data_id, per, stage in (("run=1 part=0", "unit", "clean"), ("run=1", "group", "totals")):
            rows.summary(rows.attempt(rows.stage(rows.unit(pass_id, data_id, per=per), stage)), "noise", 4.25, "ADC")

    fill(write)
    page = client.get("/").text
    assert page.index("<h3>Each part (clean)</h3>") < page.index("<h3>Each run (totals)</h3>")


def test_files_that_were_kept_out_come_with_a_remedy(client: Browser, fill: Fill) -> None:
    """S8."""

    def write(rows: Rows) -> None:
        rows.arrival("a", verdict="refused", reason="its name does not fit run{run}.fits")
        rows.arrival("b", verdict="refused", reason="it is not a plain file")
        rows.arrival("c", verdict="refused", reason="its time of modification is centuries away")
        rows.arrival("d", verdict="conflict", reason="other bytes than x, which was taken before; the first one stays")

    fill(write)
    page = html.unescape(client.get("/").text)
    for remedy in ("Rename it so that it fits the pattern", "Put the file itself there", "Set its time", "came first"):
        assert remedy in page
