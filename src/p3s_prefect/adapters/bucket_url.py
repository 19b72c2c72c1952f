"""A place in S3 as one URL, as it stands in an order: ``s3://bucket/prefix?endpoint=...&region=...``."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, unquote, urlsplit

from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import BadName

_ASIDE = ("endpoint", "region", "credentials")


def bucket_url(place: BucketPlace) -> str:
    """The URL of a place; no key stands in it, but perhaps the path of the file that has them."""
    aside = [(name, found) for name in _ASIDE if (found := getattr(place, name)) is not None]
    query = "&".join(f"{name}={quote(found, safe='/:')}" for name, found in aside)
    return f"{place.address}?{query}" if query else place.address


def bucket_place(url: str) -> BucketPlace:
    """The place that has this URL.

    Raises:
        BadName: there is none.
    """
    parts = urlsplit(url)
    aside = {name: found[-1] for name, found in parse_qs(parts.query, keep_blank_values=True).items()}
    if parts.fragment or aside.keys() - set(_ASIDE):
        raise BadName("the URL of a bucket has something in it that is not its own", fix=f"It has {', '.join(_ASIDE)}.")
    return BucketPlace.named(f"{parts.scheme}://{parts.netloc}{parts.path}", **aside)


def object_url(place: BucketPlace, key: str) -> str:
    """The URL of an object in a bucket, by its whole key: any key that S3 takes."""
    address, _, query = bucket_url(place).partition("?")
    bucket = address.removeprefix("s3://").partition("/")[0]
    return f"s3://{bucket}/{quote(key, safe='/ ')}" + (f"?{query}" if query else "")


def object_place(url: str) -> tuple[BucketPlace, str]:
    """The bucket and the whole key of an object that has this URL.

    Raises:
        BadName: there is none.
    """
    parts = urlsplit(url)
    whole = bucket_place(f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else ""))
    return whole, unquote(parts.path.removeprefix("/"))
