"""Bytes of payloads in a browser (S7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faces import Browser
from ledger_rows import PNG, Rows, StoredBytes

from p3s_prefect.web import objects

Fill = Callable[[Callable[[Rows], object]], None]


def _product(fill: Fill, content: bytes, file: str) -> str:
    ids: list[int] = []

    def write(rows: Rows) -> None:
        unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=0")
        attempt = rows.attempt(rows.stage(unit, "quick"), log=b"line\n\x1b]0;title\x07\xff\x00\xe2\x80\xaeend\n")
        ids.append(rows.product(attempt, "Thing", content=content, file=file))

    fill(write)
    return f"/api/products/{ids[0]}"


def test_a_png_is_a_picture_that_never_changes(client: Browser, fill: Fill) -> None:
    answer = client.get(_product(fill, PNG, "thing.png"))
    assert (answer.content, answer.headers["content-type"]) == (PNG, "image/png")
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("file", ["page.html", "drawing.svg", "looks_like.png", "code.js"])
def test_anything_else_is_text_to_be_saved(client: Browser, fill: Fill, file: str) -> None:
    """S7: a page, a drawing or a script that a payload wrote is never run, whatever it is called."""
    answer = client.get(_product(fill, b"<html><script>alert(1)</script>", file))
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_a_damaged_product_is_not_shown(client: Browser, fill: Fill, stored: StoredBytes) -> None:
    """V13: what was published is what is shown, or nothing is."""
    address = _product(fill, PNG, "thing.png")
    (key,) = (key for key in stored.objects if key.endswith("thing.png"))
    stored.objects[key] = PNG[:-1] + b"\x00"
    answer = client.get(address)
    assert (answer.status_code, "no longer what was published" in answer.text) == (502, True)
    del stored.objects[key]
    assert client.get(address).status_code == 404


def test_a_large_object_is_left_in_the_store(client: Browser, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_BYTES", 10)
    answer = client.get(_product(fill, PNG, "thing.png"))
    assert (answer.status_code, "pages show up to 10 B" in answer.text) == (503, True)


def test_a_log_is_plain_text_with_its_end_and_nothing_that_acts(
    client: Browser, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7."""
    _product(fill, PNG, "thing.png")
    answer = client.get("/api/logs/1")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "line\n\\x1b]0;title\\x07\\xff\\x00\\u202eend\n"
    monkeypatch.setattr(objects, "LOG_TAIL_BYTES", 4)
    assert client.get("/api/logs/1").text.endswith("left out]\nend\n")
