"""The ledger as Prefect sees it: where a site keeps its books."""

from __future__ import annotations

from pathlib import Path

from prefect.blocks.core import Block
from pydantic import Field, field_validator
from sqlalchemy import make_url

from p3s_prefect.core import experiment
from p3s_prefect.core.addresses import holds_password
from p3s_prefect.core.errors import LedgerError


class Ledger(Block):
    """The database of record of a site. It holds no secret: the password of a server stands in PGPASSWORD."""

    _block_type_name = "Ledger"
    _block_type_slug = "p3s-ledger"
    _description = "The database of record of a p3s-prefect site: units, passes, stage runs, datasets, journal."
    _code_example = """
    ```python
    from p3s_prefect.blocks import Ledger

    Ledger(url="sqlite:////data/lst1/ledger.db").save("lst1")
    books = Ledger.load("lst1").get_ledger()
    ```
    """

    url: str = Field(
        pattern=r"^(sqlite:////|postgresql\+psycopg://)",
        description="SQLAlchemy URL of an SQLite file with its whole path, such as sqlite:////data/lst1/ledger.db, or "
        "of a database on a PostgreSQL server, without a password: postgresql+psycopg://p3s@host/lst1.",
    )

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        if holds_password(url):
            raise ValueError("must not hold a password: set PGPASSWORD, or write it into ~/.pgpass")
        return url

    def get_ledger(self) -> experiment.Ledger:
        """The ledger, as an experiment declares it.

        Raises:
            LedgerError: it is a file, and its directory is not there.
        """
        url = make_url(self.url)
        place = Path(str(url.database)).parent
        if url.get_backend_name() == "sqlite" and not place.is_dir():
            raise LedgerError(
                f"the block of the ledger points nowhere: there is no directory {place} on this machine",
                fix="Make it or mount it, or correct the block: `p3s deploy` writes what the experiment file says.",
            )
        return experiment.Ledger(url=self.url)
