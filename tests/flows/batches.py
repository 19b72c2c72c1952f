"""A home without a station: files in it do what their first word says, and a flow processes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema

# A stage as a shell script. `fail` fails always, `flaky` the first time; `hang` lasts longer than anybody waits, and
# `stuck` does so the first time; `murder` kills the worker, which has started the keeper, and that the payload process.
# It must not be reached where something else is waited for meanwhile, however busy the machine is.
LIMIT_S = 300
OBEY = """
read word < "$P3S_INPUT_RAW"
case "$word" in
  fail) echo 'it was told to'; exit 3;;
  flaky) test -e "$HERE/been" || { touch "$HERE/been"; exit 4; };;
  hang) echo $$ > "$HERE/hangs"; sleep 1000;;
  murder) keeper=$(cut -d' ' -f4 /proc/$PPID/stat); kill -9 $(cut -d' ' -f4 /proc/$keeper/stat); sleep 1000;;
  picture) printf '\\211PNG\\r\\n' > dot.png
    echo '[{"category": "display", "title": "Dot", "file": "dot.png", "shows": "One dot."}]' > products.json;;
  stuck) test -e "$HERE/hangs" || { echo $$ > "$HERE/hangs.new"; mv "$HERE/hangs.new" "$HERE/hangs"; sleep 1000; };;
esac
cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"
"""
LATER = 'tr a-z A-Z < "$P3S_INPUT_MADE" > "$P3S_OUTPUT_LOUD"'
TOTAL = '{ cat "$P3S_INPUT_LOUD"/*; echo "$P3S_COVERAGE"; } > "$P3S_OUTPUT_TOTAL"'


def _step(script: str, needed: str, made: str) -> dict[str, Any]:
    return {
        "name": "shell",
        "command": ["/bin/sh", "-c", script],
        "inputs": {needed: needed},
        "outputs": {made: made},
        "timeout_s": LIMIT_S,
    }


@dataclass(frozen=True)
class Batch:
    """A home with files of one run."""

    path: Path

    @classmethod
    def of(cls, path: Path, words: Mapping[int, str], site: Mapping[str, Any] | None = None, **quick: Any) -> Batch:
        """Each number of a subrun with its word; `site`: where things are; `quick`: fields of the first stage."""
        (path / "incoming").mkdir(parents=True)
        stages = {
            "quick": {"steps": [_step(f"HERE={path}; {OBEY}", "raw", "made")], "retries": 0, "backoff_s": 0, **quick},
            "later": {"after": ["quick"], "steps": [_step(LATER, "made", "loud")]},
            "total": {"per": "group", "after": ["later"], "steps": [_step(TOTAL, "loud", "total")]},
        }
        declared = {
            "experiment": "batch",
            "instrument": {"name": "TestCam", "dimensions": {"run": "int", "subrun": "int"}, "group": ["run"]},
            "dataset_types": {kind: {"format": "text"} for kind in ("raw", "made", "loud", "total")},
            "pipelines": {"dqm": {"stages": stages}},
            "streams": {
                "camera": {
                    "directory": "incoming",
                    "pattern": "r{run:03d}_{subrun:04d}.txt",
                    "dataset_type": "raw",
                    "rules": [{"pipelines": ["dqm"]}],
                }
            },
            "pilots": {"workers": 1},
            **(site or {}),
        }
        (path / "experiment.yaml").write_text(json.dumps(declared))
        batch = cls(path)
        for subrun, word in words.items():
            batch.file(subrun).write_text(f"{word}\n")
        return batch

    @property
    def home(self) -> Home:
        return Home(self.path)

    @property
    def files(self) -> list[str]:
        return [str(path) for path in sorted((self.path / "incoming").iterdir())]

    def file(self, subrun: int) -> Path:
        return self.path / "incoming" / f"r001_{subrun:04d}.txt"

    def rows(self, query: Any) -> list[Any]:
        """What the ledger answers."""
        with closing(self.home.ledger(self.home.read())) as ledger, ledger.reading() as connection:
            return list(connection.execute(query).all())

    def states(self) -> dict[tuple[str, str], str]:
        """State of each stage run by data id and stage; where a group has several passes, of the last."""
        query = select(schema.sub_job.c.data_id, schema.stage_run.c.stage, schema.stage_run.c.state).join(
            schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id
        )
        return {(row.data_id, row.stage): row.state for row in self.rows(query.order_by(schema.stage_run.c.id))}

    def attempts(self, stage: str, data_id: str = "run=1 subrun=0") -> list[str]:
        """The states of a stage run's attempts."""
        query = (
            select(schema.attempt.c.state)
            .join(schema.stage_run, schema.stage_run.c.id == schema.attempt.c.stage_run_id)
            .join(schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id)
            .where(schema.stage_run.c.stage == stage, schema.sub_job.c.data_id == data_id)
            .order_by(schema.attempt.c.id)
        )
        return [row.state for row in self.rows(query)]

    def dataset(self, kind: str, data_id: str = "run=1") -> str:
        """The content of a published dataset."""
        chosen = (schema.dataset.c.dataset_type == kind, schema.dataset.c.data_id == data_id)
        key = self.rows(select(schema.dataset.c.key).where(*chosen).order_by(schema.dataset.c.id))[-1].key
        return self.home.store(self.home.read()).read_bytes(key).decode()

    def checksums(self) -> dict[tuple[str, str], str]:
        """SHA-256 of what is in the store, by dataset type and data id; each is published once."""
        rows, store = self.rows(select(schema.dataset)), self.home.store(self.home.read())
        found = {(row.dataset_type, row.data_id): sha256(store.read_bytes(row.key)).hexdigest() for row in rows}
        assert len(found) == len(rows)
        return found

    def worker(self) -> psutil.Process:
        """The Dask worker of what hangs: it has started the keeper, that the payload process, and that the shell."""
        return psutil.Process(int((self.path / "hangs").read_text())).parents()[2]

    @property
    def hangs(self) -> bool:
        """Whether a payload hangs, or has hung."""
        return (self.path / "hangs").exists()


def expected_checksums(words: Mapping[int, str]) -> dict[tuple[str, str], str]:
    """What a batch of these words is to leave, wherever it runs, reckoned without it."""
    loud = {subrun: f"{word.upper()}\n" for subrun, word in sorted(words.items())}
    contents = {("made", f"run=1 subrun={subrun}"): f"{word}\n" for subrun, word in words.items()}
    contents |= {("loud", f"run=1 subrun={subrun}"): line for subrun, line in loud.items()}
    contents["total", "run=1"] = "".join(loud.values()) + json.dumps({"done": len(words)}) + "\n"
    return {which: sha256(content.encode()).hexdigest() for which, content in contents.items()}


@contextmanager
def when(happened: Callable[[], bool], then: Callable[[], None]) -> Iterator[None]:
    """Does something as soon as something has happened, while a flow runs in this thread."""
    over = threading.Event()

    def watch() -> None:
        while not happened():
            if over.wait(0.05):
                return
        then()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
