"""Where a home's own S3 server is, if it has one (`own_store` starts it)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from p3s_prefect.adapters import s3_server
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import StoreError

_BUCKET = "results"


@dataclass(frozen=True)
class OwnServer:
    """The files of a home's server: what it keeps stays in ``s3/``, who may ask it stands in ``run/s3/``."""

    home: Path

    @property
    def data(self) -> Path:
        """What the server keeps."""
        return self.home.resolve() / "s3" / "data"

    @property
    def config(self) -> Path:
        """Whom it serves, and the keys; for the owner's eyes only."""
        return self.home.resolve() / "run" / "s3"

    @property
    def credentials(self) -> Path:
        """The keys, as boto3 reads them."""
        return self.config / "credentials"

    @property
    def address_file(self) -> Path:
        """That it is there means that this home keeps its results here."""
        return self.home.resolve() / "s3" / "server.json"

    def place(self) -> BucketPlace | None:
        """The place of the results; None where this home has no server of its own.

        Raises:
            StoreError: it has one, but nobody can tell where.
        """
        if not self.address_file.exists():
            return None
        try:
            port = int(json.loads(self.address_file.read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = 'Correct it to {"port": 8333}, any free port: the results beside it stay usable.'
            raise StoreError(f"{self.address_file} cannot be read: {error}", fix=fix) from error
        endpoint = f"http://{s3_server.HOST}:{port}"
        return BucketPlace(bucket=_BUCKET, endpoint=endpoint, credentials=str(self.credentials))
