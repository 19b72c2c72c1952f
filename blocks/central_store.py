"""The central store as Prefect sees it: where tasks on the plain road keep their results."""

from __future__ import annotations

import uuid
from pathlib import Path

import anyio.to_thread
from prefect.filesystems import WritableFileSystem
from pydantic import Field

from p3s_prefect.core.errors import BadName, ObjectMissing, StoreError


class CentralStore(WritableFileSystem):
    """Files below the directory of an experiment's central store.

    Nobody sees half a file: each is written under a hidden name and renamed. Published datasets lie in the same
    directory under ``runs/`` and are never touched: what Prefect keeps goes under ``prefect/``.
    """

    _block_type_name = "Central Store"
    _block_type_slug = "p3s-central-store"
    _description = "The central store of a p3s-prefect experiment, in a directory."
    _code_example = """
    ```python
    from p3s_prefect.blocks import CentralStore

    CentralStore(directory="/data/lst1/store").save("lst1")
    store = CentralStore.load("lst1")
    ```
    """

    # Prefect declares the plain names as asynchronous; but it calls them with `_sync`, and awaits those with an `a`.

    directory: str = Field(description="The store's directory, the same on every machine that runs tasks.")

    def get_directory(self) -> str:
        """The store's directory, which is made at its first use.

        Raises:
            StoreError: the directory that it lies in is not there.
        """
        if not Path(self.directory).is_absolute() or not Path(self.directory).parent.is_dir():
            raise StoreError(
                f"the block of the central store points nowhere: {self.directory} cannot be reached on this machine",
                fix="Mount it, or correct the block: `p3s deploy` writes what the experiment file says.",
            )
        return self.directory

    async def aread_path(self, path: str) -> bytes:
        """The content of a file; see `read_path`."""
        return await anyio.to_thread.run_sync(self._read, path)

    def read_path(self, path: str, *, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The content of a file.

        Raises:
            ObjectMissing: there is none.
            BadName: the path leads out of the store.
        """
        return self._read(path)

    async def awrite_path(self, path: str, content: bytes) -> str:
        """Writes a file; see `write_path`."""
        return await anyio.to_thread.run_sync(self._write, path, content)

    def write_path(self, path: str, content: bytes, *, _sync: bool = True) -> str:  # type: ignore[override]
        """Writes a file, in place of an older one, and returns where it is.

        Raises:
            BadName: the path leads out of the store.
        """
        return self._write(path, content)

    def _read(self, path: str) -> bytes:
        try:
            return self._place(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectMissing(f"there is no result {path}", fix="It was never kept, or was removed.") from error

    def _write(self, path: str, content: bytes) -> str:
        place = self._place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        hidden = place.with_name(f".writing-{uuid.uuid4().hex}")
        try:
            hidden.write_bytes(content)
            hidden.replace(place)
        finally:
            hidden.unlink(missing_ok=True)
        return str(place)

    def _place(self, path: str) -> Path:
        root = (Path(self.directory) / "prefect").resolve()
        place = (root / path).resolve()
        if root not in place.parents:
            raise BadName(f"{path[:120]!r} leads out of the store", fix="Give a path below the store's directory.")
        return place
