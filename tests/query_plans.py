"""Which tables a statement walks through, instead of finding its rows by index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection


def walked_through(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """``SCAN`` and the table, as SQLite says it; where walking through a small table is cheaper, only if it must be."""
    if connection.dialect.name == "sqlite":
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return [row.detail for row in plan if row.detail.startswith("SCAN ")]
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    (plan,) = json.loads(found) if isinstance(found, str) else found
    return [f"SCAN {node['Relation Name']}" for node in _nodes(plan["Plan"]) if node["Node Type"] == "Seq Scan"]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)
