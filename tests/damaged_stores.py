"""Stores of which a part is damaged."""

from __future__ import annotations

from pathlib import Path

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.core.errors import StoreError


class OneIsBad(DirectoryStore):
    """What stands below one prefix cannot be read."""

    def __init__(self, root: Path, prefix: str, error: StoreError) -> None:
        super().__init__(root)
        self._prefix = prefix
        self._error = error

    def read_bytes(self, key: str) -> bytes:
        if key.startswith(self._prefix):
            raise self._error
        return super().read_bytes(key)
