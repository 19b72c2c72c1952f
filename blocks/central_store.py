"""The central store as Prefect sees it: where tasks on the plain road keep their results."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import anyio.to_thread
from prefect.filesystems import WritableFileSystem
from pydantic import ConfigDict, Field, SecretStr, ValidationError, model_validator

from p3s_prefect.adapters.result_files import ResultFiles, result_files
from p3s_prefect.adapters.s3_client import Keys, keys_in, lend_keys
from p3s_prefect.core import experiment
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import StoreError


class CentralStore(WritableFileSystem):
    """Files in the place of an experiment's central store: below its directory, or in its bucket.

    Nobody sees half a file. Published datasets lie in the same place under ``runs/`` and are never touched: what
    Prefect keeps goes under ``prefect/``.
    """

    # People write keys into addresses, and errors go to logs.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "Central Store"
    _block_type_slug = "p3s-central-store"
    _description = "The central store of a p3s-prefect experiment, in a directory or in a bucket."
    _code_example = """
    ```python
    from p3s_prefect.blocks import CentralStore

    CentralStore(directory="/data/lst1/store").save("lst1")
    CentralStore(url="s3://lst1/store", endpoint="https://s3.site.org").save("lst1")
    store = CentralStore.load("lst1")
    ```
    """

    # Prefect declares the plain names as asynchronous; but it calls them with `_sync`, and awaits those with an `a`.

    directory: str | None = Field(
        default=None, description="The store's directory, the same on every machine that runs tasks."
    )
    url: str | None = Field(default=None, description="Or its bucket: s3://bucket/prefix.")
    endpoint: str | None = Field(default=None, description="The bucket's server; Amazon's own, if it is empty.")
    region: str | None = Field(default=None, description="The bucket's region.")
    credentials: str | None = Field(
        default=None, description="A file with the keys, in Amazon's format, on every machine that runs tasks."
    )
    access_key: SecretStr | None = Field(
        default=None, description="The key to the bucket; without, what each machine's environment has."
    )
    secret_key: SecretStr | None = Field(default=None, description="The secret that belongs to the key.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.directory is None) == (self.url is None):
            raise ValueError("give the store's directory, or its url")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("give access_key and secret_key, or neither")
        self.get_store()
        return self

    def get_store(self) -> experiment.Store:
        """The store, as an experiment declares it."""
        try:
            return experiment.Store(directory=self.directory, url=self.url, endpoint=self.endpoint, region=self.region)
        except ValidationError as errors:
            raise ValueError("; ".join(found["msg"] for found in errors.errors())) from None

    def reach_store(self) -> experiment.Store:
        """The store, which this process may use from now on; a directory is made at its first use.

        Raises:
            StoreError: the directory that it lies in is not there.
        """
        self.lend_keys()
        if self.directory is None or (Path(self.directory).is_absolute() and Path(self.directory).parent.is_dir()):
            return self.get_store()
        raise StoreError(
            f"the block of the central store points nowhere: {self.directory} cannot be reached on this machine",
            fix="Mount it, or correct the block: `p3s deploy` writes what the experiment file says.",
        )

    def lend_keys(self) -> None:
        """Lets this process use the block's keys, if it has some, wherever it asks the same bucket."""
        place = self.get_store().place
        if not isinstance(place, BucketPlace):
            return
        if self.access_key is not None and self.secret_key is not None:
            keys = Keys(access_key=self.access_key.get_secret_value(), secret_key=self.secret_key.get_secret_value())
            lend_keys(place, keys)
        elif self.credentials is not None:
            lend_keys(place, keys_in(Path(self.credentials)))

    async def aread_path(self, path: str) -> bytes:
        """The content of a file; see `read_path`."""
        return await anyio.to_thread.run_sync(self._files().read, path)

    def read_path(self, path: str, *, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The content of a file.

        Raises:
            ObjectMissing: there is none.
            BadName: the path leads out of the store.
        """
        return self._files().read(path)

    async def awrite_path(self, path: str, content: bytes) -> str:
        """Writes a file; see `write_path`."""
        return await anyio.to_thread.run_sync(self._files().write, path, content)

    def write_path(self, path: str, content: bytes, *, _sync: bool = True) -> str:  # type: ignore[override]
        """Writes a file, in place of an older one, and returns where it is.

        Raises:
            BadName: the path leads out of the store.
        """
        return self._files().write(path, content)

    def _files(self) -> ResultFiles:
        self.lend_keys()
        place = self.get_store().place
        return result_files(place if isinstance(place, BucketPlace) else Path(place))
