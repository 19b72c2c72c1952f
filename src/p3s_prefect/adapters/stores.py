"""Opening the central store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from p3s_prefect.adapters.bucket_objects import ask_bucket
from p3s_prefect.adapters.bucket_url import bucket_place
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.s3_away import AWAY_SERVERS
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.errors import BadName, StoreError
from p3s_prefect.core.ports import ObjectStore


def directory_url(directory: Path) -> str:
    """The URL of a store in a directory."""
    return directory.resolve().as_uri()


def open_store(url: str) -> ObjectStore:
    """The store at a ``file://`` or ``s3://`` URL, as a pilot opens it from its order.

    Raises:
        StoreError: no store of this package has such a URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme != "s3":
        raise StoreError(
            f"no store is known for {parts.scheme}:// URLs", fix="Give a directory, or s3://bucket/prefix."
        )
    try:
        return S3Store(bucket_place(url))
    except BadName as error:
        raise StoreError(f"{error.what}: no store is there", fix=error.fix) from error


def ask_store(store: ObjectStore, *, is_hasty: bool = False) -> None:
    """Asks a store for next to nothing: whether it can be used at all; once and not for long, if `is_hasty`.

    Raises:
        StoreUnreachable: it does not answer.
        StoreError: it refuses.
    """
    if is_hasty and not is_local(store.url):
        ask_bucket(bucket_place(store.url))
    else:
        next(store.list("none-of-ours/"), None)


def is_known_away(url: str) -> bool:
    """Whether this process has asked a store a moment ago, and got no answer."""
    return urlsplit(url).scheme == "s3" and AWAY_SERVERS.is_away(bucket_place(url))


def is_local(url: str) -> bool:
    """Whether a store's objects are files that pilots read where they are."""
    return urlsplit(url).scheme == "file"
