"""Prints the tables: `python -m benchmarks [prompt] [memory]`, `python -m benchmarks shedding [--quick] [...]`,
`python -m benchmarks control [--quick] [--memory]`, `python -m benchmarks stores [--quick]`.

Without a name, all of them.
"""

from __future__ import annotations

import sys

from benchmarks import memory, prompt
from benchmarks.control import run as control
from benchmarks.shedding import run as shedding
from benchmarks.stores import run as stores
from benchmarks.table import show

TABLES = {"prompt": ("The prompt path", prompt.run), "memory": ("Memory", memory.run)}

asked = sys.argv[1:]
if asked[:1] == ["shedding"]:
    shedding.run(asked[1:])
elif asked[:1] == ["control"]:
    control.run(asked[1:])
elif asked[:1] == ["stores"]:
    stores.run(asked[1:])
else:
    for name in asked or TABLES:
        title, run = TABLES[name]
        show(title, run())
    if not asked:
        shedding.run()
        control.run()
        stores.run()
