"""Notifications of buckets' servers: both forms, and whatever else somebody sends."""

from __future__ import annotations

import json

import pytest

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.notices import Notice, read_notices


def record(bucket: object, key: object) -> dict[str, object]:
    return {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 4}}}


def test_the_event_of_s3() -> None:
    """P2: keys come as in a form."""
    told = {"Records": [record("raw", "night/run1+a%2Bb.fits"), record("raw", "x"), record("raw", 7)]}
    assert read_notices(json.dumps(told).encode()) == (
        Notice(bucket="raw", key="night/run1 a+b.fits"),
        Notice(bucket="raw", key="x"),
    )


def test_the_event_of_seaweedfs() -> None:
    """P2: by the path in its filer; what is in no bucket is nothing."""
    body = {"key": "/buckets/raw/night/run1+a.fits", "event_type": "create", "message": {"new_entry": {}}}
    assert read_notices(json.dumps(body).encode()) == (Notice(bucket="raw", key="night/run1+a.fits"),)
    for elsewhere in ("/etc/iam/identity.json", "/buckets/raw", "/buckets/raw/", ""):
        assert read_notices(json.dumps({"key": elsewhere}).encode()) == ()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff", b"[]", b"7", b"null", b"{}", b'{"Records": 7}', b'{"key": 7}', b"[" * 100_000),
        *(json.dumps({"Records": [wrong]}).encode() for wrong in (7, None, {}, {"s3": 7}, {"s3": {"bucket": []}})),
    ],
)
def test_anything_else_is_refused_with_an_example(body: bytes) -> None:
    """S8."""
    with pytest.raises(BadName) as refused:
        read_notices(body)
    assert "SeaweedFS" in refused.value.fix
