"""The address to which servers of buckets send what has changed."""

from __future__ import annotations

from collections.abc import Sequence

from faces import Browser, NewFace

from p3s_prefect.core.notices import Notice

WORD = "open sesame"
BODY = b'{"key": "/buckets/raw/r1.txt"}'


def test_a_notice_is_handed_on(new_face: NewFace) -> None:
    """P2: and the answer says how many streams it concerns."""
    told: list[Notice] = []

    def hint(notices: Sequence[Notice]) -> int:
        told.extend(notices)
        return 0

    answer = Browser(new_face(hint=hint)).request("POST", "/api/notices", content=BODY)
    assert (answer.status_code, answer.json()) == (202, {"taken": 0})
    assert told == [Notice(bucket="raw", key="r1.txt")]


def test_a_notice_needs_the_token(new_face: NewFace) -> None:
    """S7."""
    for headers, expected in (
        ({}, 401),
        ({"Authorization": "Bearer no"}, 401),
        ({"Authorization": f"Bearer {WORD}"}, 202),
    ):
        browser = Browser(new_face(token=WORD), **headers)
        assert browser.request("POST", "/api/notices", content=BODY).status_code == expected


def test_nonsense_is_refused(new_face: NewFace) -> None:
    """S8: what is no notification, and what is too large to be one."""
    for body, word in ((b"hello", "no JSON"), (b"x" * (2 << 20), "larger than 1 MB")):
        answer = Browser(new_face(), Accept="application/json").request("POST", "/api/notices", content=body)
        assert answer.status_code == 400
        assert word in answer.json()["error"]
