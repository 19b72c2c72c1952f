"""Pure rules: no Prefect, no Dask, no input or output, no clock of its own."""
