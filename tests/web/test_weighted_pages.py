"""Weighted values on pages and in JSON (P6)."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from faces import Browser
from ledger_rows import Rows
from thinned_rows import MEAN, lone_run, thinned_run

from p3s_prefect.web import face

Fill = Callable[[Callable[[Rows], object]], None]


def test_a_groups_page_shows_value_error_share_and_range(client: Browser, fill: Fill) -> None:
    """P6."""
    fill(thinned_run)
    page = html.unescape(client.get("/groups/run=1").text)
    (row,) = re.findall(r"<tr>\s*<th scope=\"row\">noise .*?</tr>", page, re.DOTALL)
    for text in ("9.2 ± 1.0", "ADC", "6 of 13", "1 open", ">5<", "1 expired (25 %)", "7.875 to 9.875"):
        assert text in row
    assert "share of yes" in page


def test_a_group_without_values_has_no_table(client: Browser, fill: Fill) -> None:
    fill(lambda rows: rows.production_pass(rows.group("run=1"), "quality"))
    assert "Summary values" not in client.get("/groups/run=1").text


def test_a_group_in_json_has_its_values(client: Browser, fill: Fill) -> None:
    """P6."""
    fill(thinned_run)
    found = client.get("/api/groups/run=1").json()
    noise = next(value for value in found["values"] if value["name"] == "noise")
    assert found["group"]["data_id"] == "run=1"
    assert noise["estimate"]["value"] == pytest.approx(MEAN)
    assert (noise["missing"], noise["missing_share"]) == ({"expired": 1}, 0.25)
    assert client.get("/api/groups/run=7").status_code == 404


def test_a_trend_shows_its_points_with_q_and_what_is_missing(client: Browser, fill: Fill) -> None:
    """P6: the mean of all, its error, share and range as a band, each point with its probability; in JSON too."""
    fill(thinned_run)
    page = html.unescape(client.get("/").text)
    whole = "mean 9.2 ± 1.0, 5 left out; missing: 1 expired (25 %), range 7.875 to 9.875"
    for text in (f">{whole}</span>", "run=1 part=8: 12, kept with 0.25", "band"):
        assert text in page
    trends = {trend["name"]: trend for trend in client.get("/api/trends").json()["trends"]}
    assert trends["noise"]["weights"] == [1.0, 1.0, 1.0, 1.0, 4.0, 4.0]
    assert trends["noise"]["whole"]["estimate"]["error"] == pytest.approx(1.044, abs=1e-3)


def test_of_one_value_pages_say_that_no_range_is_known(client: Browser, fill: Fill) -> None:
    """P6: where a range is shown otherwise, on both pages; in JSON there is none, with the reason."""
    fill(lone_run)
    unknown = "not known: one value does not tell how much they differ"
    assert f"mean 4 ± 0; missing: 1 expired (50 %), range {unknown}</span>" in html.unescape(client.get("/").text)
    assert f"<td>{unknown}</td>" in html.unescape(client.get("/groups/run=1").text)
    (value,) = client.get("/api/groups/run=1").json()["values"]
    (trend,) = client.get("/api/trends").json()["trends"]
    for found in (value, trend["whole"]):
        assert (found["lowest"], found["highest"]) == (None, None)
        assert found["range_reason"] in unknown


def test_a_trend_of_which_nothing_was_left_out_is_as_plain_as_before(client: Browser, fill: Fill) -> None:
    """P17."""

    def write(rows: Rows) -> None:
        pass_id = rows.production_pass(rows.group("run=1"), "quality")
        for part in range(3):
            run = rows.stage(rows.unit(pass_id, f"run=1 part={part}"), "clean")
            rows.summary(rows.attempt(run), "noise", float(part), "ADC")

    fill(write)
    page = client.get("/").text
    assert '<polyline points="0.0,22.0 50.0,12.0 100.0,2.0"' in page
    for text in ("left out", "missing:", 'class="band"', 'class="dot"'):
        assert text not in page.partition('id="trends"')[2].partition("</section>")[0]


def test_a_page_that_is_asked_for_all_the_time_does_not_count_all_the_time(
    client: Browser, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P19: values of a group come from all its units; they are counted again when that is due for its cost."""
    asked = []
    monkeypatch.setattr(face, "group_values", lambda connection, data_id: asked.append(data_id) or ())
    fill(lambda rows: [rows.group(f"run={run}") for run in range(10)])
    monkeypatch.setattr(face, "COUNTING_SHARE", 1e-12)
    for _ in range(3):
        assert client.get("/groups/run=1").status_code == 200
    for run in range(2, 10):
        client.get(f"/groups/run={run}")
    asked.clear()
    client.get("/groups/run=9")
    assert asked == []
    client.get("/groups/run=1")
    assert asked == ["run=1"], "what was looked at longest ago is not kept"
    monkeypatch.setattr(face, "COUNTING_SHARE", 1e12)
    client.get("/groups/run=0")
    client.get("/groups/run=0")
    assert asked[1:] == ["run=0", "run=0"]
