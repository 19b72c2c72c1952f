"""Keeping scheduler, pilots, station and Prefect running, by supervisord, whose configuration is written here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.home import Home, StationAddress
from p3s_prefect.adapters.own_store import own_store_programs
from p3s_prefect.adapters.prefect_server import prefect_programs
from p3s_prefect.adapters.programs import Program
from p3s_prefect.core.errors import LedgerAway, P3sError, ServiceError, StoreUnreachable
from p3s_prefect.core.experiment import Experiment

# Dask must not try again by itself: the dispatcher does, and counts. A pilot that hangs as a whole is given up when
# it has been silent for so long. What Dask measures of itself nobody looks at, as payloads run in processes of their
# own: it was five sixths of an idle pilot's CPU time (0.3 % of a core are left of 1.9). The C library keeps a memory
# pool for each thread and gives little back: with its defaults the station grew by 0.4 kB a unit though nothing of it
# was in use, and with these it stays flat.
SERVICE_ENVIRONMENT = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "200ms",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
# What is started with it in its environment belongs to the services of the home that it names.
_MARK = "P3S_SERVICES_OF"
_STOP_MARGIN_S = 15
_ORPHANS_S = 20.0
_POLL_S = 0.1


class Services:
    """The services of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._run = home.run.resolve()
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self, experiment: Experiment) -> subprocess.Popen[bytes]:
        """Starts everything in a session of its own; it goes on when this process ends.

        Raises:
            ServiceError: it is running already, or the home cannot be written to.
        """
        with _writable(self._run), self._starting_alone():
            if running := self.processes():
                raise ServiceError(
                    f"the services of this home run already (process {running[0].pid})", fix="Stop them: p3s down"
                )
            self._home.forget_complaint()
            # After a crash of the machine, its process id may be somebody else's.
            self._home.forget_station()
            configuration = self._run / "supervisord.conf"
            kept = [
                *own_store_programs(self._home),
                *programs(self._home, experiment),
                *prefect_programs(self._home, experiment),
            ]
            configuration.write_text(self._configuration(kept))
            with (self._run / "logs" / "supervisord.out").open("wb") as out:
                self._supervisor = subprocess.Popen(  # noqa: S603 -- it is this interpreter
                    [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)],
                    env=os.environ | SERVICE_ENVIRONMENT | {_MARK: str(self._run)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self._run,
                )
        return self._supervisor

    def wait_for_station(self, timeout_s: float, tick: Callable[[], None] = lambda: None) -> StationAddress:
        """Waits until the station answers.

        Raises:
            ServiceError: it cannot start, and says why; or it did not answer in time.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if complaint := self._home.complaint():
                raise ServiceError(complaint.text)
            station = self._home.station()
            if station is not None:
                return station
            if self._supervisor is not None and self._supervisor.poll() is not None:
                said = (self._run / "logs" / "supervisord.out").read_text().strip()
                raise ServiceError(f"the supervisor ended: {said}", fix=f"Read {self._run / 'logs'}, and start again.")
            tick()
            time.sleep(_POLL_S)
        raise ServiceError(
            f"the station did not answer within {timeout_s:g} s", fix=f"Read {self._run / 'logs' / 'station.log'}"
        )

    def stop(self, timeout_s: float = 60.0) -> bool:
        """Stops everything, gracefully; False if nothing ran."""
        family = self.processes()
        if not family:
            return False
        for process in family:
            # What is stopped by a signal could not end what it has begun, and would be killed for it.
            with contextlib.suppress(psutil.Error):
                process.resume()
        # The supervisor stops the others in their order; without one, as after its kill -9, each is told itself.
        pid = self.pid()
        for process in family:
            if pid is None or process.pid == pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
        # Pilots without a supervisor write into a pipe that nobody reads, and may hang in it instead of ending.
        _, alive = psutil.wait_procs(family, timeout=timeout_s if pid is not None else min(timeout_s, _ORPHANS_S))
        for left in alive:
            left.kill()
        psutil.wait_procs(alive, timeout=5)
        self._pid_file.unlink(missing_ok=True)
        return True

    def are_kept(self) -> bool:
        """Whether a supervisor keeps them running."""
        return self.pid() is not None

    def processes(self) -> list[psutil.Process]:
        """Every process of this home's services, whether its supervisor lives or not."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(_MARK) == str(self._run))
        except psutil.Error:
            return False

    def pid(self) -> int | None:
        """The supervisor's process; None if it does not run."""
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            ours = str(self._run / "supervisord.conf") in process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        return process.pid if ours and process.status() != psutil.STATUS_ZOMBIE else None

    def keeps_this_process(self) -> bool | None:
        """Whether the supervisor that has started this process still lives; None if no supervisor has."""
        return self.pid() is not None if os.environ.get(_MARK) == str(self._run) else None

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self._run / "supervisord.pid"

    @contextlib.contextmanager
    def _starting_alone(self) -> Iterator[None]:
        """Of two that start at the same instant, the second waits until it can see the first one's processes."""
        (self._run / "logs").mkdir(parents=True, exist_ok=True)
        # The kernel gives the lock back, however this process ends.
        with (self._run / "starting.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _configuration(self, kept: list[Program]) -> str:
        sections: list[dict[str, object]] = [
            {
                "": "supervisord",
                # Relative to where it is started: it expands some paths twice, so that a '%' in them cannot be told.
                "logfile": "logs/supervisord.log",
                "pidfile": self._pid_file.name,
                "childlogdir": "logs",
            }
        ]
        for program in kept:
            number = "-%(process_num)d" if program.copies > 1 else ""
            sections.append(
                {
                    "": f"program:{program.name}",
                    "command": _quoted(program.command),
                    "process_name": f"%(program_name)s{number}",
                    "numprocs": program.copies,
                    "priority": program.order,
                    "autorestart": "unexpected",
                    "exitcodes": COMPLAINED,
                    # A program that dies at once is tried again and again: what it waits for may come back.
                    "startsecs": program.settles_s,
                    "startretries": 1_000_000,
                    "stopwaitsecs": program.stop_wait_s,
                    "killasgroup": "true",
                    "redirect_stderr": "true",
                    "stdout_logfile": f"logs/{program.name}{number}.log",
                    "stdout_logfile_maxbytes": "10MB",
                    "stdout_logfile_backups": 2,
                    "environment": _assigned(program.environment),
                }
            )
        return "\n".join(_section(section) for section in sections)


@contextlib.contextmanager
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(
            f"{place} cannot be written to: {error.strerror or error}",
            fix="Services keep their logs and addresses there: make it writable, or use another home.",
        ) from error


# A service that cannot start because of what it was told exits so, and is not started again.
COMPLAINED = 3


def may_come_back(error: P3sError) -> bool:
    """Whether a service that ended so is started again: servers come back without anybody to start it."""
    return isinstance(error, LedgerAway | StoreUnreachable)


def programs(home: Home, experiment: Experiment) -> list[Program]:
    """What is kept running for an experiment: the station, and, unless another cluster serves it, Dask."""
    address, dask = experiment.pilots.address, []
    if address is None:
        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        dask = [_scheduler(port), _pilots(home, address, experiment.pilots.workers)]
    station = Program(
        name="station",
        command=(sys.executable, "-m", "p3s_prefect.cli", "station", address, "--home", str(home.path.resolve())),
        order=30,
        stop_wait_s=int(experiment.station.grace_s) + _STOP_MARGIN_S,
    )
    return [*dask, station]


def _scheduler(port: int) -> Program:
    command = (sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    return Program(name="scheduler", command=command, order=10)


def _pilots(home: Home, address: str, workers: int) -> Program:
    options = {
        "--nthreads": "1",
        "--resources": "slot=1",
        "--memory-limit": "0",
        "--death-timeout": "30",
        "--local-directory": str(home.run.resolve() / "pilots"),
        "--host": "127.0.0.1",
    }
    flat = [word for option in options.items() for word in option]
    command = (sys.executable, "-m", "dask", "worker", address, "--no-nanny", "--no-dashboard", *flat)
    return Program(name="pilot", command=command, order=20, copies=workers)


def _quoted(command: tuple[str, ...]) -> str:
    return " ".join(_word(word) for word in command)


def _assigned(environment: Mapping[str, str]) -> str:
    return ",".join(f"{name}={_word(value)}" for name, value in environment.items())


def _word(text: str) -> str:
    return '"' + text.replace("%", "%%").replace('"', '\\"') + '"'


def _section(section: dict[str, object]) -> str:
    lines = [f"[{section.pop('')}]", *(f"{name}={value}" for name, value in section.items())]
    return "\n".join(lines) + "\n"
