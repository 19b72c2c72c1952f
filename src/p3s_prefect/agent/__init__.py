"""The Prefect side of a site: it records in Prefect what the station did. Nothing that computes waits for it."""
