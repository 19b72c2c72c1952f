"""One folder an instrument: experiment file, reader, payloads, sample data. They import core only."""
