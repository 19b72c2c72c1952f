"""What differs from site to site, typed and stored in Prefect."""

if __name__ != "p3s_prefect.blocks":
    raise ImportError("import this package as p3s_prefect.blocks")

from p3s_prefect.blocks.central_store import CentralStore
from p3s_prefect.blocks.ledger import Ledger
from p3s_prefect.blocks.pilots import Pilots

__all__ = ["CentralStore", "Ledger", "Pilots"]
