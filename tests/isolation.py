"""For all tests: an environment of their own, no sockets unless marked, and chance that can be repeated."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_LEAKING = ("P3S_", "PREFECT_", "DASK_", "AWS_")
# How much the tests shall do, which is not how this machine is set up.
_OURS = {"P3S_KILLS", "P3S_OUTAGE_S", "P3S_PICTURES"}
_home = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, as Prefect and Dask read their settings when they are."""
    forget_settings(os.environ)
    home = config.stash[_home] = Path(tempfile.mkdtemp(prefix="p3s-tests-"))
    # The home directory of whoever runs the tests may be read-only, and is none of their business.
    os.environ |= {"HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    _configure_hypothesis(config)
    _guard_sockets()


def forget_settings(environment: MutableMapping[str, str]) -> None:
    """Takes away what would tell the tests how this machine is set up."""
    for name in [name for name in environment if name.startswith(_LEAKING) and name not in _OURS]:
        del environment[name]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Making matplotlib's list of fonts takes seconds: it is kept from one run to the next."""
    if session.config.cache is not None:
        os.environ["MPLCONFIGDIR"] = str(session.config.cache.mkdir("matplotlib"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leaves nothing behind."""
    shutil.rmtree(config.stash[_home], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tells how to repeat what chance has found."""
    seed = config.getoption("hypothesis_seed")
    terminalreporter.write_line(f"hypothesis seed: {seed} (repeat with --hypothesis-seed={seed})")


# --- chance -----------------------------------------------------------------------------------------------------


def _configure_hypothesis(config: pytest.Config) -> None:
    # A time limit for each example would fail on a busy machine; the limit for each test stands in pyproject.toml.
    hypothesis.settings.register_profile("here", deadline=None)
    hypothesis.settings.register_profile(
        "ci", parent=hypothesis.settings.get_profile("here"), max_examples=50, derandomize=False, print_blob=True
    )
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")
    if config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


# --- sockets ----------------------------------------------------------------------------------------------------


class SocketsAreOff(RuntimeError):
    """A test that is not marked has opened a socket, or one that is has left this machine."""


class _Door:
    """Whether loopback may be used now."""

    is_open = False


@contextmanager
def _opened(is_open: bool) -> Iterator[None]:
    before, _Door.is_open = _Door.is_open, is_open
    try:
        yield
    finally:
        _Door.is_open = before


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Opens loopback for a test that is marked, and for the fixtures that it is the first to ask for."""
    with _opened(item.get_closest_marker("sockets") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """What was open may be needed for closing it, whichever test is the last to have it."""
    with _opened(True):
        return (yield)


def _guard_sockets() -> None:
    for name in ("bind", "connect", "connect_ex"):
        setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(original: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        # Others are no network (asyncio's own), or send nothing when connected (UDP, by which Dask learns its address).
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM:
            if not _Door.is_open:
                raise SocketsAreOff("sockets are off: mark the test with pytest.mark.sockets if it needs loopback")
            if not _is_loopback(str(address[0])):
                raise SocketsAreOff(f"{address[0]} is not this machine: tests never leave it")
        return original(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
