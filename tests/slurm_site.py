"""A real Slurm with one node on this machine: Debian's packages, under the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from clusters import die_with_parent
from lacking import lacks

from p3s_prefect.adapters.free_ports import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_START_S = 60

_CONF = """
ClusterName=site
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={path}/munge/socket
CredType=cred/munge
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=1
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 Port={node} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def needs_slurm() -> None:
    """Says how to get it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        lacks(f"Slurm ({', '.join(missing)})", "slurm-wlm munge")


@dataclass
class SlurmSite:
    """Daemons in the foreground, which end with the tests."""

    path: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        return self.path / "slurm.conf"

    def start(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.path / name).mkdir(mode=0o700)
        # munged refuses a socket below a directory that others may write to, but /tmp is one.
        key = self.path / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        ports = {name: free_port() for name in ("controller", "node")}
        self.conf.write_text(_CONF.format(user=getpass.getuser(), path=self.path, **ports))
        munge = [f"--{what}={self.path}/munge/{what}" for what in ("socket", "pid-file", "log-file", "seed-file")]
        self._run("munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self._run("slurmctld", "-D", "-i", "-f", str(self.conf))
        self._run("slurmd", "-D", "-N", "node", "-f", str(self.conf))
        until = time.monotonic() + _START_S
        while self.ask("sinfo", "--noheader", "--format=%T").strip() != "idle":
            assert time.monotonic() < until, self._logs()
            time.sleep(0.1)

    def close(self) -> None:
        self.ask("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()

    def jobs(self) -> list[str]:
        """The ids of the jobs that run."""
        return self.ask("squeue", "--noheader", "--states=running", "--format=%i").split()

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        environment = os.environ | {"SLURM_CONF": str(self.conf)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout

    def _run(self, program: str, *arguments: str) -> None:
        found = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
        with (self.path / f"{program}.log").open("ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    [str(found), *arguments], stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
                )
            )

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.path.glob("*.log")))
