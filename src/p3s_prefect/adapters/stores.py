"""Opening the central store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.core.errors import StoreError


def open_store(url: str) -> DirectoryStore:
    """The store at a ``file://`` URL, as a pilot opens it from its order.

    Raises:
        StoreError: no store of this package has such a URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise StoreError(f"no store is known for {parts.scheme}:// URLs", fix="Give a directory.")
    return DirectoryStore(Path(unquote(parts.path)))
