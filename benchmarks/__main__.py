"""Prints the tables: `python -m benchmarks [prompt] [memory]`; without a name, all of them."""

from __future__ import annotations

import sys

from benchmarks import memory, prompt
from benchmarks.table import show

TABLES = {"prompt": ("The prompt path", prompt.run), "memory": ("Memory", memory.run)}

for name in sys.argv[1:] or TABLES:
    title, run = TABLES[name]
    show(title, run())
