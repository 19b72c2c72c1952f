"""What Prefect retries, times and shows: one concern a file."""

if __name__ != "p3s_prefect.tasks":
    raise ImportError("import this package as p3s_prefect.tasks")
