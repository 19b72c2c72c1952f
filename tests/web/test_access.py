"""Nobody gets in (S7)."""

from __future__ import annotations

import pytest
from faces import Browser, NewFace

_TOKEN = "correct horse battery staple"  # noqa: S105


@pytest.mark.parametrize("address", ["/", "/api/status", "/api/events", "/api/products/1", "/units/a/0/run=1", "/x"])
def test_without_the_token_nothing_is_told(new_face: NewFace, address: str) -> None:
    """S7."""
    client = Browser(new_face(token=_TOKEN))
    wrong = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {_TOKEN}"},
        {"Authorization": "Bearer \xe9"},
        {"Cookie": "p3s_night=wrong"},
        {"Cookie": f"p3s_night={_TOKEN}"},
    ]
    for headers in wrong:
        answer = client.get(address, headers=[(name, value.encode("latin-1")) for name, value in headers.items()])
        assert answer.status_code == 401
        assert "P3S_TOKEN" in answer.text
        assert _TOKEN not in answer.text


def test_the_token_opens_by_header(new_face: NewFace) -> None:
    client = Browser(new_face(token=_TOKEN), Authorization=f"Bearer {_TOKEN}")
    assert client.get("/").status_code == 200
    assert client.get("/api/status").json()["status"] == "ok"


def test_the_token_opens_by_a_visit_and_leaves_the_address(new_face: NewFace) -> None:
    """S7: the token stays neither in the address nor in the cookie."""
    client = Browser(new_face(token=_TOKEN))
    answer = client.get("/", params={"token": _TOKEN, "state": "failed"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?state=failed")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert "correct" not in cookie
    assert client.get("/").status_code == 200


def test_a_visit_cannot_send_a_browser_elsewhere(new_face: NewFace) -> None:
    """S7."""
    answer = Browser(new_face(token=_TOKEN)).get("http://127.0.0.1//evil.example/", params={"token": _TOKEN})
    assert answer.headers["location"].startswith("/evil.example")


def test_a_watchdog_learns_only_whether_the_station_is_well(new_face: NewFace) -> None:
    client = Browser(new_face(token=_TOKEN))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert "rows" in client.get("/healthz", headers={"Authorization": f"Bearer {_TOKEN}"}).json()
    assert client.get("/static/p3s.css").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8570", 200),
        ("localhost", 200),
        ("[::1]:8570", 200),
        ("127.0.0.2:8570", 200),
        ("192.0.2.7:8570", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8570", 421),
        ("", 421),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(new_face: NewFace, host: str, status: int) -> None:
    """S7: a page from elsewhere whose name points to this machine (DNS rebinding) reads nothing."""
    assert Browser(new_face()).get("/", headers={"Host": host}).status_code == status


def test_a_defect_tells_nothing_of_its_inside(new_face: NewFace) -> None:
    """S7."""

    def told() -> None:
        raise ValueError("secret")

    client = Browser(new_face(told=told))
    answer = client.get("/", hide_defects=True)
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    assert "station.log" in answer.text
