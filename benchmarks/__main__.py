"""Prints the tables: `python -m benchmarks`, or some of them by name, as `--help` says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(asked: Sequence[str]) -> None:
    """Runs what is asked for: one benchmark with options of its own, or any number of them by name."""
    # The servers that tests start are started here too, and modules of tests name each other as pytest finds them.
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from benchmarks import memory, prompt
    from benchmarks.control import run as control
    from benchmarks.shedding import run as shedding
    from benchmarks.stores import run as stores
    from benchmarks.table import show

    plain = {"prompt": ("The prompt path", prompt.run), "memory": ("Memory", memory.run)}
    with_options = {"shedding": shedding.run, "control": control.run, "stores": stores.run}
    names = [*plain, *with_options]
    if asked and asked[0] in with_options and not set(asked[1:]) & set(names):
        with_options[asked[0]](asked[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures, and prints a table for each name; without one, for all.",
        epilog=f"{', '.join(with_options)} have options of their own: `python -m benchmarks stores --help`.",
    )
    parser.add_argument("name", nargs="*", choices=names, help=", ".join(names))
    for name in parser.parse_args(asked).name or names:
        if name in plain:
            title, run = plain[name]
            show(title, run())
        else:
            with_options[name]([])


if __name__ == "__main__":
    main(sys.argv[1:])
