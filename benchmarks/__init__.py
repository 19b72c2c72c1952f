"""Speed, always as a ratio to a named rival in the same run: `python -m benchmarks` prints the tables."""
