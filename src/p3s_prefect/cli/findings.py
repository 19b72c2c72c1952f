"""What a comparison of books and storage found, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from p3s_prefect.cli.output import plain_text, table
from p3s_prefect.core.agreement import Finding


def findings_table(findings: Iterable[Finding]) -> Table:
    """One row for each finding."""
    return table(
        ["found", "about", "what", "done", ""],
        [
            (one.trouble.value, plain_text(f"{one.data_id}\n{one.key}".strip()), one.what, one.done.value, one.told)
            for one in findings
        ],
    )
