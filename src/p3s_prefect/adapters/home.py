"""The experiment's home: where its file, its ledger, its store and its running services are."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from sqlalchemy import make_url

from p3s_prefect.adapters.bucket_url import bucket_url
from p3s_prefect.adapters.experiment_file import read_experiment_text
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.own_place import OwnServer
from p3s_prefect.adapters.stores import directory_url, open_store
from p3s_prefect.adapters.this_machine import is_this_machine, this_machine
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ExperimentFileError, ExperimentFileErrors
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.experiment_file import parse_experiment
from p3s_prefect.core.ports import ObjectStore


@dataclass(frozen=True, kw_only=True)
class StationAddress:
    """Where a running station is found."""

    url: str
    pid: int

    @property
    def is_suspended(self) -> bool:
        """Whether its process was stopped by a signal, such as SIGSTOP: until SIGCONT it answers nobody."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """Why the station did not start the last time."""

    text: str
    is_tried_again: bool
    """Whether it is started again by itself, as what it waits for may come back."""


@dataclass(frozen=True)
class Home:
    """A directory with an ``experiment.yaml``; everything relative in that file is relative to it."""

    path: Path

    @property
    def experiment_file(self) -> Path:
        """The experiment file."""
        return self.path / "experiment.yaml"

    @property
    def run(self) -> Path:
        """Where running services keep their addresses, configuration and logs."""
        return self.path / "run"

    def text(self) -> str:
        """The text of the experiment file.

        Raises:
            ExperimentFileErrors: it cannot be read.
        """
        if self.path.exists() and not self.path.is_dir():
            fix = "Give the experiment's home: the directory of its experiment.yaml."
            raise ExperimentFileErrors([ExperimentFileError("is not a directory", file=str(self.path), fix=fix)])
        return read_experiment_text(self.experiment_file)

    def parse(self, text: str, file: Path | None = None) -> Experiment:
        """The experiment that this text of the experiment file, or of its copy in `file`, declares.

        Raises:
            ExperimentFileErrors: it holds mistakes.
        """
        return parse_experiment(text, file=str(file or self.experiment_file), environment=os.environ)

    def read(self) -> Experiment:
        """The experiment as its file is now; raises as `text` and `parse`."""
        return self.parse(self.text())

    def in_force(self) -> Experiment:
        """The experiment that the running station works by, whatever became of its file since; else as `read`."""
        text = self._text_in_force()
        return self.read() if text is None else self.parse(text, self._kept_text)

    def is_edited(self) -> bool:
        """Whether a station runs by another text than the file's."""
        text = self._text_in_force()
        try:
            return text is not None and text != self.text()
        except ExperimentFileErrors:
            return True

    def place(self, experiment: Experiment) -> Path | BucketPlace:
        """Where the central store is: the declared place, unless this home has an S3 server of its own."""
        declared = experiment.store.place
        if isinstance(declared, BucketPlace):
            return declared
        return OwnServer(self.path).place() or (self.path / declared).resolve()

    def store_url(self, experiment: Experiment) -> str:
        """The same as a URL; `open_store` opens it."""
        place = self.place(experiment)
        return bucket_url(place) if isinstance(place, BucketPlace) else directory_url(place)

    def store(self, experiment: Experiment) -> ObjectStore:
        """The central store."""
        return open_store(self.store_url(experiment))

    def bucket(self, place: BucketPlace) -> BucketPlace:
        """The bucket that a stream comes from, with the file of its keys as other processes find it."""
        if place.credentials is None:
            return place
        return replace(place, credentials=str((self.path / place.credentials).resolve()))

    def ledger(self, experiment: Experiment) -> Ledger:
        """The ledger, not migrated yet."""
        url = make_url(experiment.ledger.url)
        if url.get_backend_name() == "postgresql":
            return Ledger(experiment.ledger.url)
        file = self.path.resolve() / str(url.database)
        return Ledger(url.set(database=str(file)).render_as_string(hide_password=False))

    def announce_station(self, url: str, text: str) -> None:
        """Leaves this process's address, and the text of the experiment file that it has read, for those who look for
        the station, which has nothing to complain of now."""
        self.run.mkdir(parents=True, exist_ok=True)
        self.forget_complaint()
        self.keep_text(text)
        self.put_in_force()
        hidden = self.run / ".station.json"
        hidden.write_text(json.dumps({"url": url, "pid": os.getpid(), "machine": this_machine()}))
        hidden.replace(self.run / "station.json")

    def keep_text(self, text: str) -> None:
        """Writes the text of the experiment file that the station is going to work by, for `put_in_force`.

        Raises:
            OSError: it cannot be written.
        """
        self._next_text.unlink(missing_ok=True)
        with open(os.open(self._next_text, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 -- with a mode
            file.write(text.encode())
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), self._mode_for(os.fstat(file.fileno()).st_gid))

    def put_in_force(self) -> None:
        """From now on the station works by the text that was kept last (see `in_force`)."""
        self._next_text.replace(self._kept_text)

    def withdraw_station(self) -> None:
        """Takes the address away, if it is this process's."""
        found = self.station()
        if found is not None and found.pid == os.getpid():
            self.forget_station()

    def forget_station(self) -> None:
        """Takes the address away, whosever it is, and the text with it."""
        (self.run / "station.json").unlink(missing_ok=True)
        self._kept_text.unlink(missing_ok=True)

    def station(self) -> StationAddress | None:
        """The running station's address; None if there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.run / "station.json").read_text())
            # A file that has outlived the machine's restart names a number that may be anybody's.
            if is_this_machine(found["machine"]) and psutil.pid_exists(int(found["pid"])):
                return StationAddress(url=str(found["url"]), pid=int(found["pid"]))
        return None

    def complain(self, complaint: Complaint) -> None:
        """Leaves word of why the station cannot start, for whoever waits for it."""
        self.run.mkdir(parents=True, exist_ok=True)
        hidden = self.run / ".complaint.json"
        hidden.write_text(json.dumps(asdict(complaint)))
        hidden.replace(self._complaint)

    def complaint(self) -> Complaint | None:
        """Why the station did not start the last time; None if it did."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Complaint(**json.loads(self._complaint.read_text()))
        return None

    def forget_complaint(self) -> None:
        """Takes the word away."""
        self._complaint.unlink(missing_ok=True)

    def _text_in_force(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            # As bytes, else another locale, or the ends of its lines, would make another text of it.
            return self._kept_text.read_bytes().decode() if self.station() is not None else None
        return None

    def _mode_for(self, group: int) -> int:
        """For no other eyes than the file itself, as it may hold a password."""
        try:
            found = self.experiment_file.stat()
        except OSError:
            return 0o600
        return stat.S_IMODE(found.st_mode) & (~0 if found.st_gid == group else ~stat.S_IRWXG)

    @property
    def _kept_text(self) -> Path:
        return self.run / "experiment.yaml"

    @property
    def _next_text(self) -> Path:
        # Another station may be about to lose its lease, or to wait for one.
        return self.run / f".experiment.{os.getpid()}.yaml"

    @property
    def _complaint(self) -> Path:
        return self.run / "complaint.json"
