"""Rows for tests of what people see, put into the tables as a run of the station would leave them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.rows import add_missing
from p3s_prefect.core.errors import ObjectMissing
from p3s_prefect.core.health import SourceFacts, StationFacts
from p3s_prefect.core.ports import ObjectInfo

T0 = 1_800_000_000.0
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@dataclass
class StoredBytes:
    """A store that is a dictionary."""

    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = "file:///store"

    def read_bytes(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError as error:
            raise ObjectMissing(f"there is no object {key}") from error

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [
            ObjectInfo(key=key, size=len(content), modified_at=T0)
            for key, content in sorted(self.objects.items())
            if key.startswith(prefix)
        ]


@dataclass
class Rows:
    """Adds rows; what is not said is what a healthy station would write."""

    connection: Connection
    store: StoredBytes
    _passes: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def add(self, table: Table, **values: Any) -> int:
        return int(self.connection.execute(table.insert().values(values)).inserted_primary_key[0])

    def group(self, data_id: str, *, at: float = T0, is_open: bool = True, arrivals: int = 0) -> int:
        return self.add(
            schema.data_group,
            data_id=data_id,
            day="20270115",
            opened_at=at,
            last_arrival_at=at,
            arrivals=arrivals,
            is_open=is_open,
            closed_by=None if is_open else "marker",
        )

    def production_pass(self, group_id: int, pipeline: str, number: int = 0) -> int:
        collection = f"TestCam/{pipeline}/{group_id}/pass{number}"
        add_missing(self.connection, schema.configuration, id="c" * 64, content={}, stored_at=T0)
        self.connection.execute(
            schema.run_collection.insert().values(name=collection, configuration_id="c" * 64, opened_at=T0)
        )
        job_id = self.add(schema.job, group_id=group_id, pipeline=pipeline)
        return self.add(
            schema.production_pass, job_id=job_id, number=number, run_collection=collection, is_open=True, opened_at=T0
        )

    def unit(
        self, pass_id: int, data_id: str, *, state: str = "done", at: float = T0, per: str = "unit", u: float = 0.0
    ) -> int:
        return self.add(
            schema.sub_job,
            pass_id=pass_id,
            data_id=data_id,
            per=per,
            taken_at=at,
            arrived_at=at + 0.25,
            u=u,
            state=state,
            settled_at=None if state in ("expected", "arrived") else at + 3.0,
        )

    def stage(
        self,
        sub_job_id: int,
        stage: str,
        *,
        state: str = "done",
        reason: str = "",
        position: int = 0,
        at: float = T0,
        q: float = 1.0,
    ) -> int:
        return self.add(
            schema.stage_run,
            sub_job_id=sub_job_id,
            stage=stage,
            position=position,
            state=state,
            reason=reason,
            q=q,
            queued_at=at + 0.25,
            settled_at=None if state in ("waiting", "queued", "running", "held") else at + 3.0,
            failures=int(state == "failed"),
            losses=0,
        )

    def attempt(
        self,
        stage_run_id: int,
        *,
        state: str = "done",
        reason: str = "",
        at: float = T0,
        number: int = 0,
        steps: dict[str, float] | None = None,
        log: bytes | None = b"all well\n",
    ) -> int:
        """An attempt that started 1 s after `at`; `steps` gives the seconds that each took."""
        done, ended_at, spans = state == "done", at + 1.1, []
        for step, seconds in (steps or {"work": 1.0}).items():
            spans.append({"step": step, "started_at": ended_at, "ended_at": ended_at + seconds})
            ended_at += seconds
        prefix = f"runs/test/{stage_run_id}/attempt{number}"
        if log is not None and state != "running":
            self.store.objects[f"{prefix}/log.txt"] = log
        reported = state != "running"
        return self.add(
            schema.attempt,
            stage_run_id=stage_run_id,
            number=number,
            state=state,
            reason=reason,
            prefix=prefix,
            opened_at=at + 0.9,
            pilot="pilot-1" if reported else None,
            started_at=at + 1.0 if reported else None,
            ended_at=ended_at + 0.1 if reported else None,
            published_at=ended_at + 0.2 if done else None,
            steps=spans if reported else None,
            log_key=f"{prefix}/log.txt" if reported and log is not None else None,
            is_recorded=done,
        )

    def product(
        self,
        attempt_id: int,
        title: str,
        *,
        content: bytes = PNG,
        category: str = "Camera",
        file: str = "",
        **also: Any,
    ) -> int:
        name = file or f"{title.lower().replace(' ', '_')}.png"
        key = f"runs/test/products/{attempt_id}/{name}"
        self.store.objects[key] = content
        values = {"step": "work", "shows": f"What {title} shows", "sha256": hashlib.sha256(content).hexdigest()} | also
        return self.add(
            schema.product,
            attempt_id=attempt_id,
            category=category,
            title=title,
            file=name,
            key=key,
            size=len(content),
            **values,
        )

    def summary(self, attempt_id: int, name: str, value: Any, unit: str = "") -> None:
        self.connection.execute(
            schema.summary_value.insert().values(attempt_id=attempt_id, name=name, value=value, unit=unit)
        )

    def arrival(self, key: str, *, verdict: str = "taken", reason: str = "", at: float = T0, **also: Any) -> int:
        return self.add(
            schema.arrival,
            **{"stream": "camera", "key": key, "size": 100, "mtime_ns": 1, "path": f"/in/{key}"}
            | {"arrived_at": at, "verdict": verdict, "reason": reason}
            | also,
        )


def facts(**changes: Any) -> StationFacts:
    """A healthy station's facts, with changes."""
    values: dict[str, Any] = {
        "at": T0 + 10,
        "started_at": T0 - 100,
        "version": "0.1.0",
        "slots_nominal": 2,
        "slots_actual": 2,
        "running": 1,
        "queued": 0,
        "sources": (SourceFacts(stream="camera", directory="/in", list_every_s=5.0, listed_at=T0 + 8),),
        "store_url": "file:///store",
        "store_free_bytes": 10**12,
        "commit_s": 0.004,
    }
    return StationFacts(**(values | changes))
