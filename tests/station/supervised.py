"""The command as people give it, and what `p3s up` has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from clusters import below
from sites import Site

from p3s_prefect.adapters.supervision import Services

# With a share of a twentieth of a core, `p3s up` took more than two minutes.
_PATIENCE_S = 300


def p3s(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    with begin(*words) as command:
        said, complained = command.communicate(timeout=_PATIENCE_S)
    return subprocess.CompletedProcess(words, command.returncode, said, complained)


def begin(*words: str) -> subprocess.Popen[str]:
    """The command, running."""
    here = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "p3s_prefect.cli", *words],
        env=os.environ | {"PYTHONPATH": here, "NO_COLOR": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def family(site: Site) -> list[psutil.Process]:
    """The supervisor and all below it, payload processes too."""
    pid = Services(site.home).pid()
    return [] if pid is None else [psutil.Process(pid), *below(pid)]


def service_of(site: Site, word: str) -> psutil.Process:
    """One of the services, by a word of its command line; it may just be coming back."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for process in family(site)[1:]:
            try:
                if word in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no {word} is running")
