"""Stores and books on what a facility has: each measure is one line of the tables in `run`."""
