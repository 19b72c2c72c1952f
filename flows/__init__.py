"""What happens in which order: one file a flow, no helpers."""

if __name__ != "p3s_prefect.flows":
    raise ImportError("import this package as p3s_prefect.flows")
