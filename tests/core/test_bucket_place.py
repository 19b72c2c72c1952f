"""Places in buckets: what may name one."""

from __future__ import annotations

from contextlib import suppress

import pytest
from botocore.utils import is_valid_uri
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.adapters.bucket_url import bucket_place, bucket_url
from p3s_prefect.core.bucket_place import BucketPlace, checked_endpoint
from p3s_prefect.core.errors import BadName

PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,9}", fullmatch=True)


@given(
    prefix=st.lists(PARTS, max_size=3).map("/".join),
    endpoint=st.sampled_from([None, "http://127.0.0.1:9000", "https://s3.site.org", "http://[::1]:80"]),
    region=st.sampled_from([None, "eu-west-1"]),
    credentials=st.none() | st.text("/ab?&=%# é", min_size=1, max_size=9),
)
def test_a_place_is_found_again_by_its_url(
    prefix: str, endpoint: str | None, region: str | None, credentials: str | None
) -> None:
    """S3: the URL is all that an order says about the store."""
    place = BucketPlace(bucket="night", prefix=prefix, endpoint=endpoint, region=region, credentials=credentials)
    assert bucket_place(bucket_url(place)) == place
    assert place.own_key(place.key("runs/a")) == "runs/a"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://minio-:9000",
        "http://-minio",
        "http://a..b:80",
        "http://.a",
        "http://a..",
        f"http://{'a' * 64}",
        f"http://{'.'.join(['a' * 63] * 4)}",
        "http://[1]:1",
        "http://[::1",
        "http://[:::]:80",
        "http://[1:2:3:4:5:6:7:8:9]",
        "http://host:0",
        "http://host:65536",
        "http://host:٣",
        "http://host:",
        "http://",
        "http://a_b",
    ],
)
def test_what_is_no_server_is_refused(endpoint: str) -> None:
    """S8: before a client of S3 is made of it, which would raise what nobody expects."""
    with pytest.raises(BadName) as told:
        checked_endpoint(endpoint)
    assert told.value.fix


@given(
    st.from_regex(r"https?://(\[[0-9a-f:.]{1,12}\]|[A-Za-z0-9.-]{1,8})(:[0-9]{1,5})?/?", fullmatch=True)
    | st.sampled_from(["http://[::1]:80", "https://s3.site.org", f"http://{'a' * 63}", "http://a-b.c:65535/"])
)
def test_what_is_taken_for_a_server_is_one_for_clients_too(endpoint: str) -> None:
    """S8: `p3s check` finds what a station would stumble over."""
    with suppress(BadName):
        assert is_valid_uri(checked_endpoint(endpoint))


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://ab",
        "s3://Night",
        "s3://night/..",
        "s3://night/a//b",
        "s3://night/a b",
        "s3://night/é",
        "s3://night:9000/a",
        "s3://key:secret@night",
        "s3://night?endpoint=file:///etc/passwd",
        "s3://night?endpoint=http://key:secret@host",
        "s3://night?endpoint=http://host/path",
        "s3://night?region=a%20b",
        "s3://night?other=1",
        "s3://night#fragment",
        "https://night/a",
    ],
)
def test_what_is_no_place_is_refused_without_repeating_keys(url: str) -> None:
    """S7, S8."""
    with pytest.raises(BadName) as told:
        bucket_place(url)
    assert told.value.fix
    assert "secret" not in str(told.value)
