"""Python payloads for the tests of the pilot: a few good ones, and many that misbehave."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p3s_prefect.core.data_id import DataId

# --- good ones ------------------------------------------------------------------------------------------------------


def upper(raw: str) -> dict[str, str]:
    return {"out": raw.upper()}


def twice(text: str) -> dict[str, str]:
    return {"out": text * 2}


def describe(unit: DataId, factor: float, **_: Any) -> dict[str, Any]:
    return {
        "out": f"{unit} x {factor}",
        "summary": {"factor": {"value": factor, "unit": "ADC"}},
        "products": [],
    }


def arrays() -> dict[str, Any]:
    return {"out": {"noise": np.arange(3.0), "pixel": np.array([1, 2])}}


def add_up(arrays: dict[str, Any]) -> dict[str, str]:
    return {"out": str(arrays["noise"].sum())}


def gather(raw: Mapping[DataId, str], unit: DataId, coverage: Mapping[str, int]) -> dict[str, Any]:
    return {"out": f"{unit}: {[(found['subrun'], text) for found, text in raw.items()]} {dict(coverage)}"}


def weigh(raw: Mapping[DataId, str], weights: Mapping[str, Mapping[DataId, float]]) -> dict[str, Any]:
    missing = [unit["subrun"] for unit in weights["raw"] if unit not in raw]
    return {"out": f"{sum(weights['raw'][unit] for unit in raw)} without {missing}"}


def picture() -> dict[str, Any]:
    Path("a.png").write_bytes(b"not really")
    shown = {"category": "camera", "title": "Noise", "file": "a.png", "shows": "noise per pixel"}
    return {"out": "done", "products": [shown]}


def working_directory() -> dict[str, str]:
    Path("scribble").write_text("mine")
    return {"out": f"{Path.cwd()} {sorted(path.name for path in Path.cwd().iterdir())}"}


def environment() -> dict[str, str]:
    return {"out": " ".join(sorted(name for name in os.environ if name.startswith(("P3S_", "LEFT_"))))}


def uses_processes() -> dict[str, str]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return {"out": str(sum(pool.map(abs, [-1, -2])))}


def prints() -> dict[str, str]:
    sys.stdout.write("from python\n")
    sys.stderr.write("to error, with half a pair \udcff\n")
    os.write(1, b"raw bytes \xff\xfe\x00\n")
    ctypes.CDLL(None).puts(b"from native code")
    subprocess.run(["echo", "from a child"], check=True)
    return {"out": "printed"}


def nothing() -> None:
    return None


# --- wrong returns --------------------------------------------------------------------------------------------------


def returns(what: str) -> Any:
    values: dict[str, Any] = {
        "number": 42,
        "wrong-type": {"out": 42},
        "undeclared": {"out": "x", "more": "y"},
        "nan": {"out": "x", "summary": {"noise": {"value": float("nan")}}},
        "surrogate": {"out": "x", "summary": {"noise": {"value": "\udcff"}}},
        "bad-summary": {"out": "x", "summary": {"noise": 4.2}},
        "circle": {"out": "x", "summary": _circle()},
        "no-json": {"out": "x", "summary": {"noise": object()}},
        "path-traversal": {"out": "x", "products": [{"category": "c", "title": "t", "file": "../../x"}]},
        "absolute": {"out": "x", "products": [{"category": "c", "title": "t", "file": "/etc/passwd"}]},
        "missing-product": {"out": "x", "products": [{"category": "c", "title": "t", "file": "absent.png"}]},
        "objects": {"out": np.array([object()])},
    }
    return values[what]


def _circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["noise"] = found
    return found


def leaves(what: str, name: str = "out.txt") -> None:
    """Leaves something odd where its output should be."""
    path = Path(name)
    match what:
        case "link":
            path.symlink_to("/etc/passwd")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "outside":
            (Path.cwd().parent / name).write_text("x")
        case "empty":
            path.write_text("")


# --- bad ends -------------------------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)


def ends(how: str) -> None:
    errors: dict[str, BaseException] = {
        "ValueError": ValueError("too noisy"),
        "SystemExit": SystemExit(0),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "GeneratorExit": GeneratorExit(),
        "Unprintable": Unprintable(),
        "Unpicklable": Unpicklable(),
        "MemoryError": MemoryError(),
        "surrogate": ValueError("\udcff"),
        "long": ValueError("x" * 100_000),
    }
    raise errors[how]


def dies(how: str) -> None:
    match how:
        case "exit 0":
            os._exit(0)
        case "exit 3":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "descriptors":
            os.closerange(3, 1024)


# --- hanging --------------------------------------------------------------------------------------------------------


def hangs(how: str, started: str = "") -> None:
    if started:
        Path(started).touch()
    ways: dict[str, Callable[[], object]] = {
        "sleep": lambda: time.sleep(1000),
        "native sleep": lambda: ctypes.CDLL(None).sleep(1000),
        "native sleep, lock held": lambda: ctypes.PyDLL(None).sleep(1000),
        "native loop": lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1),
        "native loop, lock held": lambda: pow(3, 10**300_000, 10**300_000 + 7),
        "ignores signals": _ignore_and_sleep,
        "catches everything": _catch_everything,
    }
    ways[how]()


def _ignore_and_sleep() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1000)


def _catch_everything() -> None:
    while True:
        try:
            time.sleep(1000)
        except BaseException:  # noqa: S112 -- that is its fault
            continue


# --- starting others ------------------------------------------------------------------------------------------------


def starts(how: str, then: str, pids: str) -> dict[str, str]:
    """Starts a process that never ends, notes its number in `pids`, and then ends in some way itself."""
    match how:
        case "fork":
            _forked(pids)
        case "detached":
            _detached(pids)
        case "many":
            for _ in range(20):
                _forked(pids)
        case "command":
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            _note(child.pid, pids)
    if then == "return":
        return {"out": "left something"}
    if then == "raise":
        raise ValueError("left something")
    if then == "hang":
        time.sleep(1000)
    dies(then)
    return {}


def _forked(pids: str) -> None:
    child = os.fork()
    if child == 0:
        _ignore_and_sleep()
    _note(child, pids)


def _detached(pids: str) -> None:
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setsid()
        child = os.fork()
        if child == 0:
            _ignore_and_sleep()
        _note(child, pids)
        os.write(write_end, b".")
        os._exit(0)
    os.read(read_end, 1)


def _note(pid: int, pids: str) -> None:
    with Path(pids).open("a") as file:
        file.write(f"{pid}\n")


# --- leaving traces in the process ----------------------------------------------------------------------------------


def spoils(what: str) -> dict[str, str]:
    """Changes something for its whole process, and ends well."""
    match what:
        case "environment":
            os.environ["LEFT_BEHIND"] = "1"
            os.environ.pop("PATH")
        case "directory":
            os.chdir("/")
        case "standard output":
            sys.stdout.close()
            sys.stderr.close()
        case "no standard output":
            sys.stdout = sys.stderr = None  # type: ignore[assignment]
        case "descriptors 1 and 2":
            os.close(1)
            os.close(2)
        case "alarm":
            signal.alarm(1)
        case "signals":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return {"out": "spoilt"}
